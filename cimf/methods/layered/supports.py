"""Rules that choose which columns a row keeps.

A rule takes the statistics of a layer's rows, the network's own rows, how many columns each row
shall keep, the number of free columns and that of threads, and returns a `Choice`. A new rule is
one function and one line in `SUPPORTS`. `Convex` rules take the number from a budget of the convex
problem instead. A rule with a parameter `groups` also serves N:M patterns: it then keeps so many
columns of every group.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError, UnknownNameError
from cimf.judge import Solution
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.admm import admm
from cimf.methods.layered.cost import exact_is_affordable
from cimf.methods.layered.elimination import Groups, Mask, Matrix
from cimf.solve import solve_rows
from cimf.statistics import Gram
from formulations.columns import per_row

# Halvings of the interval of each row's radius: to 1/1024 of the radius that admits its own row.
_HALVINGS = 10
# A weight times its column's norm below this share of the row's largest counts as this share: 1/|w|
# stays finite, and a column that one round of reweighting dropped can come back in the next. With
# shares of the plain weights, ResNet-20 at 20 % of the
# columns, root of the relative loss after three rounds (layer2.1.conv1, layer3.1.conv1): 0.191,
# 0.227 with 1e-6; 0.186, 0.220 with 0.03; 0.193, 0.224 with 0.1; by `obs` 0.175, 0.212.
_SMALL = 0.03


@dataclass(frozen=True)
class Choice:
    """Supports of the rows of one layer.

    Attributes
    ----------
    mask : (r, N') bool
        Columns that are kept, the free columns included.
    coef : (r, N') or None
        Coefficients where the rule fixes them; None: the network's own.
    solution : Solution or None
        The certified convex problem behind the rule, where there is one.
    rule : str
        Which rule it was, where a rule chooses among several. "admm": its steps have done what
        exchanges would, and its rows are so wide that exchanges cost more than all else.
    """

    mask: Mask
    coef: Matrix | None = None
    solution: Solution | None = None
    rule: str = ""


Counts = NDArray[np.int64]
Rule = Callable[[Gram, Matrix, Counts, int, int | None], Choice]


def takes_groups(rule: Rule) -> bool:
    """Whether a rule serves N:M patterns."""
    return "groups" in inspect.signature(rule).parameters


def obs(
    gram: Gram,
    dense: Matrix,
    counts: Counts,
    n_free: int,
    n_jobs: int | None = None,
    groups: Groups | None = None,
) -> Choice:
    """Exact Optimal Brain Surgeon per row: drop the cheapest column, refit, repeat."""
    order, _ = rows.elimination(gram, n_free, n_jobs, groups)
    if groups is not None:
        return Choice(rows.without(order, gram.n_features))
    return Choice(rows.last_columns(order, counts, n_free))


def wide(
    gram: Gram, dense: Matrix, counts: Counts, n_free: int, n_jobs: int | None = None
) -> Choice:
    """ADMM on the number of non-zeros, all rows at once."""
    return Choice(admm(gram, dense, counts, n_free, n_jobs), rule="admm")


def cheaper(
    gram: Gram,
    dense: Matrix,
    counts: Counts,
    n_free: int,
    n_jobs: int | None = None,
    groups: Groups | None = None,
) -> Choice:
    """As `obs` where that is affordable, and in patterns; else `wide`. See `cost`."""
    if groups is not None or exact_is_affordable(gram.n_targets, gram.n_features - n_free):
        return replace(obs(gram, dense, counts, n_free, n_jobs, groups), rule="obs")
    return wide(gram, dense, counts, n_free, n_jobs)


def by_score(score: Matrix, counts: Counts, n_free: int, groups: Groups | None) -> Choice:
    """Keep the largest scores (r, N) of every row, or of every group of every row."""
    if groups is not None:
        return Choice(rows.largest_of_groups(score, groups, n_free))
    return Choice(rows.largest(score, counts, n_free))


def magnitude(
    gram: Gram,
    dense: Matrix,
    counts: Counts,
    n_free: int,
    n_jobs: int | None = None,
    groups: Groups | None = None,
) -> Choice:
    """Keep the largest weights of the network."""
    return by_score(np.abs(dense[:, : dense.shape[1] - n_free]), counts, n_free, groups)


def least_squares(
    gram: Gram, dense: Matrix, counts: Counts, n_free: int, n_jobs: int | None = None
) -> Choice:
    """Keep every column, with the coefficients of least squares: a row outside any budget."""
    mask = np.ones(dense.shape, dtype=bool)
    return Choice(mask, rows.polished(gram, mask, n_jobs)[0])


def _ones(gram: Gram, size: Matrix) -> Matrix:
    return np.ones_like(size)


def _inverse(gram: Gram, size: Matrix) -> Matrix:
    return 1.0 / size


def _saliency(gram: Gram, size: Matrix) -> Matrix:
    """sqrt(A_jj) / |w_j|, A = G^-1: one over the root of what dropping column j alone costs."""
    variance = np.diagonal(rows.inverse(gram.gram))[: size.shape[1]]
    return np.sqrt(np.maximum(variance, 0.0)) / size


WEIGHTINGS: dict[str, Callable[[Gram, Matrix], Matrix]] = {
    "ones": _ones,
    "inverse": _inverse,
    "saliency": _saliency,
}


def ball_weights(gram: Gram, values: Matrix, weighting: str, n_free: int) -> Matrix:
    """Return column weights (r, N') of the l1 ball, made from coefficients (r, N').

    Parameters
    ----------
    weighting : str
        A key of `WEIGHTINGS`: "ones", "inverse" (1 / |w_j|) or "saliency" (one over the root of the
        Optimal Brain Surgeon saliency). Scaled so that `values` has sum_j weights_j |values_j| = N
        (a row of zeros: as if all its entries were 1 over the norms of their columns). "ones" is
        the plain ball, which depends on the units of the columns; the others do not.

    Raises
    ------
    UnknownNameError
    """
    if weighting not in WEIGHTINGS:
        raise UnknownNameError("weighting", weighting, WEIGHTINGS)
    width = values.shape[1] - n_free
    norm = np.sqrt(np.diagonal(gram.gram)[:width])
    norm[norm == 0.0] = 1.0
    effect = np.abs(values[:, :width]) * norm
    largest = effect.max(axis=1, keepdims=True, initial=0.0)
    size = np.where(largest > 0, np.maximum(effect, _SMALL * largest), 1.0) / norm
    found = WEIGHTINGS[weighting](gram, size)
    weights = np.zeros(values.shape)
    weights[:, :width] = found * (width / (found * size).sum(axis=1, keepdims=True))
    return weights


def ball(
    gram: Gram,
    dense: Matrix,
    counts: Counts,
    n_free: int,
    n_jobs: int | None = None,
    *,
    weighting: str = "inverse",
    reweight: int = 0,
) -> Choice:
    """Solve P(kappa) in a weighted l1 ball, each row's kappa by halving.

    Each row gets the largest kappa found whose solution has at most its count of non-zeros; what
    is missing is filled in by the order of Optimal Brain Surgeon. `reweight` times this is done
    again with weights made from the solution (Candes, Wakin and Boyd 2008, "Enhancing sparsity by
    reweighted l1 minimization").
    """
    width = gram.n_features - n_free
    values = dense
    for _ in range(reweight + 1):
        weights = ball_weights(gram, values, weighting, n_free)
        low, high = np.zeros(len(dense)), np.full(len(dense), float(width))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = solve_rows(gram, middle, weights=weights, n_jobs=n_jobs)
            fits = np.count_nonzero(found.coef[:, :width], axis=1) <= counts
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        best = solve_rows(gram, low, weights=weights, n_jobs=n_jobs)
        values = _or_before(best.coef, values, width)
    order, _ = rows.elimination(gram, n_free, n_jobs)
    chosen = best.coef[:, :width] != 0
    score = np.argsort(order, axis=1) + np.where(chosen, width, 0)
    return Choice(rows.largest(score, counts, n_free), best.coef, best)


def _or_before(coef: Matrix, before: Matrix, width: int) -> Matrix:
    """Return what the next weights are made from: a row without non-zeros keeps its last ones."""
    return np.where(coef[:, :width].any(axis=1, keepdims=True), coef, before)


SUPPORTS: dict[str, Rule] = {
    "auto": cheaper,
    "obs": obs,
    "admm": wide,
    "magnitude": magnitude,
    "ball": ball,
    "ball-ones": partial(ball, weighting="ones"),
    "ball-saliency": partial(ball, weighting="saliency"),
}


@dataclass(frozen=True)
class Convex:
    """The support of a convex problem at a given budget, the same for all layers.

    Attributes
    ----------
    budget : str
        "kappa": sum_j w_j |a_j| <= value. "relative": <= value times the same sum of the network's
        own row. "lam": value times sum_j w_j |a_j| is added to the mean over the samples of
        1/2 (M a - z)^2, one multiplier for all rows.
    value : float
    weighting : str
        A key of `WEIGHTINGS`; w is scaled so that the network's own row has the sum N.
        With "ones" and budget "kappa" there is no scaling: the plain l1 ball.
    reweight : int
        How often Q(lam) is solved again with weights made from its own solution.
    tol : float
        Relative gap that every row must reach.
    """

    budget: str
    value: float
    weighting: str = "ones"
    reweight: int = 0
    tol: float = 1e-9

    def __post_init__(self) -> None:
        if self.budget not in ("kappa", "relative", "lam"):
            raise UnknownNameError("budget", self.budget, ["kappa", "relative", "lam"])
        if not (np.isfinite(self.value) and self.value >= 0) or self.reweight < 0:
            raise InputError(f"{self.budget} = {self.value}: a finite number >= 0 is needed")
        if self.reweight and self.budget != "lam":
            raise InputError("reweight needs budget 'lam': a ball would shrink with its weights")

    def __call__(
        self, gram: Gram, dense: Matrix, counts: Counts, n_free: int, n_jobs: int | None = None
    ) -> Choice:
        """Return the columns where the solution is not zero; `counts` is not used."""
        width = gram.n_features - n_free
        values = dense
        for _ in range(self.reweight + 1):
            weights = ball_weights(gram, values, self.weighting, n_free)
            if self.weighting == "ones":
                weights[:, :width] = 1.0
            if self.budget == "lam":
                lam = self.value * gram.n_samples
                budget: dict[str, Any] = {"lam": lam}
            else:
                budget = {"kappa": self.radii(weights, dense)}
            solution = solve_rows(gram, **budget, weights=weights, tol=self.tol, n_jobs=n_jobs)
            solution.raise_if_failed()
            values = _or_before(solution.coef, values, width)
        mask = solution.coef != 0
        mask[:, width:] = True
        return Choice(mask, solution.coef, solution)

    def radii(self, weights: Matrix, dense: Matrix) -> NDArray[np.float64]:
        """Return the radius of every row's ball, (r,): for the budgets "kappa" and "relative"."""
        relative = self.budget == "relative"
        own = (weights * np.abs(dense)).sum(axis=1) if relative else np.ones(len(dense))
        return per_row("kappa", self.value * own, len(dense))
