"""Which columns of a row problem are in the l1 ball, at what weight, with what sign.

The one place where `bounded`, `weights` and `signs` become numbers. Every problem of the toolkit
penalises or bounds ``sum_j w_j |a_j|`` with

    w_j > 0 finite   a bounded column,
    w_j = 0          a free column (eliminated by least squares before a gap is taken),
    w_j = inf        an excluded column, a_j = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError

# Below this, and above one over it, products of weights leave the range of float64.
_SMALLEST = 1e-100
# Squares of larger values, summed over samples and multiplied by coefficients, leave float64, and
# so do the products of smaller ones: at 1e-165 every moment is 0 and every point looks optimal.
_LARGEST = 1e140


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return `value` as a real numeric array of its own dtype: the door of every array.

    A torch tensor is taken from its graph and its device.

    Raises
    ------
    InputError
        For a masked array (whose mask would be lost), a sparse matrix, a complex or non-numeric
        dtype, float16 and bfloat16 (their rounding, 5e-4 and 4e-3, is above every tolerance used
        here), and for what numpy cannot read as one array.
    """
    if any(np.ma.isMaskedArray(part) for part in (value if isinstance(value, list) else [value])):
        raise InputError(
            f"{name} is a masked array, and its mask would be lost: fill it (.filled(number)) or "
            "leave the masked samples out"
        )
    if hasattr(value, "toarray"):
        raise InputError(f"{name} is a sparse matrix: give it dense, .toarray()")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            raise _half(name, "bfloat16")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype == np.float16:
        raise _half(name, "float16")
    if array.dtype.kind == "c":
        raise InputError(f"{name} is complex ({array.dtype}): real numbers are needed")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} has dtype {array.dtype}; a real numeric array is needed")
    return array


def _half(name: str, dtype: str) -> InputError:
    return InputError(f"{name} is {dtype}: convert it to float32 or float64 where it was computed")


def as_float64(
    name: str, value: Any, ndim: int | tuple[int, ...], *, finite: bool = True
) -> NDArray[np.float64]:
    """Return `value` as a float64 array of the given number of dimensions.

    Raises
    ------
    InputError
        As `as_array`; for a wrong number of dimensions, and (where `finite`) for NaN or infinity.
    """
    array = as_array(name, value)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in allowed:
        raise InputError(
            f"{name} has shape {array.shape}; {' or '.join(map(str, allowed))} dimension(s) needed"
        )
    array = array.astype(np.float64, copy=False)
    if finite and not np.isfinite(array).all():
        raise InputError(
            f"{name} holds {int((~np.isfinite(array)).sum())} NaN or infinite value(s)"
        )
    return array


def check_range(name: str, array: NDArray[Any], axis: int | None = None) -> None:
    """Refuse NaN, infinity, and values whose sums of squares would overflow or underflow.

    Parameters
    ----------
    axis : int, optional
        Where every problem has its own array (targets, along 0), each is judged by itself.

    Raises
    ------
    InputError
        Also where the largest value is below 1e-140 but not zero.
    """
    # Its extremes say whether an array holds NaN or infinity: no array of booleans is made.
    ends = (array.max(axis=axis, initial=0), array.min(axis=axis, initial=0))
    size = np.maximum(*(np.abs(np.asarray(end, dtype=np.float64)) for end in ends))
    if not np.isfinite(size).all():
        as_float64(name, array, (1, 2))
    largest = float(size.max(initial=0.0))
    if largest > _LARGEST:
        raise InputError(
            f"{name} holds {largest:.3g}: sums of squares of values above {_LARGEST:.0e} overflow; "
            "rescale the data"
        )
    tiny = size[(size > 0) & (size < 1.0 / _LARGEST)]
    if tiny.size:
        raise InputError(
            f"{name} holds nothing above {tiny.max():.3g}: squares of values below "
            f"{1.0 / _LARGEST:.0e} underflow; rescale the data"
        )


def as_mask(name: str, value: Any, length: int) -> NDArray[np.bool_]:
    """Return `value` as a boolean mask of shape (length,).

    Raises
    ------
    InputError
        As `as_array`; for another dtype or shape.
    """
    mask = as_array(name, value)
    if mask.dtype != np.bool_ or mask.shape != (length,):
        raise InputError(
            f"{name} must be a boolean mask of shape ({length},), got {mask.dtype} {mask.shape}"
        )
    return mask


@dataclass(frozen=True)
class Columns:
    """Weights and signs of the N columns of a row problem.

    Attributes
    ----------
    weights : (N,) or (r, N)
        w_j as above, one vector for all r rows or one per row.
    signs : (N,) int8
        +1: a_j >= 0; -1: a_j <= 0; 0: no constraint.
    """

    weights: NDArray[np.float64]
    signs: NDArray[np.int8]

    @classmethod
    def build(
        cls,
        n_features: int,
        n_targets: int,
        bounded: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        signs: ArrayLike | None = None,
    ) -> Columns:
        """Validate and merge the three arguments.

        Parameters
        ----------
        bounded : (N,) bool, optional
            True: inside the ball; False: free. Default: every column is bounded.
        weights : (N,) or (r, N), optional
            w_j >= 0, infinity allowed. Default: ones.
        signs : (N,), optional
            -1, 0 or +1 per column. Default: zeros.

        Raises
        ------
        InputError
            Wrong shapes or dtypes, negative or NaN weights, or other than 0, 1e-100 to 1e100 and
            infinity, signs other than -1, 0, +1.
        """
        w = (
            np.ones(n_features)
            if weights is None
            else as_float64("weights", weights, (1, 2), finite=False)
        )
        if w.shape not in ((n_features,), (n_targets, n_features)):
            raise InputError(
                f"weights has shape {w.shape}; ({n_features},) or "
                f"({n_targets}, {n_features}) needed"
            )
        if np.isnan(w).any() or (w < 0).any():
            raise InputError(
                "weights must be >= 0 (0: free column, infinity: excluded column), without NaN"
            )
        given = w[(w > 0) & np.isfinite(w)]
        if given.size and (given.min() < _SMALLEST or given.max() > 1.0 / _SMALLEST):
            raise InputError(
                f"weights between {_SMALLEST:g} and {1.0 / _SMALLEST:g} can be used, got "
                f"{given.min():.3g} to {given.max():.3g}: rescale them (0: free, infinity: "
                "excluded)"
            )
        if bounded is not None:
            mask = as_mask("bounded", bounded, n_features)
            w = np.where(mask | np.isinf(w), w, 0.0)
        if signs is None:
            s = np.zeros(n_features, dtype=np.int8)
        else:
            raw = as_array("signs", signs)
            if raw.shape != (n_features,) or not np.isin(raw, (-1, 0, 1)).all():
                raise InputError(f"signs must have shape ({n_features},) and hold only -1, 0, +1")
            s = raw.astype(np.int8)
        if (np.asarray(w == 0) & (s != 0)).any():
            raise InputError(
                "a free column (weight 0) cannot have a sign: give it a small weight instead"
            )
        return cls(w, s)

    @property
    def shared(self) -> bool:
        """Whether all rows have the same weights."""
        return self.weights.ndim == 1

    def row(self, i: int) -> NDArray[np.float64]:
        """Weights (N,) of row `i`."""
        return self.weights if self.shared else self.weights[i]

    def norm(self, coef: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sum_j w_j |a_j| over the bounded columns: shape (r,) for coef (r, N)."""
        finite = np.where(np.isfinite(self.weights), self.weights, 0.0)
        norm: NDArray[np.float64] = (finite * np.abs(coef)).sum(axis=-1)
        return norm

    def off_pattern(self, coef: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest |a_j| that an excluded column or a sign forbids: shape (r,)."""
        if not (self.signs.any() or np.isinf(self.weights).any()):
            return np.zeros(coef.shape[:-1])
        wrong = np.where(np.isinf(self.weights), np.abs(coef), np.maximum(-self.signs * coef, 0.0))
        largest: NDArray[np.float64] = wrong.max(axis=-1, initial=0.0)
        return largest


def shrink(
    coef: NDArray[np.float64], weights: NDArray[np.float64], radius: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return coef (r, N) with the rows outside the ball sum_j w_j |a_j| <= radius_i scaled into it.

    Parameters
    ----------
    weights : (N,) or (r, N)
        Columns of weight 0 are free and stay as they are, as do excluded ones (infinity).
    radius : (r,)
    """
    columns = Columns(weights, np.zeros(coef.shape[1], dtype=np.int8))
    in_ball = np.broadcast_to((weights > 0) & np.isfinite(weights), coef.shape)
    norm = columns.norm(coef)
    outside = norm > radius
    factor = np.divide(radius, norm, out=np.ones_like(norm), where=outside)
    out = coef
    while outside.any():
        out = np.where(in_ball & outside[:, None], factor[:, None] * coef, out)
        # Rounding can leave the norm an ulp above the radius: shrink again until it is not.
        factor = np.nextafter(factor, 0.0)
        outside = outside & (columns.norm(out) > radius)
    return out


def per_row(name: str, value: ArrayLike, n_targets: int) -> NDArray[np.float64]:
    """Return a non-negative number per row, shape (r,), from one number or r of them.

    Raises
    ------
    InputError
        For NaN, infinity, a negative value or a wrong shape.
    """
    array = as_float64(name, value, (0, 1))
    if (array < 0).any():
        raise InputError(f"{name} must be >= 0, got {array.min():g}")
    if array.ndim == 1 and array.shape != (n_targets,):
        raise InputError(
            f"{name} has shape {array.shape}; one number or {n_targets} numbers needed"
        )
    return np.broadcast_to(array, (n_targets,)).copy()
