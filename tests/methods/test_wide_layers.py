"""Rows of wide layers: ADMM, conjugate gradients and blocks against the exact ways."""

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError
from cimf.methods.baselines.alps import alps
from cimf.methods.baselines.sparsegpt import sparsegpt
from cimf.methods.layered import conjugate_gradients, cost
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.admm import admm, unit_columns
from cimf.methods.layered.block_elimination import block_elimination
from cimf.methods.layered.kernels import keep_largest
from cimf.methods.layered.supports import SUPPORTS
from cimf.statistics import Gram
from cimf.studies.prune_run import run_prune


def layer(n=24, r=6, seed=0, scale=1.0):
    """Return damped statistics with a bias, and the rows, of correlated ReLU inputs."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((6 * n, 4)) @ rng.standard_normal((4, n))
    design = np.maximum(inputs + rng.standard_normal((6 * n, n)), 0.0)
    design = np.column_stack([design, np.ones(6 * n)])
    dense = scale * rng.standard_normal((r, n + 1))
    return rows.damped(Gram.from_arrays(design, design @ dense.T), dense, 1e-4, 1), dense


def error(gram, mask):
    return float(rows.losses(gram, rows.polished(gram, mask, 1)[0]).sum())


def test_the_largest_entries_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    point, dual = rng.integers(-4, 5, (2, 60, 17)).astype(np.float32)  # many ties
    counts = np.arange(60) % 18
    sparse, least = np.empty_like(point), np.zeros(60, np.float32)
    inside = np.zeros(point.shape, dtype=bool)
    total = point + dual
    for _ in range(2):  # at the second call only what is near the last threshold is sorted
        before, rest = inside.copy(), dual.copy()
        changed = keep_largest(point.copy(), sparse, rest, inside, counts, least)
        np.testing.assert_array_equal(sparse + rest, total)
        assert changed == (inside != before).sum()
        assert (inside.sum(axis=1) == counts).all()
        for i, k in enumerate(counts):
            kept = np.sort(np.abs(total[i]))[::-1][:k]
            np.testing.assert_array_equal(np.sort(np.abs(total[i, inside[i]]))[::-1], kept)
        np.testing.assert_array_equal(sparse, np.where(inside, total, 0.0))


def test_free_columns_are_eliminated_by_least_squares():
    gram, dense = layer()
    unit = unit_columns(gram, 1)
    mask = np.ones(dense.shape, dtype=bool)
    full, _ = rows.polished(gram, mask, 1)
    np.testing.assert_allclose(np.diagonal(unit.gram), 1.0)
    found = np.linalg.solve(unit.gram, unit.corr.T).T / unit.norm
    np.testing.assert_allclose(found, full[:, :-1], atol=1e-8)


@pytest.mark.parametrize("zeros", [0.5, 0.7, 0.9])
def test_admm_is_no_worse_than_its_peers(zeros):
    gram, dense = layer(96, 32)
    counts = np.full(32, round((1 - zeros) * 96))
    mask = admm(gram, dense, counts, 1, 1)
    assert (mask[:, :-1].sum(axis=1) == counts).all()
    assert mask[:, -1].all()
    for rule in (alps, sparsegpt, SUPPORTS["obs"]):
        assert error(gram, mask) <= error(gram, rule(gram, dense, counts, 1, 1).mask), rule


def test_admm_takes_any_counts_and_knows_no_units():
    gram, dense = layer()
    counts = np.array([0, 1, 5, 12, 23, 24])
    mask = admm(gram, dense, counts, 1, 1)
    assert (mask[:, :-1].sum(axis=1) == counts).all()
    np.testing.assert_array_equal(admm(gram, dense, counts, 1, 2), mask)
    tiny, small = layer(scale=2.0**-120)
    np.testing.assert_array_equal(admm(tiny, small, counts, 1, 1), mask)
    with pytest.raises(InputError, match="NaN or infinity"):
        admm(gram, np.full_like(dense, np.nan), counts, 1, 1)


def test_a_column_that_is_always_zero_and_one_that_is_constant():
    rng = np.random.default_rng(1)
    design = np.column_stack([rng.standard_normal((80, 10)), np.zeros(80), np.full((80, 2), 1.0)])
    dense = rng.standard_normal((3, 13))
    dense[:, 10:12] = 0.0
    gram = rows.damped(Gram.from_arrays(design, design @ dense.T), dense, 1e-4, 1)
    mask = admm(gram, dense, np.full(3, 10), 1, 1)
    assert mask[:, :10].all()
    assert not mask[:, 10:12].any()


def test_conjugate_gradients_are_the_least_squares(monkeypatch):
    gram, dense = layer(60, 8)
    mask = admm(gram, dense, np.full(8, 30), 1, 1)
    exact, _ = rows.polished(gram, mask, 1)
    monkeypatch.setattr(conjugate_gradients, "affordable_steps", lambda n, k: 400)
    coef, gap = conjugate_gradients.fitted(gram, mask, 1, 1)
    np.testing.assert_allclose(coef, exact, atol=1e-4 * np.abs(exact).max())
    assert not coef[~mask].any()
    excess = (rows.losses(gram, coef) - rows.losses(gram, exact)) / gram.target_sq
    assert (gap <= 1e-12).all()
    assert (excess <= gap + 1e-12).all()
    # Rows that the steps do not finish are factorised.
    monkeypatch.setattr(conjugate_gradients, "affordable_steps", lambda n, k: 1)
    monkeypatch.setattr(conjugate_gradients, "_WORTH", 1)
    np.testing.assert_array_equal(conjugate_gradients.fitted(gram, mask, 1, 1)[0], exact)


def test_the_gap_of_conjugate_gradients_bounds_the_excess(monkeypatch):
    gram, dense = layer(60, 8)
    mask = admm(gram, dense, np.full(8, 30), 1, 1)
    exact, _ = rows.polished(gram, mask, 1)
    monkeypatch.setattr(conjugate_gradients, "affordable_steps", lambda n, k: 40)
    monkeypatch.setattr(conjugate_gradients, "_TOLERANCE", 1e-3)
    coef, gap = conjugate_gradients.fitted(gram, mask, 1, 1)
    excess = (rows.losses(gram, coef) - rows.losses(gram, exact)) / gram.target_sq
    assert excess.max() > 1e-9, "otherwise nothing was tested"
    assert (excess <= gap).all()


def test_blocks_give_the_loss_curves_of_exact_elimination():
    gram, _ = layer(100, 12)
    order, increase = block_elimination(gram, 1, 1)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(100), (12, 1)))
    assert (increase >= 0).all()
    _, exact = rows.elimination(gram, 1, 1)
    curve, truth = increase.cumsum(axis=1), exact.cumsum(axis=1)
    np.testing.assert_allclose(curve[:, -1], truth[:, -1], rtol=1e-4)  # every column gone
    for place, over in ((69, 1.25), (89, 1.15)):
        ratio = curve[:, place].mean() / truth[:, place].mean()
        assert 0.99 < ratio < over, place


def test_small_layers_stay_exact_and_wide_ones_do_not():
    for size in ((16, 144), (64, 64)):
        assert cost.exact_is_affordable(*size)
    for size in ((64, 288), (256, 256), (4096, 4096)):
        assert not cost.exact_is_affordable(*size)
    narrow, dense = layer()
    counts = np.full(6, 8)
    chosen = SUPPORTS["auto"](narrow, dense, counts, 1, 1)
    assert chosen.rule == "obs"
    np.testing.assert_array_equal(chosen.mask, SUPPORTS["obs"](narrow, dense, counts, 1, 1).mask)
    assert cost.estimated_seconds([(512, 512)], 0.5, True, 1) > cost.estimated_seconds(
        [(512, 512)], 0.5, False, 2
    )


def test_the_report_says_which_rule_chose():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 40), nn.ReLU(), nn.Linear(40, 3))
    u = torch.randn(400, 200)
    report = cimf.prune(net, [u], 0.8, n_jobs=1).report
    assert [record.support for record in report.layers] == ["admm", "obs"]
    assert report.layers[0].exchanges == 0
    assert report.layers[0].polish_gap < 1e-11
    for line, word in zip(str(report).splitlines(), ("support", "admm", "obs"), strict=False):
        assert word in line
    assert report.sparsity["network_weights"] == pytest.approx(0.8, abs=1e-3)


def test_an_estimate_comes_before_the_work(tmp_path, capsys):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 40), nn.ReLU(), nn.Linear(40, 3))
    run_prune(tmp_path, {}, lambda: (net, [torch.randn(300, 200)]), 0.8, options={"n_jobs": 1})
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("rows of 2 layers: about ")
    assert said.endswith("by ADMM: 0 (40 x 200)")


def test_supports_do_not_depend_on_the_number_of_jobs():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(4000, 40)) @ rng.normal(size=(40, 600))
    design = np.maximum(columns + rng.normal(size=(4000, 600)), 0)
    dense = rng.normal(size=(96, 600))
    gram = Gram.from_arrays(design, design @ dense.T)
    counts = np.full(96, 120)
    one, two = (admm(gram, dense, counts, 0, n_jobs) for n_jobs in (1, 2))
    assert one.sum() == 96 * 120
    np.testing.assert_array_equal(one, two)
