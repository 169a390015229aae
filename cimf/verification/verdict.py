"""One answer judged against the ground truth of one problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cimf.judge import certify
from cimf.verification.diagnosis import NOT_OPTIMAL, explanations, settle
from cimf.verification.graded_problem import Problem
from cimf.verification.interface import Answer
from cimf.verification.mistakes import error_of

# A coefficient below this part of the largest is a zero that was not rounded.
_TINY = 1e-3


@dataclass(frozen=True)
class Verdict:
    """How good an answer is.

    Attributes
    ----------
    problem : Problem
    status : str
        "passed", "failed", "limit" (not right, but the problem is at the limit of float64 and the
        solver is not known to be wrong) or "skipped" (it does not take what the problem needs).
    failure, detail : str
        Class of failure (a key of `cimf.verification.diagnosis.ADVICE`) and what was seen.
    excess : float
        (h(a) - h*) / (1/2 ||z||^2); negative only outside the ball.
    violation : float
        max(0, sum_j w_j |a_j| - kappa) / kappa (for kappa = 0 by ||z|| / max_j ||M_j||, the size
        of a coefficient), or the largest forbidden coefficient by the largest coefficient.
    gap : float
        Certified relative gap of the answer itself; NaN outside the ball, where it bounds nothing.
    precision, recall : float
        Of the answer's non-zeros against the support that every optimal point has; NaN where the
        solution is not unique or not strictly complementary.
    seconds, ours_seconds : float
        Wall clock of the solver and of `cimf.solve_rows`.
    """

    problem: Problem
    status: str
    failure: str = ""
    detail: str = ""
    excess: float = np.nan
    violation: float = np.nan
    gap: float = np.nan
    precision: float = np.nan
    recall: float = np.nan
    seconds: float = np.nan
    ours_seconds: float = np.nan

    def row(self) -> dict[str, object]:
        """Return one flat record, for a table."""
        m, n = self.problem.design.shape
        return {
            "problem": self.problem.name,
            "family": self.problem.family,
            "samples": m,
            "columns": n,
            "kappa": self.problem.kappa,
            "orders": self.problem.orders,
            "status": self.status,
            "failure": self.failure,
            "detail": self.detail,
            "excess": self.excess,
            "violation": self.violation,
            "gap": self.gap,
            "precision": self.precision,
            "recall": self.recall,
            "seconds": self.seconds,
            "ours_seconds": self.ours_seconds,
            "time_ratio": self.seconds / self.ours_seconds,
        }


def judge(
    problem: Problem, answer: Answer, tol: float, exact_zeros: bool
) -> tuple[Verdict, list[str]]:
    """Return the verdict and, for a failure that has to be explained, the classes that fit."""
    truth = problem.truth
    verdict = Verdict(
        problem,
        "failed",
        answer.failure,
        answer.detail,
        seconds=answer.seconds,
        ours_seconds=truth.seconds,
    )
    if answer.coef is None:
        return verdict, []
    coef = answer.coef
    with np.errstate(all="ignore"):
        judged = certify(
            problem.gram, coef, problem.kappa, weights=problem.weights, signs=problem.signs
        )
        excess = (float(judged.objective[0]) - truth.objective) / problem.scale
    gap = float(judged.gap[0]) if problem.gram.target_sq[0] > 0 else max(excess, 0.0)
    off_pattern = _off_pattern(problem, coef)
    over = max(float(judged.norm[0]) - problem.kappa, 0.0)
    violation = max(over / _radius(problem), off_pattern)
    precision, recall = _support(truth.support, coef)
    verdict = replace(
        verdict,
        excess=excess,
        violation=violation,
        gap=gap if violation <= tol else np.nan,
        precision=precision,
        recall=recall,
    )
    if excess <= tol and violation <= tol:
        tiny = _unrounded(truth.support, coef)
        if not (exact_zeros and tiny):
            return replace(verdict, status="passed"), []
        detail = f"no exact zero off the support, largest {tiny:.1e}"
        return replace(verdict, failure="no exact zeros", detail=detail), []
    error = max(error_of(problem, coef), excess, violation)
    fitting = explanations(problem, coef, error)
    if not coef.any():
        fitting.append("returns zeros")
    if not fitting:
        fitting = [_plain(violation, off_pattern, tol)]
    return replace(verdict, detail=_seen(excess, violation, tol)), fitting


def settled(verdicts: list[tuple[Verdict, list[str]]]) -> tuple[Verdict, ...]:
    """Name the class of every failure, by what explains most failures of this solver."""
    out = [verdict for verdict, _ in verdicts]
    refuted = {"transposed design"} if any(map(_right_and_not_square, out)) else set()
    fitting = {
        k: [name for name in names if name not in refuted] or [NOT_OPTIMAL]
        for k, (_, names) in enumerate(verdicts)
        if names
    }
    for k, name in zip(fitting, settle(fitting.values()), strict=True):
        out[k] = replace(out[k], failure=name)
    # At the limit of float64 a failure says that a solver is wrong only where it fails in the same
    # way, by a class that means something, at a problem that is not.
    ordinary = {v.failure for v in out if v.status == "failed" and not v.problem.at_limit}
    wrong = ordinary - {NOT_OPTIMAL}
    for k, verdict in enumerate(out):
        at_limit = verdict.problem.at_limit
        if verdict.status == "failed" and at_limit and verdict.failure not in wrong:
            out[k] = replace(verdict, status="limit")
    return tuple(out)


def _right_and_not_square(verdict: Verdict) -> bool:
    m, n = verdict.problem.design.shape
    return verdict.status == "passed" and m != n


def _radius(problem: Problem) -> float:
    """Return kappa, or where that is 0 the size of a coefficient: ||z|| / max_j ||M_j||."""
    if problem.kappa:
        return problem.kappa
    norm = float(np.linalg.norm(problem.design, axis=0).max(initial=0.0))
    return (float(np.linalg.norm(problem.target)) / norm if norm else 0.0) or 1.0


def _plain(violation: float, off_pattern: float, tol: float) -> str:
    if violation <= tol:
        return NOT_OPTIMAL
    return "violates the signs" if off_pattern >= violation else "violates the ball"


def _seen(excess: float, violation: float, tol: float) -> str:
    seen = [f"objective excess {excess:.1e}"] if excess > tol else []
    return ", ".join(seen + ([f"violation {violation:.1e}"] if violation > tol else []))


def _off_pattern(problem: Problem, coef: NDArray[np.float64]) -> float:
    """Return the largest forbidden coefficient, relative to the largest coefficient."""
    forbidden = np.isinf(problem.weights) | (problem.signs * coef < 0)
    largest = float(np.abs(coef).max(initial=0.0))
    return float(np.abs(coef[forbidden]).max(initial=0.0)) / largest if largest else 0.0


def _support(support: NDArray[np.bool_] | None, coef: NDArray[np.float64]) -> tuple[float, float]:
    if support is None:
        return np.nan, np.nan
    used = coef != 0
    both = int((used & support).sum())
    return (
        both / int(used.sum()) if used.any() else 1.0,
        both / int(support.sum()) if support.any() else 1.0,
    )


def _unrounded(support: NDArray[np.bool_] | None, coef: NDArray[np.float64]) -> float:
    """Return the largest coefficient off the support if all are small but none is 0, else 0."""
    if support is None or (~support).sum() < 2:
        return 0.0
    off = np.abs(coef[~support])
    small = off.max() <= _TINY * np.abs(coef).max()
    return float(off.max()) if small and (off > 0).all() else 0.0
