r"""Data fits: what the predictions M w_i of the rows cost beside their targets z_i.

    sum_i lam_i sum_k s_k phi(p_ik; z_ik),   p_i = M w_i,   s_k > 0 the weight of sample k.

Each class gives phi as a CVXPY expression, in numpy, and by its conjugate over the prediction,

    phi*(v; z) = sup_p v p - phi(p; z),

from which a lower bound on the optimum is computed (`cimf.judge.fit_bound`). No factor 1/2, as in
equations (3) to (5) of the paper: Huber is the squared error where that is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import cvxpy as cp
import numpy as np
import scipy.special
from numpy.typing import NDArray

from formulations.errors import InputError, UnknownNameError
from formulations.registry import Registry

Array = NDArray[np.float64]

# What class probabilities may miss 1 by, summed: rounding of float32.
_SUM = 1e-6


class Fit:
    """phi(p; z) of predictions and targets (m, r).

    Attributes
    ----------
    separable : bool
        Whether phi is a sum over the rows. If so all arrays are (m, r), else sums (m, 1).
    """

    separable: ClassVar[bool] = True

    def terms(self, p: cp.Expression, z: Array) -> cp.Expression:
        """Return phi as a convex expression, (m, r) or (m, 1)."""
        raise NotImplementedError

    def values(self, p: Array, z: Array) -> Array:
        """Return phi in float64, (m, r) or (m, 1)."""
        raise NotImplementedError

    def conjugate(self, v: Array, z: Array) -> Array:
        """Return phi*(v; z), (m, r) or (m, 1), for v in its domain."""
        raise NotImplementedError

    def dual_point(self, v: Array, z: Array) -> Array:
        """Return a point (m, r) of the domain of phi* near v. The domain is convex and holds 0."""
        return v

    def scaled(self, z: Array) -> tuple[Fit, float, float]:
        """Return psi, a unit t and a factor c: phi(t p; t z) = c psi(p; z), z / t about 1.

        Solvers are given psi. A fit whose predictions have a meaning has the unit 1.
        """
        return self, 1.0, 1.0

    def targets(self, name: str, z: Array) -> Array:
        """Return the targets (m, r) as the fit takes them.

        Raises
        ------
        InputError
            It has no meaning for them.
        """
        return z


@dataclass(frozen=True)
class SquaredFit(Fit):
    """phi = (p - z)^2."""

    def terms(self, p: cp.Expression, z: Array) -> cp.Expression:
        """Return (p - z)^2."""
        terms: cp.Expression = cp.square(p - z)
        return terms

    def values(self, p: Array, z: Array) -> Array:
        """Return (p - z)^2."""
        return np.square(p - z)

    def scaled(self, z: Array) -> tuple[Fit, float, float]:
        """Return itself, the size of z and its square."""
        size = _size(z)
        return self, size, size**2

    def conjugate(self, v: Array, z: Array) -> Array:
        """Return v z + v^2 / 4."""
        return v * z + 0.25 * np.square(v)


@dataclass(frozen=True)
class HuberFit(Fit):
    """phi = (p - z)^2 up to |p - z| = knee, then linear with slope 2 knee: few wild samples."""

    knee: float = 1.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.knee) and self.knee > 0):
            raise InputError(f"knee must be > 0 and finite, got {self.knee}")

    def terms(self, p: cp.Expression, z: Array) -> cp.Expression:
        """Return the Huber function of p - z."""
        terms: cp.Expression = cp.huber(p - z, self.knee)  # type: ignore[arg-type]
        return terms

    def values(self, p: Array, z: Array) -> Array:
        """Return the two cases."""
        size = np.abs(p - z)
        return np.where(size <= self.knee, np.square(size), self.knee * (2.0 * size - self.knee))

    def scaled(self, z: Array) -> tuple[Fit, float, float]:
        """Return it with its knee in the units of z, the size of z and its square."""
        size = _size(z)
        return HuberFit(self.knee / size), size, size**2

    def conjugate(self, v: Array, z: Array) -> Array:
        """Return v z + v^2 / 4, |v| <= 2 knee."""
        return v * z + 0.25 * np.square(v)

    def dual_point(self, v: Array, z: Array) -> Array:
        """Return v clipped to [-2 knee, 2 knee]."""
        return np.clip(v, -2.0 * self.knee, 2.0 * self.knee)


@dataclass(frozen=True)
class QuantileFit(Fit):
    """phi = level max(z - p, 0) + (1 - level) max(p - z, 0): predictions of a quantile."""

    level: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.level < 1.0:
            raise InputError(f"level must be between 0 and 1, got {self.level}")

    @property
    def slopes(self) -> tuple[float, float]:
        """Slopes of phi over p, below and above z."""
        return -self.level, 1.0 - self.level

    def terms(self, p: cp.Expression, z: Array) -> cp.Expression:
        """Return the larger of the two lines."""
        below, above = self.slopes
        terms: cp.Expression = cp.maximum(below * (p - z), above * (p - z))
        return terms

    def values(self, p: Array, z: Array) -> Array:
        """Return the larger of the two lines."""
        below, above = self.slopes
        return np.maximum(below * (p - z), above * (p - z))

    def scaled(self, z: Array) -> tuple[Fit, float, float]:
        """Return itself, and the size of z twice."""
        size = _size(z)
        return self, size, size

    def conjugate(self, v: Array, z: Array) -> Array:
        """Return v z, v between the two slopes."""
        return v * z

    def dual_point(self, v: Array, z: Array) -> Array:
        """Return v clipped to the two slopes."""
        return np.clip(v, *self.slopes)


@dataclass(frozen=True)
class AbsoluteFit(QuantileFit):
    """phi = |p - z|."""

    @property
    def slopes(self) -> tuple[float, float]:
        """-1 and 1."""
        return -1.0, 1.0


@dataclass(frozen=True)
class LogisticFit(Fit):
    """phi = log(1 + e^p) - z p: p the log-odds of a class, z in [0, 1] its label or probability."""

    def terms(self, p: cp.Expression, z: Array) -> cp.Expression:
        """Return log(1 + e^p) - z p."""
        terms: cp.Expression = cp.logistic(p) - cp.multiply(z, p)
        return terms

    def values(self, p: Array, z: Array) -> Array:
        """Return log(1 + e^p) - z p."""
        return np.logaddexp(0.0, p) - z * p

    def conjugate(self, v: Array, z: Array) -> Array:
        """Return u log u + (1 - u) log(1 - u), u = v + z."""
        u = np.clip(v + z, 0.0, 1.0)
        return np.asarray(scipy.special.xlogy(u, u) + scipy.special.xlogy(1.0 - u, 1.0 - u))

    def dual_point(self, v: Array, z: Array) -> Array:
        """Return v with v + z clipped to [0, 1]."""
        return np.clip(v, -z, 1.0 - z)

    def targets(self, name: str, z: Array) -> Array:
        """Return z; refuse values outside [0, 1]."""
        if z.min() < 0.0 or z.max() > 1.0:
            raise InputError(
                f"{name} holds values from {z.min():.3g} to {z.max():.3g}: the fit 'logistic' "
                "needs labels 0 and 1, or probabilities"
            )
        return z


@dataclass(frozen=True)
class SoftmaxFit(Fit):
    """phi = log sum_i e^{p_i} - sum_i z_i p_i: cross-entropy of the class probabilities z.

    Couples the rows: the classes are the rows of Y, and a sample's targets sum to 1 (one-hot or
    soft labels).
    """

    separable: ClassVar[bool] = False

    def terms(self, p: cp.Expression, z: Array) -> cp.Expression:
        """Return the cross-entropy of each sample, (m, 1)."""
        linear = cp.sum(cp.multiply(z, p), axis=1, keepdims=True)
        terms: cp.Expression = cp.log_sum_exp(p, axis=1, keepdims=True) - linear
        return terms

    def values(self, p: Array, z: Array) -> Array:
        """Return the cross-entropy of each sample, (m, 1)."""
        total = np.asarray(scipy.special.logsumexp(p, axis=1, keepdims=True))
        return np.asarray(total - (z * p).sum(axis=1, keepdims=True))

    def conjugate(self, v: Array, z: Array) -> Array:
        """Return sum_i u_i log u_i, u = v + z in the simplex, (m, 1)."""
        u = np.maximum(v + z, 0.0)
        return np.asarray(scipy.special.xlogy(u, u).sum(axis=1, keepdims=True))

    def dual_point(self, v: Array, z: Array) -> Array:
        """Return v with v + z made non-negative and scaled to sum 1."""
        u = np.maximum(v + z, 0.0)
        total = u.sum(axis=1, keepdims=True)
        return np.where(total > 0, u / np.where(total > 0, total, 1.0), z) - z

    def targets(self, name: str, z: Array) -> Array:
        """Return z over its sums; refuse what are no class probabilities."""
        total = z.sum(axis=1, keepdims=True)
        if z.min() < 0.0 or np.abs(total - 1.0).max() > _SUM:
            raise InputError(
                f"{name} must hold class probabilities for the fit 'softmax': >= 0, one row per "
                "class, 1 in sum for every sample"
            )
        return np.asarray(z / total)


def _size(z: Array) -> float:
    return float(np.sqrt(np.square(z).mean())) or 1.0


FITS: Registry[type[Fit]] = Registry(
    "fit",
    {
        "least-squares": SquaredFit,
        "huber": HuberFit,
        "absolute": AbsoluteFit,
        "quantile": QuantileFit,
        "logistic": LogisticFit,
        "softmax": SoftmaxFit,
    },
)


@dataclass(frozen=True)
class Misfit:
    """Which fit the rows of (A, B) and (C, D) have, and what each sample counts.

    Attributes
    ----------
    states, outputs : Fit
    sample_weight : (m,) or None
        s_k > 0. None: ones; least squares has them in its data.
    """

    states: Fit = SquaredFit()
    outputs: Fit = SquaredFit()
    sample_weight: Array | None = None

    @property
    def is_squares(self) -> bool:
        """Whether both are least squares, which has a form of its own."""
        return isinstance(self.states, SquaredFit) and isinstance(self.outputs, SquaredFit)

    def groups(self, n_state_rows: int, lam: Array, z: Array) -> list[Group]:
        """Return the rows of (A, B) and those of (C, D), of lam (r,) and z (m, r)."""
        s = np.ones(len(z)) if self.sample_weight is None else self.sample_weight
        parts = (slice(0, n_state_rows), self.states), (slice(n_state_rows, lam.size), self.outputs)
        return [
            Group(rows, fit, np.outer(s, lam[rows] if fit.separable else lam[rows][:1]))
            for rows, fit in parts
            if lam[rows].size
        ]


@dataclass(frozen=True)
class Group:
    """Rows of one fit, with lam_i s_k: (m, r), or (m, 1) where the fit couples them."""

    rows: slice
    fit: Fit
    weight: Array


def as_fit(given: Any) -> Fit:
    """Return a fit from an instance or a name in `FITS`.

    Raises
    ------
    InputError
        For anything else, and (`UnknownNameError`) for a name that is not known.
    """
    if isinstance(given, Fit):
        return given
    if isinstance(given, str):
        if given not in FITS:
            raise UnknownNameError("fit", given, FITS)
        return FITS[given]()
    raise InputError(
        f"{given!r} is no fit: give a name ({', '.join(sorted(FITS))}) or an instance of Fit"
    )
