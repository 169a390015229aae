"""A row problem with its ground truth: what a solver is asked and what the right answer is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.judge import certify, energy
from cimf.solve import solve_rows
from cimf.statistics import Gram
from formulations.columns import Columns, as_float64

Array = NDArray[np.float64]

# Gap asked of the ground truth, and gap that is accepted: rounding ends between the two.
_AIM, _ACCEPT = 1e-12, 1e-9
# A column is strictly inactive (active) if its slack (coefficient) is this much of the largest.
_STRICT = 1e-6
# Orders of magnitude from which a problem is at the limit of float64: squared, as in a Gram, they
# leave 7 of its 16 digits. scikit-learn's LARS, and Clarabel on data scaled by one number, each
# pass all problems below it but for exact ties, and fail above it.
_LIMIT = 4.5
# Singular values below this part of the largest are those of exactly dependent columns.
_DEPENDENT = 1e-13


@dataclass(frozen=True)
class Truth:
    """The certified solution of a problem.

    Attributes
    ----------
    coef : (N,)
    objective : float
        h(a) = 1/2 ||M a - z||^2.
    gap : float
        Certified relative gap.
    lam : float
        Multiplier of the ball, 0 where it is inactive.
    support : (N,) bool or None
        The columns in use where the solution is unique and strictly complementary, so that every
        accurate solver must find them; None otherwise.
    seconds : float
        Wall clock of `cimf.solve_rows` on one thread, certificate included.
    """

    coef: Array
    objective: float
    gap: float
    lam: float
    support: NDArray[np.bool_] | None
    seconds: float


@dataclass(frozen=True)
class Problem:
    """min 1/2 ||M a - z||^2 subject to sum_j w_j |a_j| <= kappa and sign constraints.

    Attributes
    ----------
    name : str
    design : (m, N)
        M.
    target : (m,)
        z.
    kappa : float
    weights : (N,)
        w_j; 0: free column, infinity: excluded column. Default: ones.
    signs : (N,) int8
        As `formulations.columns.Columns`. Default: zeros.
    family : str
        The function of `cimf.verification.suites` that made it.
    """

    name: str
    design: Array
    target: Array
    kappa: float
    weights: Array = field(default_factory=lambda: np.ones(0))
    signs: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))
    family: str = "own"

    def __post_init__(self) -> None:
        design, target = as_float64("design", self.design, 2), as_float64("target", self.target, 1)
        if not (np.isfinite(self.kappa) and self.kappa >= 0):
            raise InputError(
                f"problem {self.name}: kappa must be finite and >= 0, got {self.kappa}"
            )
        columns = Columns.build(
            design.shape[1],
            1,
            weights=self.weights if np.size(self.weights) else None,
            signs=self.signs if np.size(self.signs) else None,
        )
        for name, value in (
            ("design", design),
            ("target", target),
            ("weights", columns.row(0)),
            ("signs", columns.signs),
        ):
            value = value.copy()
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """True inside the ball, False for free columns, shape (N,)."""
        return self.weights > 0

    @cached_property
    def gram(self) -> Gram:
        """The statistics of design and target."""
        return Gram.from_arrays(self.design, self.target)

    @cached_property
    def scale(self) -> float:
        """Unit of gaps and excesses.

        What the free columns leave of 1/2 ||z||^2, or the size of the ball where z = 0.
        """
        left = float(energy(self.gram, Columns(self.weights, self.signs))[0])
        if left > 0:
            return left
        in_ball = (self.weights > 0) & np.isfinite(self.weights)
        length = np.sqrt(np.diagonal(self.gram.gram)[in_ball]) / self.weights[in_ball]
        return 0.5 * float(self.kappa * length.max(initial=0.0)) ** 2 or 1.0

    @cached_property
    def truth(self) -> Truth:
        """The certified solution.

        Raises
        ------
        CertificateError
            If `cimf.solve_rows` does not reach relative gap 1e-9.
        """
        start = time.perf_counter()
        solution = solve_rows(
            self.gram, self.kappa, weights=self.weights, signs=self.signs, tol=_AIM, n_jobs=1
        )
        seconds = time.perf_counter() - start
        coef = solution.coef[0]
        certificate = certify(
            self.gram, coef, self.kappa, weights=self.weights, signs=self.signs, tol=_ACCEPT
        )
        certificate.raise_if_failed()
        objective, gap = float(certificate.objective[0]), float(certificate.gap[0])
        lam = float(certificate.lam[0]) if self._active(coef) else 0.0
        return Truth(coef, objective, gap, lam, self._support(coef, lam), seconds)

    @cached_property
    def orders(self) -> float:
        """How many orders of magnitude the data span: the level of difficulty of the problem.

        The largest of: log10 of the ratio of the largest to the smallest singular value of the
        columns in use at the solution; the distance of log10 ||z|| and of log10 max_j ||M_j|| from
        0, which is what absolute tolerances run into.
        """
        norms = np.linalg.norm(self.design, axis=0)
        units = np.array([norms.max(initial=0.0), np.linalg.norm(self.target)])
        found = np.abs(np.log10(units[units > 0]))
        used = (self.truth.coef != 0) & (norms > 0)
        if used.any():
            spread = np.log10(norms[used].max() / norms[used].min())
            value = np.linalg.svd(self.design[:, used] / norms[used], compute_uv=False)
            value = value[value > _DEPENDENT * value[0]]
            found = np.append(found, spread + np.log10(value[0] / value[-1]))
        return float(found.max(initial=0.0))

    @property
    def at_limit(self) -> bool:
        """Whether the problem is at the limit of float64 for common algorithms."""
        return self.orders >= _LIMIT

    def _active(self, coef: Array) -> bool:
        norm = float(Columns(self.weights, self.signs).norm(coef))
        return norm >= self.kappa * (1.0 - 1e-9)

    def _support(self, coef: Array, lam: float) -> NDArray[np.bool_] | None:
        """Return the support if it is that of every optimal point, by a margin."""
        gradient = self.gram.gram @ coef - self.gram.corr[0]
        scale = np.sqrt(np.diagonal(self.gram.gram))
        free = (self.weights == 0.0) & (scale > 0)
        usable = np.isfinite(self.weights) & (scale > 0) & ~free
        slope = np.where(self.signs == 0, np.abs(gradient), np.maximum(-self.signs * gradient, 0.0))
        push = lam * np.where(usable, self.weights, 0.0)
        slack = np.where(usable, push - slope, np.inf)
        margin = max(_STRICT * float(push.max(initial=0.0)), 1e-300)
        equal = free | (usable & (slack <= margin))
        if not self.kappa or (lam == 0.0 and not usable[equal].all()):
            return None
        size = np.abs(coef) * scale
        strict = size[equal & ~free] > _STRICT * size.max(initial=0.0)
        block = self.gram.gram[np.ix_(equal, equal)] / np.outer(scale[equal], scale[equal])
        if not strict.all() or (equal.any() and np.linalg.eigvalsh(block)[0] < _STRICT):
            return None
        return equal
