"""Row designs: which columns a row of (A, B) may use; a new design is one entry of `DESIGNS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cimf.network.states import States


@dataclass(frozen=True)
class Design:
    """A row design.

    Attributes
    ----------
    summary : str
    allowed : States -> (n, N) bool
        Columns (states, then inputs) that each row may use.
    feedback : bool
        Whether A may contain cycles; if so, kappa < 1 is what makes the model well-posed.
    """

    summary: str
    allowed: Callable[[States], NDArray[np.bool_]]
    feedback: bool


def _all_columns(states: States) -> NDArray[np.bool_]:
    return np.ones((states.n_states, states.n_columns), dtype=bool)


def _off_diagonal(states: States) -> NDArray[np.bool_]:
    return ~np.eye(states.n_states, states.n_columns, dtype=bool)


def _predecessors(states: States) -> NDArray[np.bool_]:
    mask = np.zeros((states.n_states, states.n_columns), dtype=bool)
    for block in states.blocks:
        mask[block.rows] = columns_of(states, block.predecessors)
    return mask


def columns_of(states: States, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return the columns (N,) of some blocks, or "input"; the bias is always among them."""
    mask = states.free_columns
    for block in states.blocks:
        if block.name in names:
            mask[: states.n_states][block.rows] = True
    if "input" in names:
        mask[states.n_states :] = True
    return mask


DESIGNS: dict[str, Design] = {
    "full": Design("all states and inputs, the paper's literal form", _all_columns, True),
    "no-self-loop": Design("all states but the row's own, and inputs", _off_diagonal, True),
    "causal": Design("states of earlier blocks, and inputs", States.causal_mask, False),
    "predecessors": Design(
        "what the row's own block reads in the network: no new connections", _predecessors, False
    ),
}


def column_weights(states: States, allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the weights of the columns of all rows of (A, B).

    Parameters
    ----------
    states : States
        Of any samples.
    allowed : (n, N) bool
        Columns that each row may use.

    Returns
    -------
    (N,) where all rows are alike, else (n, N)
        1: inside the ball; 0: the bias column, free; infinity: excluded.
    """
    weights = np.where(allowed, np.where(states.free_columns, 0.0, 1.0), np.inf)
    return weights[0] if allowed.all() else weights
