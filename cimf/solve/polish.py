"""Polish: from an interior-point solution of a row problem to the exact solution on its support.

An interior-point method leaves every coefficient non-zero and its multiplier accurate to the
tolerance. Once the support and the signs are guessed, the solution on them is a linear system:

    G_SS a_S + lam w_S s_S = c_S,    and for P(kappa) with an active ball  w_S's_S a_S = kappa.

Several guesses are solved; whoever calls decides by certificate which point is kept.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from formulations.level import Penalty, Radius

Array = NDArray[np.float64]

# Guesses: columns with w_j |a_j| above these fractions of the largest. Clarabel at tolerance 1e-9
# leaves zeros at 1e-6 to 1e-12 of the largest, depending on how far they are from entering.
_CUTOFFS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

# Rounds of dropping columns whose sign turned; more than a handful means the guess was wrong.
_ROUNDS = 20

# A ball this much (relatively) inside kappa is taken as inactive in one more guess.
_INACTIVE = 1e-9


def polished_points(
    gram: Array,
    corr: Array,
    weights: Array,
    signs: NDArray[np.int8],
    coef: Array,
    level: Radius | Penalty,
) -> Array:
    """Return candidate solutions of one row problem near an approximate one.

    Parameters
    ----------
    gram, corr : (N, N), (N,)
    weights, signs : (N,)
        As `formulations.columns.Columns`.
    coef : (N,)
        The approximate solution, feasible.
    level : Radius or Penalty
        Of one value.

    Returns
    -------
    (k, N)
        One candidate per distinct guess of the support; not certified.
    """
    free = weights == 0
    in_ball = (weights > 0) & np.isfinite(weights)
    weights = np.where(in_ball, weights, 0.0)
    size = weights * np.abs(coef)
    supports = {np.zeros(coef.size, dtype=bool).tobytes(): np.zeros(coef.size, dtype=bool)}
    for cutoff in _CUTOFFS:
        guess = in_ball & (size > cutoff * size.max(initial=0.0))
        supports[guess.tobytes()] = guess
    problem = (gram, corr, weights, coef)
    points = [_on_support(*problem, guess, free, level) for guess in supports.values()]
    if isinstance(level, Radius) and size.sum() < level.values[0] * (1.0 - _INACTIVE):
        # Without the ball only columns with a sign have a bound to be at.
        unsigned = free | (in_ball & (signs == 0))
        distinct = {(guess | unsigned).tobytes(): guess & ~unsigned for guess in supports.values()}
        unbounded = Penalty(np.zeros(1))
        points += [_on_support(*problem, guess, unsigned, unbounded) for guess in distinct.values()]
    return np.array(points)


def _on_support(
    gram: Array,
    corr: Array,
    weights: Array,
    coef: Array,
    guess: NDArray[np.bool_],
    free: NDArray[np.bool_],
    level: Radius | Penalty,
) -> Array:
    """Solve for the guessed support, with the signs of `coef`, and the free columns.

    Columns of the support whose sign turns are dropped.
    """
    support = guess.copy()
    sign = np.sign(coef)
    for _ in range(_ROUNDS):
        index = np.flatnonzero(support | free)
        out = np.zeros_like(coef)
        if not index.size:
            return out
        slope = np.where(support, weights * sign, 0.0)[index]
        start = np.where(support | free, coef, 0.0)[index]
        inverse = _PseudoInverse(gram[np.ix_(index, index)])
        out[index] = _stationary(inverse, gram, corr, index, slope, start, level)
        turned = support & (out * sign <= 0)
        if not turned.any():
            return out
        support &= ~turned
    return out


def _stationary(
    inverse: _PseudoInverse,
    gram: Array,
    corr: Array,
    index: NDArray[np.intp],
    slope: Array,
    start: Array,
    level: Radius | Penalty,
) -> Array:
    """Return the solution of the linear system nearest to `start` (one step of refinement)."""
    a, multiplier = start, 0.0 if isinstance(level, Radius) else float(level.values[0])
    block, right = gram[np.ix_(index, index)], corr[index]
    along = inverse(slope)
    curvature = float(slope @ along)
    for _ in range(2):
        step = inverse(right - block @ a - multiplier * slope)
        change = 0.0
        if isinstance(level, Radius) and curvature > 0:
            change = (float(slope @ (a + step)) - float(level.values[0])) / curvature
        a = a + step - change * along
        multiplier += change
    return a


class _PseudoInverse:
    """Pseudo-inverse of a Gram block, of unit diagonal before its eigenvalues are cut."""

    vector: Array
    inverse: Array

    def __init__(self, block: Array) -> None:
        root = np.sqrt(np.maximum(np.diagonal(block), 0.0))
        self.scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
        value, self.vector = scipy.linalg.eigh(block * np.outer(self.scale, self.scale))
        keep = value > np.finfo(np.float64).eps * value.size * max(value[-1], 0.0)
        self.inverse = np.divide(1.0, value, out=np.zeros_like(value), where=keep)

    def __call__(self, right: Array) -> Array:
        """Return the solution of least (scaled) norm."""
        half = self.vector.T @ (self.scale * right)
        return self.scale * (self.vector @ (self.inverse * half))
