"""Row solutions: coefficients that always carry their certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cimf.errors import CertificateError
from cimf.judge.certificate import Certificate


@dataclass(frozen=True, repr=False)
class Solution:
    """Solutions of r row problems with the certificate that was computed for them.

    Attributes
    ----------
    coef : (r, N)
        Coefficients; a zero is an exact zero.
    certificate : Certificate
        Recomputed in float64 from the statistics.
    method : (r,) str
        The solver of each row.
    iterations : (r,) int
        Iterations of that solver, in its own unit (pivots, inner iterations, ...).
    seconds : Mapping[str, float]
        Wall-clock seconds by phase: "solve", "certify", for CVXPY also "build".
    why : str
        Why this method was picked where the caller left it open; empty otherwise.
    """

    coef: NDArray[np.float64]
    certificate: Certificate
    method: NDArray[np.str_]
    iterations: NDArray[np.int64]
    seconds: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    def __repr__(self) -> str:
        words, counts = np.unique(self.status, return_counts=True)
        found = ", ".join(f"{n} {word}" for word, n in zip(words, counts, strict=True))
        return (
            f"{type(self).__name__}({self.coef.shape[0]} rows x {self.coef.shape[1]} columns, "
            f"{np.count_nonzero(self.coef)} non-zeros; {found or 'no rows'}; worst gap "
            f"{self.certificate.worst_gap:.1e} at tol={self.certificate.tol:g})"
        )

    @property
    def objective(self) -> NDArray[np.float64]:
        """Objective of each row, shape (r,)."""
        return self.certificate.objective

    @property
    def gap(self) -> NDArray[np.float64]:
        """Bound on the excess over the optimum, relative as in `Certificate.gap`, shape (r,)."""
        return self.certificate.gap

    @property
    def violation(self) -> NDArray[np.float64]:
        """Violation of the ball, the signs and the excluded columns, shape (r,)."""
        return self.certificate.violation

    @property
    def lam(self) -> NDArray[np.float64]:
        """Multiplier of the ball (P) or penalty (Q), shape (r,)."""
        return self.certificate.lam

    @property
    def status(self) -> NDArray[np.str_]:
        """One word per row, shape (r,).

        'optimal'; 'limited' (the gap is rounding of the uncentred target and certifies nothing, see
        `Certificate.limited`); 'inaccurate' (gap above the tolerance); 'infeasible'.
        """
        cert = self.certificate
        return np.select(
            [cert.passed, cert.limited, cert.gap <= cert.tol],
            ["optimal", "limited", "infeasible"],
            "inaccurate",
        )

    def raise_if_failed(self) -> Solution:
        """Return self; raise `CertificateError`, which carries self, if a row is not certified."""
        try:
            self.certificate.raise_if_failed()
        except CertificateError as error:
            error.solution = self
            raise
        return self
