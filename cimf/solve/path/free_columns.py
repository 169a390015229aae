"""Row problems with their free columns eliminated, for methods that move one column at a time.

Minimised over the free columns F, the loss of a row is a quadratic in the bounded ones B alone, so
coordinate descent never sees the bias: it would otherwise move the bias and the columns that
correlate with it in turns, a small step each. The exact method needs none of this: its linear
systems hold the free columns.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from cimf.solve.compiled import Array
from cimf.solve.path.row_problem import RIDGE

# Below this fraction of its square a column is in the span of the free ones. The ridge of 1e-12
# leaves 1e-12 to 5e-12 of such a column (1 to 50 free ones, of scales 1e-2 to 1e2), and a random
# column beside 50 free ones of 400 samples keeps 0.85. Free columns that differ by 1e-3 of their
# length are not told apart by that ridge: 2e-6 is left of their difference. Descent then works on a
# slightly other problem; the segment step, which holds the free columns, ends it on the right one.
_SPANNED = 1e-11


class BoundedPart:
    """The problem that is left when the free columns F are eliminated by least squares.

    With K = G_FF = L L' its Gram is G_BB - G_BF K^{-1} G_FB, its correlation c_B - G_BF K^{-1} c_F.
    Both are computed from H = L^{-1} G_FB, as G_BB - H'H and c_B - H' L^{-1} c_F.

    Parameters
    ----------
    gram : (N, N)
    weights : (N,)
        0: free.

    Attributes
    ----------
    index : (|B|,) int
        The other columns.
    gram : (|B|, |B|)
    """

    def __init__(self, gram: Array, weights: Array) -> None:
        self._free = weights == 0.0
        self.index = np.flatnonzero(~self._free)
        self.gram = gram
        if not self._free.any():
            return
        f = np.flatnonzero(self._free)
        root = np.sqrt(np.diagonal(gram)[f])
        self._scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
        block = self._scale[:, None] * gram[np.ix_(f, f)] * self._scale
        # The same ridge as in the segment step: collinear free columns share their coefficient.
        block[np.diag_indices_from(block)] += RIDGE
        self._factor = scipy.linalg.cholesky(block, lower=True)
        self._cross = self._half(gram[f][:, self.index])  # (|F|, |B|)
        self.gram = gram[np.ix_(self.index, self.index)] - self._cross.T @ self._cross
        diagonal = np.diagonal(gram)[self.index]
        # What is left of a column in the span of the free ones is rounding; descent skips it.
        spanned = np.diagonal(self.gram) <= _SPANNED * diagonal
        self.gram[spanned, spanned] = 0.0

    def fits(self, weights: Array) -> bool:
        """Return whether another row has the same free columns."""
        return bool(np.array_equal(self._free, weights == 0.0))

    def _half(self, right: Array) -> Array:
        scale = self._scale if right.ndim == 1 else self._scale[:, None]
        half: Array = scipy.linalg.solve_triangular(self._factor, scale * right, lower=True)
        return half

    def reduce(self, corr: Array, half_sq: float) -> tuple[Array, float]:
        """Return the correlations (|B|,) and 1/2 ||z||^2 of the reduced row."""
        if not self._free.any():
            return corr, half_sq
        half = self._half(corr[self._free])
        return corr[self.index] - half @ self._cross, max(half_sq - 0.5 * float(half @ half), 0.0)

    def expand(self, points: Array, corr: Array) -> Array:
        """Return coefficients (T, N) of all columns for solutions (T, |B|) of the reduced row."""
        out = np.zeros((points.shape[0], corr.size))
        out[:, self.index] = points
        if self._free.any():
            half = self._half(corr[self._free])[:, None] - self._cross @ points.T
            right = scipy.linalg.solve_triangular(self._factor.T, half)
            out[:, self._free] = (self._scale[:, None] * right).T
        return out
