"""The batched torch method: the cases of the exact method, on the CPU and on a GPU."""

import numpy as np
import pytest
import torch

from cimf.judge import certify_columns
from cimf.solve import solve_path, solve_rows
from cimf.solve.batched import torch_rows as batched
from cimf.solve.path import exact_rows as exact
from cimf.statistics import Gram
from formulations.columns import Columns
from formulations.level import Penalty, Radius

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def random_gram(m=60, n=30, r=20, seed=0):
    rng = np.random.default_rng(seed)
    design = rng.standard_normal((m, n))
    return Gram.from_arrays(
        design, design @ rng.standard_normal((n, r)) + rng.standard_normal((m, r))
    )


def solve(gram, level, device, ball=True, weights=None, signs=None):
    columns = Columns.build(gram.n_features, gram.n_targets, None, weights, signs)
    levels = (Radius if ball else Penalty)(np.full((gram.n_targets, 1), level))
    coef = batched.solve_chunk(gram, columns, levels, 1e-9, device)[0][:, 0]
    certify_columns(gram, coef, columns, levels.take((slice(None), 0)), 1e-9).raise_if_failed()
    return coef


def degenerate_designs():
    rng = np.random.default_rng(1)
    base = rng.standard_normal((30, 6))
    target = base @ rng.standard_normal((6, 3)) + 0.1 * rng.standard_normal((30, 3))
    return {
        "duplicate": (np.hstack([base, base[:, :3]]), target),
        "opposite": (np.hstack([base, -base]), target),
        "zero column": (np.hstack([base, np.zeros((30, 2))]), target),
        "all zero": (np.zeros((30, 4)), target),
        "ties": (np.eye(30)[:, :8], np.ones((30, 2))),
        "m < N": (rng.standard_normal((5, 20)), rng.standard_normal((5, 3))),
        "constant target": (np.hstack([base, np.ones((30, 1))]), np.full((30, 2), 3.0)),
        "zero target": (base, np.zeros((30, 2))),
        "one column": (base[:, :1], target),
        "one sample": (base[:1], target[:1]),
        "tiny": (1e-8 * base, 1e-8 * target),
        "huge": (1e8 * base, 1e8 * target),
        "no rows": (base, np.empty((30, 0))),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kappa", [0.0, 0.3, 2.0, 1e3])
@pytest.mark.parametrize("name", degenerate_designs())
def test_degenerate_problems_are_certified(name, kappa, device):
    solve(Gram.from_arrays(*degenerate_designs()[name]), kappa, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(12))
def test_weights_signs_free_and_excluded_columns(seed, device):
    rng = np.random.default_rng(seed)
    gram = random_gram(m=25, n=12, r=6, seed=seed)
    weights = rng.choice([0.0, 0.5, 1.0, 2.0, np.inf], (6, 12) if seed % 2 else 12)
    signs = rng.choice([-1, 0, 0, 1], 12)
    signs[(weights == 0.0).reshape(-1, 12).any(axis=0)] = 0
    for ball, level in ((True, 0.4), (False, 3.0)):
        solve(gram, level, device, ball, weights, signs)


@pytest.mark.parametrize("device", DEVICES)
def test_typical_rows_are_finished_on_the_device(device, monkeypatch):
    """The exact method is not called for them: the batched segments solve every row."""
    handed = []
    monkeypatch.setattr(
        batched.exact,
        "solve_chunk",
        lambda gram, *rest: handed.append(gram.n_targets) or solve_chunk(gram, *rest),
    )
    gram = random_gram(r=50)
    coef = solve(gram, 0.8, device)
    assert sum(handed) == 0
    expected = solve_rows(gram, 0.8, n_jobs=1).coef
    np.testing.assert_array_equal(coef != 0, expected != 0)
    np.testing.assert_allclose(coef, expected, atol=1e-9)


solve_chunk = exact.solve_chunk


def test_small_batches_of_systems_give_the_same_solutions(monkeypatch):
    gram = random_gram()
    expected = solve(gram, 0.8, "cpu")
    monkeypatch.setattr(batched, "_MEMORY", 1)
    np.testing.assert_allclose(solve(gram, 0.8, "cpu"), expected, atol=1e-12)


def test_behind_the_door_and_along_paths():
    gram = random_gram()
    found = solve_rows(gram, 0.8, method="torch").raise_if_failed()
    assert (found.method == "torch").all()
    np.testing.assert_allclose(found.coef, solve(gram, 0.8, "cpu"), atol=1e-12)
    for one in solve_path(gram, [2.0, 0.0, 0.1], method="torch"):
        one.raise_if_failed()


def test_rows_that_never_finish_are_handed_over(monkeypatch):
    monkeypatch.setattr(
        batched,
        "_finish",
        lambda p, level, z, lam: (z, lam, torch.zeros_like(lam, dtype=torch.bool)),
    )
    monkeypatch.setattr(batched, "_PHASES", (2,))
    gram = random_gram()
    expected = solve_rows(gram, 0.8, method="exact", n_jobs=1).coef
    np.testing.assert_array_equal(solve(gram, 0.8, "cpu"), expected)


def test_the_projection_is_the_nearest_point_of_the_ball():
    """Planted: a threshold that is 1 % off leaves the ball or its boundary."""
    gram = random_gram(n=8, r=4)
    columns = Columns.build(8, 4, None, np.linspace(0.5, 2.0, 8), None)
    problem = batched._Problem.build(gram, columns, True, 1e-10, torch.device("cpu"))
    x = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    kappa = torch.full((4,), 0.7, dtype=torch.float64)
    tau = batched._threshold(problem, x, kappa)
    norm = (problem.weights * batched._soft(problem, x, tau).abs()).sum(dim=1)
    np.testing.assert_allclose(norm, 0.7, rtol=1e-12)
    wrong = (problem.weights * batched._soft(problem, x, 1.01 * tau).abs()).sum(dim=1)
    assert (abs(wrong - 0.7) > 1e-3).all()
