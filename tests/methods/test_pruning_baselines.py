import numpy as np
import pytest
import torch
from torch import nn

from cimf.errors import InputError, UnknownNameError
from cimf.judge import certify
from cimf.methods.base import Task
from cimf.methods.baselines.alps import alps
from cimf.methods.baselines.fista import _descend, fista
from cimf.methods.baselines.one_shot import BASELINES, magnitude_counts, wanda
from cimf.methods.baselines.sparsegpt import sparsegpt
from cimf.methods.by_name import prune_task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.elimination import losses
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.supports import magnitude
from cimf.statistics import Gram


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    return Task(net, torch.randn(100, 2, 8, 8))


@pytest.fixture(scope="module")
def errors(task):
    u = torch.cat(task.inputs)
    net = task.net
    out = {}
    with torch.no_grad():
        for name in BASELINES:
            result = prune_task(task, 0.7, name, n_jobs=1)
            assert result.report.sparsity["network_weights"] == pytest.approx(0.7, abs=1e-3), name
            out[name] = float((result.network(u) - net(u)).square().mean())
        out["layered"] = float(
            (prune_task(task, 0.7, n_jobs=1).network(u) - net(u)).square().mean()
        )
    return out


def test_refitting_beats_masking_and_elimination_beats_magnitude(errors):
    assert errors["magnitude-polish"] < errors["magnitude-layer"]
    assert errors["obs"] < errors["magnitude-polish"]
    assert errors["obs"] < errors["wanda"]
    assert errors["obs"] < errors["fista"]
    assert errors["layered"] < errors["obs"]
    assert errors["alps"] < errors["sparsegpt"]


def test_masked_baselines_change_no_weight(task):
    for name in ("magnitude-global", "magnitude-layer", "wanda"):
        result = prune_task(task, 0.5, name, n_jobs=1)
        for old, new in zip(task.net, result.network, strict=True):
            if hasattr(old, "weight"):
                kept = new.weight != 0
                torch.testing.assert_close(new.weight[kept], old.weight[kept])


def test_magnitude_counts_are_those_of_a_threshold(task):
    calibration, graph = Calibration.of(task, Statistics(n_jobs=1)), task.graph
    one = magnitude_counts(calibration, 0.6, (), True)
    weights = [graph.original.get_parameter(f"{layer.path}.weight") for layer in graph.layers]
    flat = torch.cat([w.abs().flatten() for w in weights])
    threshold = flat.sort(descending=True).values[round(0.4 * flat.numel()) - 1]
    for weight, count in zip(weights, one, strict=True):
        assert ((weight.abs() >= threshold).flatten(1).sum(1).numpy() == count).all()
    each = magnitude_counts(calibration, 0.6, ("6",), False)
    assert (each[2] == 32).all()
    assert sum(int(c.sum()) for c in each) == round(0.4 * flat.numel())


def statistics(seed=0):
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((80, 6))
    M[:, 5] = 1.0
    dense = rng.standard_normal((3, 6))
    return M, Gram.from_arrays(M, M @ dense.T + rng.standard_normal((80, 3))), dense


def test_wanda_scores():
    M, gram, dense = statistics()
    mask = wanda(gram, dense, np.full(3, 2), 1).mask
    score = np.abs(dense[:, :5]) * np.linalg.norm(M[:, :5], axis=0)
    for i in range(3):
        assert set(np.flatnonzero(mask[i])) == {*np.argsort(-score[i])[:2], 5}


def test_fista_solves_the_penalised_problem():
    _, gram, dense = statistics()
    step = 1.0 / np.linalg.eigvalsh(gram.gram)[-1]
    lam = np.full((3, 1), 20.0)
    coef = dense
    for _ in range(20):
        coef = _descend(gram, coef, lam, step, 5)
    weights = np.r_[np.ones(5), 0.0]
    assert certify(gram, coef, lam=20.0, weights=weights, tol=1e-8).passed.all()
    # A planted wrong answer is not certified.
    assert not certify(gram, coef + 0.1, lam=20.0, weights=weights, tol=1e-8).passed.any()


def test_fista_rounds_to_the_counts():
    _, gram, dense = statistics()
    choice = fista(gram, dense, np.array([1, 3, 5]), 1)
    assert (choice.mask[:, :5].sum(axis=1) == [1, 3, 5]).all()
    assert (choice.coef[~choice.mask] == 0).all()


def test_unknown_layers_and_targets_are_refused(task):
    with pytest.raises(UnknownNameError, match="known: 0, 2, 6"):
        prune_task(task, 0.5, "magnitude-global", keep=("fc",))
    with pytest.raises(InputError, match="sparsity"):
        prune_task(task, 1.5, "magnitude-layer")


def correlated(seed=0, m=400, n=40, r=12):
    rng = np.random.default_rng(seed)
    M = np.maximum(rng.standard_normal((m, n)) @ (np.eye(n) + 0.3 * rng.standard_normal((n, n))), 0)
    M = np.column_stack([M, np.ones(m)])
    dense = rng.standard_normal((r, n + 1))
    return M, Gram.from_arrays(M, M @ dense.T), dense


@pytest.mark.parametrize("rule", [sparsegpt, alps])
def test_other_pruners_keep_their_counts_and_the_bias(rule):
    _, gram, dense = correlated()
    counts = np.arange(12) * 3  # none to 33 of 40
    found = rule(gram, dense, counts, 1, None)
    assert (found.mask[:, :40].sum(axis=1) == counts).all()
    assert found.mask[:, 40].all()
    assert not found.coef[~found.mask].any()
    everything = rule(gram, dense, np.full(12, 40), 1, None)
    np.testing.assert_allclose(everything.coef, dense, atol=1e-9 if rule is sparsegpt else 1e-5)


def test_sparsegpt_by_hand():
    """Two columns, one dropped: the other takes up its part by the damped inverse."""
    gram = Gram.from_moments([[2.0, 1.0], [1.0, 3.0]], [[3.0, 4.0]], [7.0], 10)
    dense = np.array([[0.1, 2.0]])
    found = sparsegpt(gram, dense, np.array([1]), 0, None)
    H = gram.gram + 0.01 * 2.5 * np.eye(2)
    assert found.mask.tolist() == [[False, True]]
    # The least of (w - dense)' H (w - dense) with w_0 = 0.
    np.testing.assert_allclose(found.coef[0], [0.0, 2.0 + 0.1 * H[1, 0] / H[1, 1]], rtol=1e-12)


def test_alps_refits_on_its_support_and_finds_a_planted_one():
    M, _, _ = correlated()
    rng = np.random.default_rng(1)
    planted = np.zeros((6, 41))
    for row in planted:
        row[rng.choice(40, 8, replace=False)] = rng.choice([-1.0, 1.0], 8) * rng.uniform(1, 2, 8)
    gram = Gram.from_arrays(M, M @ planted.T)
    found = alps(gram, planted + 0.05 * rng.standard_normal(planted.shape), np.full(6, 8), 1, None)
    assert ((planted != 0)[:, :40] == found.mask[:, :40]).all()
    np.testing.assert_allclose(found.coef, planted, atol=0.02)


def test_the_order_of_pruners_on_correlated_columns():
    """ALPS is better than SparseGPT, and that than masking by magnitude."""
    _, gram, dense = correlated()
    counts = np.full(12, 12)
    loss = {
        rule.__name__: losses(gram, np.where(found.mask, found.coef, 0.0)).sum()
        for rule in (sparsegpt, alps)
        for found in [rule(gram, dense, counts, 1, None)]
    }
    masked = np.where(magnitude(gram, dense, counts, 1).mask, dense, 0.0)
    assert loss["alps"] < loss["sparsegpt"] < losses(gram, masked).sum()
