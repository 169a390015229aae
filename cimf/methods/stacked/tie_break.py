"""The network's own rows as candidates: a tie-break between solutions of the same row problem.

At a kappa that admits the network, its row has objective 0, and so has every other point of an
affine set where states or inputs are linearly dependent. A solver returns one of them, or a point
next to it with many entries of size 1e-7, both certified. Of two certified rows the one with fewer
non-zeros is kept; the same for rows of (C, D) of equal least-squares residual.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cimf.judge import Solution, certify
from cimf.methods.stacked.captured import Reference
from cimf.statistics import Gram

Array = NDArray[np.float64]

# The method of a row that is the network's own.
OWN = "network"


def own_rows(reference: Reference, scale: Array) -> Array:
    """Return the network's own rows of (A, B) in units of the states (n,), shape (n, N)."""
    scaled = reference.own.scaled(scale)
    return np.hstack([scaled.A.toarray(), scaled.B.toarray()])


def own_outputs(reference: Reference) -> Array:
    """Return the network's own rows of (C, D), shape (q, N)."""
    return np.hstack([reference.own.C.toarray(), reference.own.D.toarray()])


def prefer_own_outputs(
    fitted: Array, own: Array, regressors: Array, targets: Array, tol: float
) -> tuple[Array, int]:
    """Return least-squares rows (q, N), the network's own where they are as good and sparser.

    Parameters
    ----------
    fitted, own : (q, N)
        The least-squares solution and the network's own rows of (C, D).
    regressors, targets : (N, m), (q, m)
    tol : float
        Excess of the own row's residual over the fitted row's that counts as none, both squared,
        relative to the squared target.

    Returns
    -------
    rows : (q, N)
    replaced : int
        Number of rows that are the network's own.
    """
    excess = np.square(targets - own @ regressors).sum(axis=1)
    excess -= np.square(targets - fitted @ regressors).sum(axis=1)
    take = (excess <= tol * np.square(targets).sum(axis=1)) & _sparser(own, fitted)
    return np.where(take[:, None], own, fitted), int(take.sum())


def prefer_own_rows(
    solution: Solution,
    own: Array,
    gram: Gram,
    kappa: float,
    weights: Array,
) -> Solution:
    """Return the solution with the network's own row wherever it is certified and sparser.

    Parameters
    ----------
    solution : Solution
        Of P(kappa) for the targets of `gram`.
    own : (n, N)
        As `own_rows`.
    gram, kappa, weights
        As `cimf.certify`; the tolerance is that of the solution.

    Returns
    -------
    Solution
        With its certificate recomputed where a row was replaced, and method `OWN` in those rows.
    """
    tol = solution.certificate.tol
    passed = certify(gram, own, kappa, weights=weights, tol=tol).passed
    take = passed & _sparser(own, solution.coef)
    if not take.any():
        return solution
    coef = np.where(take[:, None], own, solution.coef)
    return replace(
        solution,
        coef=coef,
        certificate=certify(gram, coef, kappa, weights=weights, tol=tol),
        method=np.where(take, OWN, solution.method),
    )


def _sparser(one: Array, other: Array) -> NDArray[np.bool_]:
    return np.count_nonzero(one, axis=1) < np.count_nonzero(other, axis=1)
