"""P(kappa) or Q(lam): which of the two row problems is meant, and at what level, as one record.

With h_i(a) = 1/2 ||M a - z_i||^2 and the weighted norm sum_j w_j |a_j| over the bounded columns,

    P(kappa): min h_i(a)  subject to  sum_j w_j |a_j| <= kappa_i    `Radius`
    Q(lam):   min h_i(a) + lam_i sum_j w_j |a_j|                    `Penalty`

Public functions take kappa= and lam= and make the record once, by `stated`; from there on nobody
asks which of two numbers is None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.columns import per_row
from formulations.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """Values >= 0, finite: (r,), or (r, L) where every row is solved for L levels in one pass."""

    values: Array

    def take(self, index: Any) -> Self:
        """Return the record of values[index]."""
        return replace(self, values=self.values[index])


@dataclass(frozen=True)
class Radius(_Level):
    """P(kappa): the norm is at most kappa. Several levels of a row ascend."""

    def cost(self, norm: Array) -> Array:
        """Return what the norm (r,) adds to the objective: nothing."""
        return np.zeros_like(norm)

    def excess(self, norm: Array) -> Array:
        """Return by how much the norm (r,) leaves the ball."""
        return np.maximum(norm - self.values, 0.0)


@dataclass(frozen=True)
class Penalty(_Level):
    """Q(lam): the norm costs lam. Several levels of a row descend."""

    def cost(self, norm: Array) -> Array:
        """Return what the norm (r,) adds to the objective."""
        return self.values * norm

    def excess(self, norm: Array) -> Array:
        """Return zeros: there is no ball to leave."""
        return np.zeros_like(norm)


def stated(kappa: ArrayLike | None, lam: ArrayLike | None, n_targets: int) -> Radius | Penalty:
    """Return the record of the one that is given, a number per row.

    Raises
    ------
    InputError
        Neither or both are given; as `per_row`.
    """
    if kappa is not None and lam is None:
        return Radius(per_row("kappa", kappa, n_targets))
    if lam is not None and kappa is None:
        return Penalty(per_row("lam", lam, n_targets))
    raise InputError("give exactly one of kappa (problem P) and lam (problem Q)")
