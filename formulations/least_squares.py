"""The least-squares data of r rows that share one design, in the form solvers can use safely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from formulations.columns import as_float64, check_range
from formulations.errors import InputError

Array = NDArray[np.float64]

# A Gram accumulated in float64 has eigenvalues above -1e-14 of the largest (N = 900, m = 2,000);
# one rounded to float32 goes down to -4e-8. What lies between is refused: it is not a Gram.
_NEGATIVE = 1e-11

# Largest dense copy that `reduced` makes of a sparse design: 64 million entries, 0.5 GB.
_DENSE_LIMIT = 64_000_000


@dataclass(frozen=True)
class LeastSquares:
    """Data of h_i(a) = 1/2 ||M a - z_i||^2 + 1/2 rho_i for the rows i = 1..r.

    Attributes
    ----------
    design : (m, N), dense or scipy.sparse
        M.
    target : (m, r)
        z_i in column i.
    remainder : (r,)
        rho_i >= 0, the part of ||z_i||^2 that no coefficients can reach and that a reduction
        split off. Zero for data as given.
    moments : (gram (N, N), corr (r, N), target_sq (r,)) or None
        The moments that the data were made from, where they were; certificates use these.
    """

    design: Any
    target: Array
    remainder: Array
    moments: tuple[Array, Array, Array] | None = None

    @classmethod
    def from_arrays(
        cls, design: Any, target: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> LeastSquares:
        """Return the data of a design (m, N), dense or scipy.sparse, and target(s) (m,) or (m, r).

        Parameters
        ----------
        sample_weight : (m,), optional
            s_k >= 0: h_i(a) = 1/2 sum_k s_k (m_k' a - z_ik)^2. Both sides are multiplied by their
            roots; samples of weight 0 are left out.

        Raises
        ------
        InputError
            Wrong shapes, no samples or columns, float16, masked or complex arrays, NaN, infinity,
            values whose squares overflow or underflow; as `sample_weights`.
        """
        if scipy.sparse.issparse(design):
            m = scipy.sparse.csc_array(design)
            m.data = as_float64("design", m.data, 1)
        else:
            m = as_float64("design", design, 2)
        z = as_float64("target", target, (1, 2))
        z = z[:, None] if z.ndim == 1 else z
        check_range("design", m.data if scipy.sparse.issparse(m) else m)
        check_range("target", z, axis=0)
        if 0 in m.shape or z.shape[1] == 0:
            raise InputError(f"design {m.shape} and target {z.shape} must not be empty")
        if z.shape[0] != m.shape[0]:
            raise InputError(
                f"design {m.shape} and target {z.shape} do not fit: (m, N) and (m, r) needed"
            )
        if sample_weight is not None:
            weight, kept = sample_weights(sample_weight, z.shape[0])
            fit = cls(m, z, np.zeros(z.shape[1])).samples(kept)
            root = np.sqrt(weight)[:, None]
            sparse = scipy.sparse.issparse(m)
            m = scipy.sparse.csc_array(fit.design.multiply(root)) if sparse else root * fit.design
            z = root * fit.target
            check_range("weighted design", m.data if sparse else m)
            check_range("weighted target", z, axis=0)
        return cls(m, z, np.zeros(z.shape[1]))

    @classmethod
    def from_moments(
        cls,
        gram: ArrayLike,
        corr: ArrayLike,
        target_sq: ArrayLike,
        *,
        rounding: float = _NEGATIVE,
    ) -> LeastSquares:
        """Return the data with moments G = M'M (N, N), c_i = M'z_i (r, N), ||z_i||^2 (r,).

        The design is the eigenvalue factor of G with its numerical null space cut off, so no
        solver sees G itself: as a quadratic form with condition number 1e17 it made Clarabel
        return points 1e-4 outside the ball as optimal.

        Parameters
        ----------
        rounding : float
            How negative an eigenvalue of G may be, its diagonal scaled to 1, beside the largest.

        Raises
        ------
        InputError
            Wrong shapes, NaN, a matrix that is not symmetric positive semidefinite in float64.
        """
        g = as_float64("gram", gram, 2)
        c = as_float64("corr", corr, (1, 2))
        c = c[None, :] if c.ndim == 1 else c
        t = np.atleast_1d(as_float64("target_sq", target_sq, (0, 1)))
        n = g.shape[0]
        if n == 0 or g.shape != (n, n) or c.shape != (t.size, n):
            raise InputError(f"gram {g.shape}, corr {c.shape}, target_sq {t.shape} do not fit")
        if not np.allclose(g, g.T, rtol=1e-10, atol=1e-12 * np.abs(g).max()) or (t < 0).any():
            raise InputError("gram must be symmetric and target_sq >= 0")
        # Unit diagonal first: a column of scale 1e-8 is not noise beside one of scale 1.
        norms = np.sqrt(np.maximum(np.diagonal(g), 0.0))
        root = np.where(norms > 0, norms, 1.0)
        value, vector = scipy.linalg.eigh(g / np.outer(root, root))
        if value[0] < -rounding * max(value[-1], 1.0):
            raise InputError(
                f"gram is not positive semidefinite (eigenvalue {value[0]:.1g} beside "
                f"{value[-1]:.1g}): accumulate it in float64 (cimf.Gram does)"
            )
        keep = value > np.finfo(np.float64).eps * n * max(value[-1], 0.0)
        keep[-1] = True  # one row even for a zero design
        size = np.sqrt(np.maximum(value[keep], 0.0))
        # A zero column stays one: scaled up, its rounding would be data.
        design = size[:, None] * vector[:, keep].T * norms
        project = (vector[:, keep] / np.where(size > 0, size, 1.0)).T
        target = project @ (c / root).T
        remainder = np.maximum(t - _squared_norms(target), 0.0)
        return cls(design, target, remainder, (g, c, t))

    @property
    def n_features(self) -> int:
        """N, the number of columns."""
        return int(self.design.shape[1])

    @property
    def n_targets(self) -> int:
        """r, the number of rows."""
        return int(self.target.shape[1])

    @property
    def target_sq(self) -> Array:
        """||z_i||^2, shape (r,)."""
        return _squared_norms(self.target) + self.remainder

    @property
    def column_norms(self) -> Array:
        """||M_j||, shape (N,)."""
        if scipy.sparse.issparse(self.design):
            square: Array = np.asarray(self.design.multiply(self.design).sum(axis=0))
        else:
            square = np.einsum("ij,ij->j", self.design, self.design)
        return np.sqrt(square)

    def residual(self, coef: Array) -> Array:
        """Return M a_i - z_i in column i, shape (m, r), for coef (r, N)."""
        return np.asarray(self.design @ coef.T) - self.target

    def value(self, coef: Array) -> Array:
        """Return h_i(a_i), shape (r,), for coef (r, N)."""
        return 0.5 * (_squared_norms(self.residual(coef)) + self.remainder)

    def rows(self, index: Any) -> LeastSquares:
        """Return the data of a selection of the targets; the design is shared."""
        select = np.atleast_1d(np.arange(self.n_targets)[index])
        moments = self.moments
        if moments is not None:
            moments = (moments[0], moments[1][select], moments[2][select])
        return LeastSquares(self.design, self.target[:, select], self.remainder[select], moments)

    def samples(self, index: Any) -> LeastSquares:
        """Return the data of a selection of the samples, of data as given."""
        return LeastSquares(self.design[index], self.target[index], self.remainder)

    def reduced(self) -> LeastSquares:
        """Return data with the same h and at most N samples: the triangular factor of (M, Z).

        Orthogonal, so nothing is squared; five times faster for Clarabel at m = 2,000, N = 897.
        With fewer samples than columns it still halves the entries. Sparse designs that would not
        fit in 0.5 GB as dense ones, or have no more samples than columns, are returned as they are.
        """
        m, n = self.design.shape
        design = self.design
        if scipy.sparse.issparse(design):
            if m <= n or m * n > _DENSE_LIMIT:
                return self
            design = design.toarray()
        r = np.asarray(np.linalg.qr(np.column_stack([design, self.target]), mode="r"))
        rest = _squared_norms(r[n:, n:])
        r[:, :n][:, self.column_norms == 0] = 0.0  # rounding of zero columns, as in from_moments
        return LeastSquares(r[:n, :n], r[:n, n:], self.remainder + rest, self.moments)

    def scaled(self, column: Array, target: Array) -> LeastSquares:
        """Return the data of M_j / column_j and z_i / target_i."""
        if scipy.sparse.issparse(self.design):
            design = self.design @ scipy.sparse.diags_array(1.0 / column)
        else:
            design = self.design / column
        return LeastSquares(design, self.target / target, self.remainder / np.square(target))


def sample_weights(value: ArrayLike, length: int) -> tuple[Array, NDArray[np.intp]]:
    """Return the weights (m',) of the samples that have any, and their places.

    Raises
    ------
    InputError
        Weights of another shape than (length,), negative or not finite, or all 0.
    """
    weight = as_float64("sample_weight", value, 1)
    if weight.shape != (length,):
        raise InputError(f"sample_weight has shape {weight.shape}; ({length},) needed")
    if (weight < 0).any():
        raise InputError("sample_weight must be >= 0")
    kept = np.flatnonzero(weight)
    if not kept.size:
        raise InputError("sample_weight is 0 for every sample: nothing is left")
    return weight[kept], kept


def _squared_norms(matrix: Array) -> Array:
    """Return the squared norm of every column."""
    norms: Array = np.square(matrix).sum(axis=0)
    return norms
