"""What is told about a solver's failures: the mistake that explains most of them, and advice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cimf.verification.graded_problem import Problem
from cimf.verification.interface import RAISES
from cimf.verification.mistakes import EXPLAINED, MISTAKES, Array

# A mistake must be this many times better met by the answer than by the solution: where both meet
# it, as tiny columns make them, it makes no difference and the answer is no evidence of it.
_EVIDENCE = 10.0

# What is left where no mistake gives the answer, and where the problem may be to blame.
NOT_OPTIMAL = "not optimal"
LIMIT = "limit of float64"

ADVICE = {
    "wrong shape": "return one coefficient per column, shape (N,)",
    "not finite": "guard divisions by zero: zero columns, zero targets, equal correlations",
    "changes its inputs": "copy the arrays before writing into them",
    "returns zeros": "the first step never leaves the starting point",
    "sign flipped": "the gradient is G a - c, c = M'z",
    "kappa treated as lam": "kappa is the radius of the l1 ball, not a penalty",
    "squared radius": "the ball is sum |a_j| <= kappa: nothing is squared",
    "penalises the free columns": "columns with weight 0 (bounded False) are outside the ball",
    "ignores the weights": "the ball is sum w_j |a_j| <= kappa",
    "uses excluded columns": "columns of infinite weight have coefficient 0",
    "ignores the signs": "signs +1: a_j >= 0, -1: a_j <= 0",
    "ignores the ball": "the answer is the least-squares solution",
    "wrong scaling": "the objective is 1/2 ||M a - z||^2: a factor 1/2, no factor 1/m",
    "ignores the first column": "an index that starts one column late",
    "ignores the last column": "an index that ends one column early",
    "rounds small entries to zero": "round to the certified support, not by size: the entries that "
    "are dropped are needed",
    "sphere instead of the ball": "the ball is sum |a_j| <= kappa: where the least-squares "
    "solution is inside, it is the answer",
    "loses ties": "columns whose correlations are exactly equal must join together",
    "non-negative only": "coefficients may be negative",
    "centres the data": "there is no intercept: means are not subtracted",
    "normalises the columns": "the ball is that of the columns as given; scale back",
    "transposed design": "the design is (samples, columns)",
    "l2 ball": "the ball is the l1 ball",
    "misses the radius": "the answer is optimal for another radius: solve for lam to the end",
    "no exact zeros": "round to the certified support; a zero must be 0.0",
    "violates the ball": "project on the ball, or scale the answer into it",
    "violates the signs": "a coefficient has a forbidden sign, or its column is excluded",
    NOT_OPTIMAL: "inside the ball, and no known mistake gives this answer; where the excess falls "
    "with more iterations, stop on the duality gap, not on progress",
    LIMIT: "not counted as wrong: the data span more orders of magnitude than common algorithms "
    "take in float64 (column `orders`); scale the columns, avoid the Gram and absolute tolerances",
}


def explanations(problem: Problem, coef: Array, failure: float) -> list[str]:
    """Return the classes of mistakes for which a failed answer is right.

    Parameters
    ----------
    failure : float
        Error of the answer for the problem itself.
    """
    limit = min(EXPLAINED * failure, 1e-3)
    found = []
    for name, test in MISTAKES.items():
        error = test(problem, coef)
        # The solution is optimal for its own radius: there the radius itself is the evidence.
        if error <= limit and (
            name == "misses the radius" or test(problem, problem.truth.coef) > _EVIDENCE * error
        ):
            found.append(name)
    return found


def advice(failure: str) -> str:
    """Return what to look at for a class of failure."""
    if failure.startswith(RAISES):
        return "see the message of each problem"
    return ADVICE[failure]


def settle(found: Iterable[list[str]]) -> list[str]:
    """Choose one class per failed problem: that which explains most failures of this solver.

    The general class gives way to a special one that explains half as many.
    """
    lists = list(found)
    votes = Counter(name for names in lists for name in names)
    order = {name: k for k, name in enumerate(ADVICE)}

    def rank(name: str) -> tuple[float, int]:
        weight = 0.5 if name == "misses the radius" else 1.0
        return -weight * votes[name], order[name]

    return [min(names, key=rank) for names in lists]
