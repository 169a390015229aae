"""Families of row problems, small, seeded and deterministic, and the suites made of them.

A new family is one function here that returns problems and one name in `SUITES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cimf.errors import UnknownNameError
from cimf.verification.graded_problem import Problem

Array = NDArray[np.float64]
Family = Callable[[], list[Problem]]


def _data(m: int, n: int, seed: int, noise: float = 0.1) -> tuple[Array, Array]:
    """Return a Gaussian design (m, n) and a target (m,) with a third of the columns behind it."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(m, n))
    coef = np.where(np.arange(n) % 3 == 0, rng.normal(size=n), 0.0)
    return design, design @ coef + noise * rng.normal(size=m)


def _norm(design: Array, target: Array) -> float:
    """Return the l1 norm of the least-squares solution of smallest l2 norm."""
    return float(np.abs(np.linalg.lstsq(design, target, rcond=1e-10)[0]).sum())


def _at(name: str, design: Array, target: Array, *fractions: float) -> list[Problem]:
    """Return problems whose kappas are fractions of the l1 norm of a least-squares solution."""
    norm = _norm(design, target)
    return [Problem(f"{name}, {part:g} of LS", design, target, part * norm) for part in fractions]


def gaussian() -> list[Problem]:
    """Well-conditioned designs, a square one among them; kappa small, middle, large."""
    tall, square = _data(60, 20, 0), _data(24, 24, 1)
    return [
        *_at("gaussian 60x20", *tall, 0.02, 0.3, 0.95),
        *_at("gaussian 24x24", *square, 0.05, 0.3, 0.8),
        *_at("gaussian 200x40", *_data(200, 40, 2, noise=2.0), 0.1, 0.5, 0.9),
    ]


def correlated() -> list[Problem]:
    """Columns with correlations 0.95^|i - j|, and columns with a large common mean."""
    design, target = _data(80, 24, 3)
    chain = scipy.linalg.cholesky(scipy.linalg.toeplitz(0.95 ** np.arange(24)))
    shifted = design + 3.0
    return [
        *_at("autoregressive", design @ chain, target, 0.05, 0.5),
        *_at("common mean", shifted, target + 2.0, 0.05, 0.5),
    ]


def ties() -> list[Problem]:
    """Exactly equal correlations of different columns (integer data: no rounding decides)."""
    circulant = scipy.linalg.circulant([5.0, 2, 1, 0, 0, 1, 1, 0])
    hadamard = scipy.linalg.hadamard(16).astype(float)
    flipped = circulant * np.array([1.0, -1] * 4)
    other = np.random.default_rng(4).integers(-3, 4, size=(8, 3)).astype(float)
    pattern = np.array([3.0, -3, 3, 2, -2, 0, 0, 0, 1, 1, -1, 0, 0, 0, 0, 0])
    return [
        *_at("all columns tied", circulant, np.ones(8), 0.1, 0.5, 0.9),
        *_at("all tied, both signs", flipped, np.ones(8), 0.1, 0.5),
        *_at("tied beside others", np.hstack([circulant, other]), np.ones(8), 0.1, 0.5),
        *_at("groups of ties, orthogonal", hadamard[:, 1:], hadamard @ pattern, 0.2, 0.6),
        *_at("groups of ties, few columns", hadamard[:, 1:8], hadamard @ pattern, 0.5, 0.9),
    ]


def duplicates() -> list[Problem]:
    """Duplicate, opposite and zero columns, and columns that differ by 1e-9."""
    design, target = _data(40, 10, 5)
    rng = np.random.default_rng(5)
    near = design + 1e-9 * rng.normal(size=design.shape)
    zeros = np.where(np.arange(10) % 4 == 1, 0.0, design)
    return [
        *_at("duplicates", np.hstack([design, design]), target, 0.1, 0.6),
        *_at("opposites", np.hstack([design, -design]), target, 0.1, 0.6),
        *_at("near duplicates", np.hstack([design, near]), target, 0.1, 0.6),
        *_at("zero columns", zeros, target, 0.1, 0.6),
        *_at("triples", np.hstack([design, -design, design, zeros]), target, 0.3),
    ]


def trivial() -> list[Problem]:
    """Radius 0, an inactive ball, zero and constant targets, a single column, a single sample."""
    design, target = _data(30, 8, 6)
    wide, wide_target = _data(12, 30, 7)
    return [
        Problem("kappa = 0", design, target, 0.0),
        *_at("ball just inactive", design, target, 1.0 + 1e-9, 1.5, 1e4),
        *_at("ball inactive, m < N", wide, wide_target, 2.0),
        Problem("zero target", design, np.zeros(30), 1.0),
        Problem("zero target, kappa = 0", design, np.zeros(30), 0.0),
        Problem("constant target", design, np.full(30, 3.0), 0.2),
        Problem("constant target, constant column", _with_bias(design), np.full(30, 3.0), 1.0),
        Problem("zero design", np.zeros((5, 4)), np.ones(5), 1.0),
        *_at("single column", design[:, :1], target, 0.5, 2.0),
        Problem("single sample", design[:1], target[:1], 0.1),
        Problem("one number", np.array([[2.0]]), np.array([-3.0]), 1.0),
    ]


def _with_bias(design: Array) -> Array:
    return np.hstack([design, np.ones((len(design), 1))])


def deficient() -> list[Problem]:
    """Fewer samples than columns, low rank, and condition numbers of the Gram up to 1e17."""
    rng = np.random.default_rng(8)
    left = np.linalg.qr(rng.normal(size=(60, 30)))[0]
    right = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    steep = (left * np.logspace(0.0, -8.5, 30)) @ right.T
    low = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 25))
    target = rng.normal(size=60)
    powers = np.vander(np.linspace(0.0, 1.0, 50), 20)
    return [
        *_at("m < N", *_data(15, 50, 9), 0.1, 0.5, 0.9),
        *_at("rank 6 of 25", low, target[:50], 0.1, 0.6),
        Problem("Gram condition 1e17, kappa 1", steep, target, 1.0),
        Problem("Gram condition 1e17, kappa 1e3", steep, target, 1e3),
        Problem("powers of x", powers, np.sin(6.0 * powers[:, -2]), 10.0),
    ]


def dead_units() -> list[Problem]:
    """States of ReLU units that hardly ever fire: columns and targets with almost no variance."""
    rng = np.random.default_rng(10)
    design = np.maximum(rng.normal(size=(120, 16)), 0.0)
    target = design @ rng.normal(size=16)
    design[:, 3:8] = 0.0
    design[7, 3], design[9, 4], design[9, 5], design[:, 6] = 1e-4, 1e-9, 2.0, 1e-7
    design = _with_bias(design)
    still = -3.0 + 1e-7 * rng.normal(size=120)
    return [
        Problem("dead columns, kappa 0.5", design, target, 0.5),
        Problem("dead columns, kappa 20", design, target, 20.0),
        Problem("dead target, kappa 0.5", design, still, 0.5),
        Problem("dead target, kappa 5", design, still, 5.0),
        Problem("dead target of scale 1e-6", design, 1e-6 * np.maximum(target - 2.0, 0.0), 1e-6),
    ]


def scales() -> list[Problem]:
    """Columns, targets and both scaled by 1e-8 and 1e8, and columns of very different scales."""
    design, target = _data(40, 12, 11)
    spread = design * np.logspace(-4.0, 4.0, 12)
    wide_spread = design[:, ::-1] * np.logspace(-8.0, 8.0, 12)
    out = []
    for column in (1e-8, 1.0, 1e8):
        for size in (1e-8, 1.0, 1e8):
            if column != 1.0 or size != 1.0:
                name = f"columns x {column:g}, target x {size:g}"
                out += _at(name, column * design, size * target, 0.4)
    return [
        *out,
        *_at("columns 1e-4 .. 1e4", spread, target, 0.001, 0.4),
        *_at("columns 1e-8 .. 1e8", wide_spread, target, 1e-6, 0.4),
    ]


def structured() -> list[Problem]:
    """Weights, free columns, excluded columns, sign constraints, and all of them together."""
    design, target = _data(50, 12, 12)
    design, target = _with_bias(design), target + 2.0
    rng = np.random.default_rng(12)
    weights = rng.uniform(0.2, 5.0, 13)
    free = np.where(np.arange(13) >= 11, 0.0, 1.0)
    excluded = np.where(np.isin(np.arange(13), (0, 3, 5)), np.inf, 1.0)
    signs = np.where(np.arange(13) < 11, rng.integers(-1, 2, 13), 0).astype(np.int8)
    cases = {
        "weights": (weights, np.zeros(13)),
        "free columns": (free, np.zeros(13)),
        "excluded columns": (excluded, np.zeros(13)),
        "signs": (np.ones(13), signs),
        "all constraints": (weights * free * np.where(excluded > 1, np.inf, 1.0), signs),
    }
    return [
        Problem(f"{name}, kappa {kappa:g}", design, target, kappa, w, np.asarray(s, np.int8))
        for name, (w, s) in cases.items()
        for kappa in (0.3, 3.0)
    ]


def mairal_yu_design(p: int) -> tuple[Array, Array]:
    """Return a design (p, p) and a target (p,) whose LASSO path has (3^p + 1) / 2 linear segments.

    Column j is alpha_j (2, .., 2, 1, 0, .., 0) with the 1 at place j, the target is all ones. The
    path of j columns is traversed, then backwards as column j + 1 grows, then with the opposite
    signs, if that column joins after the last breakpoint lam_j of the others: its correlation
    alpha (2 j + 1) must stay below lam_j, and lam_j is a little above alpha_j / 2.

    Source: Mairal and Yu, "Complexity analysis of the Lasso regularization path" (2012), Prop. 2.
    """
    alpha = np.ones(p)
    for j in range(1, p):
        alpha[j] = alpha[j - 1] / (4.0 * (2 * j + 1))
    return alpha * (np.triu(np.full((p, p), 2.0), 1) + np.eye(p)), np.ones(p)


def adversarial() -> list[Problem]:
    """Mairal and Yu's path of exponentially many segments, and cliques of almost equal columns."""
    out = []
    for p in (3, 5, 6):
        design, target = mairal_yu_design(p)
        norm = float(np.abs(scipy.linalg.solve_triangular(design, target)).sum())
        for part in (0.3, 0.5, 0.500001, 0.7):
            name = f"{(3**p + 1) // 2} segments, {part:g} of LS"
            out.append(Problem(name, design, target, part * norm))
    rng = np.random.default_rng(13)
    base = rng.normal(size=(30, 4)).repeat(6, axis=1)
    clique = base + 1e-5 * rng.normal(size=base.shape)
    return out + _at("almost equal columns", clique, rng.normal(size=30), 1e-5, 1e-3)


def states() -> list[Problem]:
    """States of a ReLU network 64-16-10 with seeded random weights on 300 handwritten digits.

    Columns are the states and the inputs, constant pixels among them; the targets are a
    pre-activation of the hidden layer, one of the output layer, and one unit that never fires.
    """
    from sklearn.datasets import load_digits

    inputs = np.asarray(load_digits().data[:300], dtype=np.float64) / 16.0
    rng = np.random.default_rng(14)
    hidden = inputs @ (rng.normal(size=(64, 16)) / 4.0) - 0.5
    output = np.maximum(hidden, 0.0) @ (rng.normal(size=(16, 10)) / 4.0)
    design = np.hstack([output, np.maximum(hidden, 0.0), inputs, np.ones((300, 1))])
    dead = np.maximum(hidden[:, 0] - np.sort(hidden[:, 0])[-2], 0.0)
    causal = np.where(np.arange(design.shape[1]) < 10, np.inf, 1.0)
    causal[-1] = 0.0
    targets = {"hidden": hidden[:, 1], "output": output[:, 2], "dead": dead}
    out = [
        Problem(f"{name} unit, kappa {kappa:g}", design, target, kappa)
        for name, target in targets.items()
        for kappa in (0.5, 5.0, 100.0)
    ]
    return [*out, Problem("causal row, free bias", design, output[:, 3], 0.99, causal)]


def quick() -> list[Problem]:
    """One or two problems of each kind, for a first look."""
    picked = {
        "gaussian": (1, 4),
        "correlated": (3,),
        "ties": (1, 5),
        "duplicates": (1,),
        "trivial": (0, 2),
        "deficient": (1,),
        "scales": (1, 6),
        "structured": (1, 3, 5, 7),
        "adversarial": (1,),
    }
    return [_problems(name)[k] for name, places in picked.items() for k in places]


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        gaussian, correlated, ties, duplicates, trivial, deficient, dead_units, scales, structured,
        adversarial, states,
    )
}  # fmt: skip

SUITES: dict[str, tuple[str, ...]] = {
    "default": tuple(FAMILIES),
    "degenerate": ("ties", "duplicates", "trivial", "deficient", "dead_units", "scales"),
    "adversarial": ("adversarial", "ties", "deficient"),
    "states": ("states", "dead_units"),
}


@cache
def _problems(family: str) -> tuple[Problem, ...]:
    """Make the problems of a family once: their ground truth is kept with them."""
    return tuple(replace(problem, family=family) for problem in FAMILIES[family]())


def problems(suite: str) -> list[Problem]:
    """Return the problems of a suite: a key of `SUITES`, "quick", or the name of one family.

    Raises
    ------
    UnknownNameError
        The message lists the known names.
    """
    if suite == "quick":
        return quick()
    if suite not in SUITES and suite not in FAMILIES:
        raise UnknownNameError("suite", suite, {*SUITES, "quick", *FAMILIES})
    return [p for family in SUITES.get(suite, (suite,)) for p in _problems(family)]
