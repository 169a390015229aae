"""The solvers that are compared, one short class each; adding one is a class in `CONTESTANTS`.

`prepare` is untimed and shared by all rows: factorisations of the design, compiled problems.
`solve` is timed and returns coefficients (N,) for row i. A contestant stops itself at relative gap
1e-9 wherever its interface allows.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems import RowProblems
from formulations.columns import Columns

Array = NDArray[np.float64]

TARGET = 1e-9


class Contestant:
    """Base: a name, the package it needs, what it does."""

    name = ""
    package = "numpy"
    largest = 10_000  # columns: what would not end in its time is not begun
    cap = 60.0  # seconds per row, for those that can be told

    def available(self) -> bool:
        """Return whether its package is installed."""
        return find_spec(self.package) is not None

    def prepare(self, problem: RowProblems) -> None:
        """Take the problems over and do what all rows share, untimed."""
        self.problem = problem
        self.best: Array | None = None  # what it has if its time runs out
        self.gram = problem.gram.gram
        self.corr = problem.gram.corr
        self.half_sq = 0.5 * problem.gram.target_sq

    def tell(self, i: int, kappa: float) -> None:
        """Receive a favour before the timer starts."""

    def solve(self, i: int, kappa: float) -> Array:
        """Return the coefficients (N,) of row i, timed."""
        raise NotImplementedError


class Exact(Contestant):
    """The exact method of this toolkit: its compiled kernel on one row, without the front door."""

    name = "cimf exact"

    def prepare(self, problem: RowProblems) -> None:
        super().prepare(problem)
        from cimf.solve.path import exact_rows, pivoting, point_gap, row_problem

        # What all rows share is made once, as in the front door.
        columns = Columns.build(problem.gram.n_features, 1)
        self.solver, self.level = exact_rows.solve_compiled, pivoting.Level
        self.rows = row_problem.Rows.of(problem.gram, columns)
        self.goal = TARGET * point_gap.MARGIN
        self.found = pivoting.Found(
            np.zeros((1, 1, problem.gram.n_features)), np.zeros((1, 1)), np.zeros((1, 1), np.int64)
        )

    def solve(self, i: int, kappa: float) -> Array:
        one = slice(i, i + 1)
        row = self.rows._replace(corr=self.corr[one], target_sq=self.rows.target_sq[one])
        level = self.level(np.array([[kappa]]), np.zeros((1, 1)))
        self.solver(row, level, self.goal, self.found)
        return self.found.coef[0, 0].copy()


class LarsGram(Contestant):
    """scikit-learn's homotopy on the Gram: the whole path, interpolated at the radius."""

    name = "lars_path_gram"
    package = "sklearn"

    def solve(self, i: int, kappa: float) -> Array:
        return self.path(i, kappa, 0.0)

    def path(self, i: int, kappa: float, alpha_min: float) -> Array:
        from sklearn.linear_model import lars_path_gram

        n = self.problem.gram.n_features
        _, _, coefs = lars_path_gram(
            self.corr[i], self.gram, n_samples=1, max_iter=50 * n, alpha_min=alpha_min,
            method="lasso", copy_X=False, copy_Gram=True,
        )  # fmt: skip
        norms = np.abs(coefs).sum(axis=0)
        k = int(np.searchsorted(norms, kappa))
        if k == 0 or k == norms.size:
            return coefs[:, min(k, norms.size - 1)]
        t = (kappa - norms[k - 1]) / (norms[k] - norms[k - 1])
        return (1 - t) * coefs[:, k - 1] + t * coefs[:, k]


class LarsTold(LarsGram):
    """The same, told the multiplier of the solution, so that it stops there: a favour."""

    name = "lars_path_gram, told lam"

    def prepare(self, problem: RowProblems) -> None:
        super().prepare(problem)
        self.exact_solver = Exact()
        self.exact_solver.prepare(problem)
        self.told: dict[tuple[int, float], float] = {}

    def tell(self, i: int, kappa: float) -> None:
        """Compute the multiplier, outside the timer."""
        a = self.exact_solver.solve(i, kappa)
        self.told[i, kappa] = float(np.abs(self.gram @ a - self.corr[i]).max())

    def solve(self, i: int, kappa: float) -> Array:
        return self.path(i, kappa, self.told[i, kappa] * (1 - 1e-9))


class Penalised(Contestant):
    """Base of solvers of Q(lam): the radius is found by regula falsi (Illinois) over lam.

    The norm is piecewise linear in lam, so this takes far fewer solves than halving; every solve
    starts from the previous one, and the search ends as soon as the certified gap is 1e-9.
    """

    def at(self, i: int, lam: float, start: Array) -> Array:
        """Return the solution of Q(lam) for row i, from a warm start."""
        raise NotImplementedError

    def solve(self, i: int, kappa: float) -> Array:
        corr, goal = self.corr[i], TARGET * self.half_sq[i]
        low, high = 0.25 * goal / kappa, float(np.abs(corr).max())
        a = np.zeros(corr.size)
        self.best = a
        if high <= low:
            return a
        f_low, f_high = math.nan, -kappa
        best_gap = math.inf
        lam, side = 0.5 * high, 0
        for _ in range(100):
            a = self.at(i, lam, a)
            norm = float(np.abs(a).sum())
            inside = a * min(1.0, kappa / norm) if norm > 0 else a
            gradient = self.gram @ inside - corr
            gap = float(inside @ gradient) + kappa * float(np.abs(gradient).max())
            if gap < best_gap:
                self.best, best_gap = inside, gap
            if gap <= goal or high - low <= 1e-14 * high:
                break
            if norm > kappa:
                low, f_low = lam, norm - kappa
                f_high *= 0.5 if side == 1 else 1.0
                side = 1
            else:
                high, f_high = lam, norm - kappa
                f_low *= 0.5 if side == -1 else 1.0
                side = -1
            if math.isnan(f_low):  # no lower end yet: divide
                lam = max(0.3 * high, low)
            else:
                lam = (low * f_high - high * f_low) / (f_high - f_low)
                if not low < lam < high:
                    lam = 0.5 * (low + high)
        return self.best


class GramDescent(Penalised):
    """scikit-learn's compiled coordinate descent on the Gram, called without its input checks."""

    name = "Gram descent, search"
    package = "sklearn"

    def at(self, i: int, lam: float, start: Array) -> Array:
        from sklearn.linear_model import _cd_fast

        root = np.array([math.sqrt(2.0 * self.half_sq[i])])
        rng = np.random.RandomState(0)
        return _cd_fast.enet_coordinate_descent_gram(
            start.copy(), lam, 0.0, self.gram, self.corr[i], root, 20_000, 1e-10, rng, False, False,
            True,
        )[0]  # fmt: skip


class Celer(Penalised):
    """Celer (working sets, dual extrapolation) on the QR-reduced data."""

    name = "celer, search"
    package = "celer"

    def at(self, i: int, lam: float, start: Array) -> Array:
        from celer import celer_path

        design, targets = self.problem.reduced
        m = design.shape[0]
        return celer_path(
            design, targets[:, i], "lasso", alphas=[lam / m], coef_init=start.copy(), tol=1e-12,
            max_iter=100,
        )[1][:, 0]  # fmt: skip


class Skglm(Penalised):
    """skglm (working sets, Anderson acceleration) on the QR-reduced data."""

    name = "skglm, search"
    package = "skglm"

    def prepare(self, problem: RowProblems) -> None:
        super().prepare(problem)
        from skglm.datafits import Quadratic
        from skglm.solvers import AndersonCD

        self.design, self.targets = problem.reduced
        self.datafit = Quadratic()
        self.solver = AndersonCD(tol=1e-12, fit_intercept=False, max_iter=200, warm_start=True)

    def at(self, i: int, lam: float, start: Array) -> Array:
        from skglm.penalties import L1
        from skglm.utils.jit_compilation import compiled_clone

        m = self.design.shape[0]
        datafit, penalty = compiled_clone(self.datafit), compiled_clone(L1(lam / m))
        target = np.ascontiguousarray(self.targets[:, i])
        datafit.initialize(self.design, target)
        return self.solver.solve(
            self.design, target, datafit, penalty, start.copy(), self.design @ start,
            run_checks=False,
        )[0]  # fmt: skip


class Cvxcla(Contestant):
    """cvxcla's LASSO path on the Gram, stopped in the segment that reaches the radius."""

    name = "cvxcla"
    package = "cvxcla"

    def prepare(self, problem: RowProblems) -> None:
        super().prepare(problem)
        from cvxcla.lasso import Lasso
        from cvxcla.operators import incremental_dense_covariance

        class Reached(Exception):
            pass

        class Stopping(Lasso):
            radius = math.inf

            def step(self, state, segment, sec, direction, lam):
                self.stop(state, segment, lam)
                return super().step(state, segment, sec, direction, lam)

            def finish(self, state, segment):
                self.stop(state, segment, 0.0)
                super().finish(state, segment)

            def stop(self, state, segment, lam):
                if np.abs(segment.alpha - lam * segment.beta_slope).sum() >= self.radius:
                    rate = float(state.signs @ segment.beta_slope)
                    excess = float(state.signs @ segment.alpha) - self.radius
                    raise Reached(segment.alpha - (excess / rate) * segment.beta_slope)

        self.kind, self.reached = Stopping, Reached
        self.operator = incremental_dense_covariance

    def solve(self, i: int, kappa: float) -> Array:
        self.kind.radius = kappa
        try:
            path = self.kind.from_operator(self.operator(self.gram), self.corr[i])
        except self.reached as found:
            return found.args[0]
        return path.solution(0.0)


class Clarabel(Contestant):
    """CVXPY + Clarabel on the data; compiled once, the target is a parameter."""

    name = "Clarabel, data"
    package = "clarabel"
    largest = 1_000

    def data(self) -> tuple[Array, Array]:
        return self.problem.design, self.problem.targets

    def prepare(self, problem: RowProblems) -> None:
        super().prepare(problem)
        import cvxpy as cp

        self.design, self.targets = self.data()
        m, n = self.design.shape
        self.a, self.z, self.kappa = cp.Variable(n), cp.Parameter(m), cp.Parameter(nonneg=True)
        fit = 0.5 * cp.sum_squares(self.design @ self.a - self.z)
        self.program = cp.Problem(cp.Minimize(fit), [cp.norm1(self.a) <= self.kappa])
        self.z.value, self.kappa.value = self.targets[:, 0], 1.0
        self.program.get_problem_data(cp.CLARABEL)

    def solve(self, i: int, kappa: float) -> Array:
        import cvxpy as cp

        self.z.value, self.kappa.value = self.targets[:, i], kappa
        self.program.solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-10, tol_feas=1e-10,
            time_limit=self.cap,
        )  # fmt: skip
        return np.zeros(self.a.size) if self.a.value is None else self.a.value


class ClarabelReduced(Clarabel):
    """The same on the QR-reduced data."""

    name = "Clarabel, reduced"
    largest = 2_000

    def data(self) -> tuple[Array, Array]:
        return self.problem.reduced


class Spgl1(Contestant):
    """SPGL1 (LGPL, not a dependency) in its LASSO mode on the QR-reduced data."""

    name = "SPGL1, reduced"
    package = "spgl1"

    def solve(self, i: int, kappa: float) -> Array:
        from spgl1 import spgl1

        logging.getLogger("spgl1").setLevel(logging.CRITICAL)
        design, targets = self.problem.reduced
        return spgl1(design, targets[:, i], tau=kappa, opt_tol=1e-10, iter_lim=100_000)[0]


CONTESTANTS: tuple[Callable[[], Contestant], ...] = (
    Exact, LarsGram, LarsTold, GramDescent, Celer, Skglm, Cvxcla, Clarabel, ClarabelReduced, Spgl1,
)  # fmt: skip


def quiet(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call without the warnings of a solver that does not converge: the judge says so."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return function(*arguments)
