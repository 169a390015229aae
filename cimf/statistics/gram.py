"""The shared float64 Gram matrix of a design and its correlations with many targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg.blas
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError
from cimf.statistics.gram_file import load_moments, save_moments
from formulations.columns import as_array, as_float64, check_range

# Samples converted to float64 at a time: 4096 x 16,000 columns is 0.5 GB beside a 2 GB Gram.
_BLOCK = 4096
# Columns treated at a time where all of them would need temporaries of the size of another Gram.
_COLUMNS = 256
# OpenBLAS 0.3.30 crashes in dsyrk with two threads at 16,000 columns (4,000 are safe): beyond this
# the upper triangle is computed in panels of columns, each an ordinary product.
_SYRK = 4096
_PANEL = 1024


class Gram:
    """Statistics of a design M (m, N) and r targets z_i (m,), accumulated in float64.

    They determine h(a) = 1/2 ||M a - z_i||^2 for every row i and every a:
    h(a) = 1/2 a' G a - c_i' a + 1/2 ||z_i||^2. With sample weights s_k the norm is
    ||v||^2 = sum_k s_k v_k^2, the attributes are M' S M, M' S z_i and z_i' S z_i, and S = diag(s).

    Parameters
    ----------
    n_features, n_targets : int
        N >= 1 and r >= 0.

    Attributes
    ----------
    gram : (N, N)
        G = M' M, symmetric.
    corr : (r, N)
        Row i is c_i = M' z_i.
    target_sq : (r,)
        ||z_i||^2.
    n_samples : int
        m, the number of samples seen; of weighted ones those whose weight is not 0.

    Notes
    -----
    `update` may be called any number of times and partial statistics of several processes are
    added with `merge`. Peak memory is one Gram and one block of samples while streaming, two
    Grams in `merge` and `save`.
    """

    def __init__(self, n_features: int, n_targets: int) -> None:
        if n_features < 1 or n_targets < 0:
            raise InputError(
                f"n_features >= 1 and n_targets >= 0 needed, got {n_features} and {n_targets}"
            )
        self._gram = np.zeros((n_features, n_features), order="F")
        self._lower_is_stale = False
        self._is_selection = False
        self._has_data = False
        self.corr: NDArray[np.float64] = np.zeros((n_targets, n_features))
        self.target_sq: NDArray[np.float64] = np.zeros(n_targets)
        self.n_samples = 0

    @classmethod
    def from_arrays(
        cls, design: Any, targets: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Gram:
        """Return the statistics of a design (m, N), dense or sparse, and targets (m, r) or (m,).

        sample_weight (m,) as in `update`.

        Raises
        ------
        InputError
            As `update`.
        """
        shape = np.shape(design)
        if len(shape) != 2:
            raise InputError(f"design has shape {shape}; (samples, columns) needed")
        z = as_array("targets", targets)
        out = cls(shape[1], 1 if z.ndim == 1 else z.shape[-1])
        return out.update(design, targets, sample_weight)

    @classmethod
    def from_moments(
        cls, gram: ArrayLike, corr: ArrayLike, target_sq: ArrayLike, n_samples: int
    ) -> Gram:
        """Return a `Gram` around given moments, shapes as the attributes.

        Raises
        ------
        InputError
            Wrong shapes, NaN, an unsymmetric matrix, negative squares, a zero square beside
            correlations that are not zero.
        """
        g = as_float64("gram", gram, 2)
        c = as_float64("corr", corr, 2)
        t = as_float64("target_sq", target_sq, 1)
        if g.shape[0] != g.shape[1] or c.shape != (t.shape[0], g.shape[0]):
            raise InputError(
                f"gram {g.shape}, corr {c.shape}, target_sq {t.shape} do not fit together"
            )
        if not _symmetric(g):
            raise InputError("gram is not symmetric")
        if (t < 0).any() or (np.diagonal(g) < 0).any():
            raise InputError("target_sq and the diagonal of gram must be >= 0")
        if (c[t == 0] != 0).any():
            raise InputError(
                "target_sq is 0 for a target that corr is not 0 for: its squares underflowed, "
                "rescale the data"
            )
        out = cls(g.shape[0], c.shape[0])
        out._gram[:] = g
        out._lower_is_stale = True  # the upper triangle is kept, so G is exactly symmetric
        out.corr, out.target_sq, out.n_samples = c.copy(), t.copy(), int(n_samples)
        out._has_data = True
        return out

    def __repr__(self) -> str:
        return (
            f"Gram({self.n_features} columns, {self.n_targets} targets, {self.n_samples} samples)"
        )

    @property
    def n_features(self) -> int:
        """N, the number of columns of the design."""
        return self._gram.shape[0]

    @property
    def n_targets(self) -> int:
        """r, the number of targets (rows to be solved)."""
        return self.corr.shape[0]

    @property
    def gram(self) -> NDArray[np.float64]:
        """G = M' M, shape (N, N), exactly symmetric; a view, not a copy."""
        self._symmetrise()
        return self._gram.T  # symmetric: the transpose of the Fortran array is C-contiguous

    def _symmetrise(self) -> None:
        """Complete the lower triangle."""
        if self._lower_is_stale:
            for start in range(0, self.n_features, _COLUMNS):
                stop = min(start + _COLUMNS, self.n_features)
                self._gram[stop:, start:stop] = self._gram[start:stop, stop:].T
                block = self._gram[start:stop, start:stop]
                block[:] = np.triu(block) + np.triu(block, 1).T
            self._lower_is_stale = False

    def update(
        self, design_batch: Any, target_batch: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Gram:
        """Add a batch: design (b, N), dense or scipy.sparse, float32 or float64; targets (b, r).

        Nothing is added unless the whole batch is valid.

        Parameters
        ----------
        design_batch, target_batch
            As above.
        sample_weight : (b,), optional
            s_k >= 0, as in scikit-learn: a weight of 2 counts a sample twice and 0 leaves it out
            (its values are checked all the same). Nothing is divided by the sum of the weights: a
            factor on all of them is a factor on h, hence on the lam of Q(lam). `n_samples` counts
            the samples whose weight is not 0, not the sum, because it bounds the rank of G. At
            least one weight of a batch must be above 0.

        Raises
        ------
        InputError
            Empty batch, wrong shapes, masked or sparse or complex targets, float16, NaN, infinity,
            values above 1e140, a target or a design without any value above 1e-140 (but for zeros);
            sample weights of another shape, negative or NaN, or all 0, or with which the values
            leave that range.
        """
        self._refuse_selection()
        sparse = scipy.sparse.issparse(design_batch)
        z = as_array("targets", target_batch)
        z = z[:, None] if z.ndim == 1 else z
        shape = np.shape(design_batch)
        if len(shape) != 2 or shape[1] != self.n_features or z.shape != (shape[0], self.n_targets):
            raise InputError(
                f"design {shape} and targets {z.shape} do not fit: (b, {self.n_features}) and "
                f"(b, {self.n_targets}) needed"
            )
        if shape[0] == 0:
            raise InputError("empty batch: a design with no samples")
        z = as_float64("targets", z, 2)
        check_range("targets", z, axis=0)
        root = None if sample_weight is None else _root_weights(sample_weight, shape[0])
        if root is not None:  # sqrt(s) on both sides
            z = root[:, None] * z
            check_range("weighted targets", z, axis=0)
        if sparse:
            check_range("design", as_float64("design", design_batch.tocoo().data, 1))
            m = design_batch.tocsr().astype(np.float64)
            if root is not None:
                m = (scipy.sparse.diags_array(root) @ m).tocsr()
                check_range("weighted design", m.data)
            by_column = m.tocsc()
            for start in range(0, self.n_features, _COLUMNS):
                stop = min(start + _COLUMNS, self.n_features)
                above = by_column[:, :stop].T @ by_column[:, start:stop]
                self._gram[:stop, start:stop] += above.toarray()
            self._lower_is_stale = True
            self.corr += (m.T @ z).T
        else:
            raw = as_array("design", design_batch)
            check_range("design", raw)
            if root is not None:
                raw = root[:, None] * raw
                check_range("weighted design", raw)
            for start in range(0, shape[0], _BLOCK):
                block = np.ascontiguousarray(raw[start : start + _BLOCK], dtype=np.float64)
                if self.n_features <= _SYRK:
                    # dsyrk does half the work of a product and writes into the Gram itself.
                    self._gram = scipy.linalg.blas.dsyrk(
                        1.0, block.T, beta=1.0, c=self._gram, overwrite_c=1
                    )
                else:
                    for left in range(0, self.n_features, _PANEL):
                        right = min(left + _PANEL, self.n_features)
                        self._gram[:right, left:right] += block[:, :right].T @ block[:, left:right]
                self._lower_is_stale = True
                self.corr += z[start : start + _BLOCK].T @ block
        self.target_sq += np.square(z).sum(axis=0)
        self.n_samples += shape[0] if root is None else int(np.count_nonzero(root))
        self._has_data = True
        return self

    def merge(self, other: Gram) -> Gram:
        """Add the statistics of other samples of the same columns and targets.

        Raises
        ------
        InputError
            If the shapes differ.
        """
        self._refuse_selection()
        if not isinstance(other, Gram):
            raise InputError(f"a Gram can be merged, got {type(other).__name__}")
        if (self.n_features, self.n_targets) != (other.n_features, other.n_targets):
            raise InputError("only statistics of the same columns and targets can be merged")
        self._gram += other._gram
        self._lower_is_stale = True
        self.corr += other.corr
        self.target_sq += other.target_sq
        self.n_samples += other.n_samples
        self._has_data |= other._has_data
        return self

    def _refuse_selection(self) -> None:
        if self._is_selection:
            raise InputError(
                "a selection of rows shares its matrix: update the statistics it is from"
            )

    def rows(self, index: Any) -> Gram:
        """Return the statistics of a selection of the targets.

        G is shared, not copied: the selection cannot be updated, and does not survive an update.
        """
        out = object.__new__(Gram)
        self._symmetrise()
        out._gram, out._lower_is_stale, out._is_selection = self._gram, False, True
        out.corr = np.ascontiguousarray(np.atleast_2d(self.corr[index]))
        out.target_sq = np.atleast_1d(self.target_sq[index])
        out.n_samples, out._has_data = self.n_samples, self._has_data
        return out

    def columns(self, index: Any) -> Gram:
        """Return the statistics of a selection of the columns (a copy)."""
        select = np.arange(self.n_features)[index]
        out = Gram.from_moments(
            self.gram[np.ix_(select, select)], self.corr[:, select], self.target_sq, self.n_samples
        )
        out._has_data = self._has_data
        return out

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, atomically, with a SHA-256 of its content.

        Raises
        ------
        InputError
            No samples yet.
        """
        if not self._has_data:
            raise InputError("no samples: nothing to save")
        save_moments(self.gram, self.corr, self.target_sq, self.n_samples, path)

    @classmethod
    def load(cls, path: str | Path) -> Gram:
        """Read a file written by `save`.

        Raises
        ------
        RunError
            If the file is missing, truncated, or does not match its checksum.
        """
        return cls.from_moments(*load_moments(path))


def check_gram(gram: object) -> None:
    """Refuse what no row problem can be read from.

    Raises
    ------
    InputError
        `gram` is no `Gram`, or one that has seen no samples.
    """
    if not isinstance(gram, Gram):
        raise InputError(
            "a cimf.Gram is needed: cimf.Gram.from_arrays(design, targets); got "
            f"{type(gram).__name__}"
        )
    if not gram._has_data:
        raise InputError("no samples: call update first")


def _root_weights(sample_weight: ArrayLike, length: int) -> NDArray[np.float64]:
    """Return the square roots of weights (length,), after a check."""
    weight = as_float64("sample_weight", sample_weight, 1)
    if weight.shape != (length,):
        raise InputError(f"sample_weight has shape {weight.shape}; ({length},) needed")
    if (weight < 0).any():
        raise InputError("sample_weight must be >= 0")
    if not weight.any():
        raise InputError("sample_weight is 0 for every sample: nothing is left of the batch")
    return np.sqrt(weight)


def _symmetric(g: NDArray[np.float64]) -> bool:
    """Return whether g (N, N) is symmetric up to rounding, by blocks of rows."""
    largest = max(abs(g.max(initial=0.0)), abs(g.min(initial=0.0)))
    return all(
        np.allclose(g[i : i + _COLUMNS], g[:, i : i + _COLUMNS].T, rtol=1e-10, atol=1e-12 * largest)
        for i in range(0, g.shape[0], _COLUMNS)
    )
