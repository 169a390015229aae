"""Row designs: which columns a row of (A, B) may use; a new design is one entry of `DESIGNS`."""

from __future__ import annotations

from collections.abc import Callable
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


DESIGNS: dict[str, Design] = {
    "full": Design("all states and inputs, the paper's literal form", _all_columns, True),
    "no-self-loop": Design("all states but the row's own, and inputs", _off_diagonal, True),
    "causal": Design("states of earlier blocks, and inputs", States.causal_mask, False),
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
