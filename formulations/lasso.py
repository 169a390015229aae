"""Q(lam), paper section 3.1: the penalised form of P(kappa)."""

from __future__ import annotations

from typing import Any, Self

from numpy.typing import ArrayLike

from formulations.constrained import RowProblem
from formulations.least_squares import LeastSquares
from formulations.problem import RowRecord
from formulations.registry import known_names


class Lasso(RowProblem):
    r"""Q(lam): min 1/2 ||M a_i - z_i||^2 + lam_i sum_j w_j |a_ij|, for every row i.

    Parameters as `Constrained`, with lam >= 0 (float or (r,)) in the place of kappa.
    """

    @known_names
    def __init__(
        self,
        design: Any,
        target: ArrayLike,
        lam: ArrayLike,
        *,
        bounded: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        signs: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        fit = LeastSquares.from_arrays(design, target, sample_weight)
        self._build(RowRecord.build(fit, lam=lam, bounded=bounded, weights=weights, signs=signs))

    @classmethod
    def from_moments(
        cls, gram: ArrayLike, corr: ArrayLike, target_sq: ArrayLike, lam: ArrayLike, **columns: Any
    ) -> Self:
        """Return the problem with moments M'M (N, N), M'z_i (r, N), ||z_i||^2 (r,)."""
        fit = LeastSquares.from_moments(gram, corr, target_sq)
        return cls.from_record(RowRecord.build(fit, lam=lam, **columns))
