"""Row designs: which columns a row of (A, B) may use; a new design is one entry of `DESIGNS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cimf.network import States
from cimf.statistics import Gram

# Samples whose design is built at a time: 4096 x 16,000 columns is 0.5 GB.
_BLOCK = 4096


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


def row_problems(states: States, allowed: NDArray[np.bool_]) -> tuple[Gram, NDArray[np.float64]]:
    """Return the shared statistics of all rows of (A, B) and the weights of their columns.

    Parameters
    ----------
    states : States
    allowed : (n, N) bool
        Columns that each row may use.

    Returns
    -------
    gram : Gram
        Of the design (X^T, U^T), shape (m, N), and the targets Z^T, shape (m, n).
    weights : (N,) where all rows are alike, else (n, N)
        1: inside the ball; 0: the bias column, free; infinity: excluded.
    """
    gram = Gram(states.n_columns, states.n_states)
    for start in range(0, states.n_samples, _BLOCK):
        part = slice(start, start + _BLOCK)
        gram.update(np.concatenate([states.X[:, part], states.U[:, part]]).T, states.Z[:, part].T)
    weights = np.where(allowed, np.where(states.free_columns, 0.0, 1.0), np.inf)
    return gram, weights[0] if allowed.all() else weights
