"""Samples that do not fit in memory: the same results chunk by chunk, and from several machines."""

import os
import pickle
import re
import signal
import tracemalloc
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch

import cimf
from cimf.data import datasets
from cimf.errors import InputError
from cimf.methods.stacked import samples as streamed
from cimf.methods.stacked.captured import Reference, joined, least_squares
from cimf.methods.stacked.moments import Moments, moments
from cimf.methods.stacked.path_options import PathOptions
from cimf.train.supervised import Schedule, batches, mlp, trained_mlp

SIZES = (6, 10, 7, 3)
# States after and before their activation, inputs with the bias, outputs.
WIDTH = 2 * 17 + 7 + 3


@pytest.fixture(scope="module")
def data():
    return datasets.synthetic(n_samples=12_000, n_features=6, n_classes=3, seed=1)


@pytest.fixture(scope="module")
def net(data):
    schedule = Schedule(epochs=3, learning_rate=1e-2, batch_size=256)
    return trained_mlp(SIZES, data, seed=0, schedule=schedule)


def capture(net, data, size=500):
    return Reference.capture(
        net,
        batches(data.train_inputs, data.train_labels, size),
        iter(batches(data.test_inputs, data.test_labels, size)),
    )


@pytest.fixture(scope="module")
def whole(net, data):
    return capture(net, data)


def chunks_of(monkeypatch, n_samples):
    monkeypatch.setattr(streamed, "_CHUNK", 8 * WIDTH * n_samples)


def assert_reports_agree(found, expected, rtol):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            np.hstack([a.model.C, a.model.D]), np.hstack([b.model.C, b.model.D]),
            rtol=1e-7, atol=1e-9,
        )  # fmt: skip
        assert a.report.notes == b.report.notes
        first, second = a.report.row(), b.report.row()
        for name, value in second.items():
            if isinstance(value, float) and name not in ("worst_gap", "worst_violation"):
                assert first[name] == pytest.approx(value, rel=rtol, abs=1e-9), name
            elif not isinstance(value, float):
                assert first[name] == value, name


@pytest.mark.parametrize("design", ["causal", "full"])
def test_many_chunks_give_the_same_rows_to_the_bit(whole, net, data, design, monkeypatch):
    chunks_of(monkeypatch, 5000)
    parts = capture(net, data)
    sizes = [states.n_samples for states in parts.calibration.chunks()]
    assert len(sizes) > 1
    assert sizes[0] == 4096, "whole blocks of the statistics"
    assert sum(sizes) == parts.calibration.n_samples == len(data.train_inputs)
    kappas = [0.1, 0.99]
    found, expected = (cimf.sparsify_path(r, kappas, design) for r in (parts, whole))
    for a, b in zip(found, expected, strict=True):
        for name in ("coef", "lam", "method"):
            np.testing.assert_array_equal(
                getattr(a.report.solution, name), getattr(b.report.solution, name)
            )
    assert_reports_agree(found, expected, 1e-9)


@pytest.mark.parametrize("options", [{}, {"refit": False}, {"output_inputs": True}])
@pytest.mark.parametrize(("n_samples", "batch"), [(701, 500), (300, 100_000)])
def test_chunks_that_cut_batches(whole, net, data, n_samples, batch, options, monkeypatch):
    chunks_of(monkeypatch, n_samples)
    parts = capture(net, data, batch)
    sizes = [states.n_samples for states in parts.calibration.chunks()]
    assert set(sizes[:-1]) == {n_samples}
    found, expected = (
        cimf.sparsify_path(r, [0.3], "causal", options=PathOptions(**options))
        for r in (parts, whole)
    )
    assert_reports_agree(found, expected, 1e-6)
    assert parts.calibration.reconstruction.worst < 1e-12


def test_without_test_samples_the_calibration_samples_are_evaluated(net, data, monkeypatch):
    chunks_of(monkeypatch, 701)
    report = cimf.sparsify(net, batches(data.train_inputs, data.train_labels)).report
    assert report.evaluation.converged == report.evaluation.samples == len(data.train_inputs)
    assert report.dense_accuracy is report.control_accuracy is report.evaluation.accuracy is None


def test_memory_does_not_grow_with_the_samples(net, monkeypatch):
    chunks_of(monkeypatch, 1000)
    inputs = torch.randn(16_000, 6, generator=torch.Generator().manual_seed(0))
    peaks = []
    cimf.sparsify(net, [inputs[:4000]], design="causal", n_jobs=1)  # compiles and imports
    for m in (4000, 16_000):
        tracemalloc.start()
        cimf.sparsify(net, [inputs[:m]], design="causal", n_jobs=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    inputs_grow = 4 * 6 * 12_000  # kept in their own dtype
    assert 8 * WIDTH * 12_000 > 4e6
    assert peaks[1] - peaks[0] < inputs_grow + 2e5, peaks


def test_a_wrong_batch_is_found_before_anything_is_solved(net, data, monkeypatch):
    chunks_of(monkeypatch, 500)
    wrong = torch.from_numpy(data.train_inputs[:2000].copy())
    wrong[-1, 2] = torch.nan
    with pytest.raises(InputError, match="1 NaN"):
        Reference.capture(net, [wrong])


def test_joined_problems_keep_directions_that_moments_lose():
    rng = np.random.default_rng(0)
    common = rng.standard_normal((1, 900))
    regressors = np.vstack([common, common + 1e-9 * rng.standard_normal((1, 900))])
    truth = np.array([[2.0, -1.0]])
    targets = truth @ regressors
    parts = [(regressors[:, k : k + 300], targets[:, k : k + 300]) for k in (0, 300, 600)]
    found, wanted = reduce(joined, parts)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(least_squares(found, wanted), truth, rtol=1e-5)
    for W in (truth, np.zeros((1, 2)), np.array([[1.0, 1.0]])):
        assert np.linalg.norm(wanted - W @ found) == pytest.approx(
            np.linalg.norm(targets - W @ regressors), rel=1e-12, abs=1e-12
        )
    assert np.linalg.cond(regressors @ regressors.T) > 1e15, "moments would not tell"


def test_a_network_that_was_changed_is_refused():
    changing = mlp((4, 5, 3), seed=0)
    reference = Reference.capture(changing, [torch.randn(60, 4)])
    with torch.no_grad():
        changing[0].bias[0] += 1e-3
    with pytest.raises(InputError, match="changed after it was captured"):
        cimf.sparsify_path(reference, [0.5])


def split(data, parts=4):
    return [
        batches(*pair)
        for pair in zip(
            np.split(data.train_inputs[:8000], parts),
            np.split(data.train_labels[:8000], parts),
            strict=True,
        )
    ]


@pytest.mark.parametrize("rescale", [True, False])
def test_moments_of_parts_add_up(net, data, rescale):
    parts = [moments(net, part, rescale) for part in split(data)]
    merged = reduce(Moments.merge, [pickle.loads(pickle.dumps(part)) for part in parts])
    one = moments(net, batches(data.train_inputs[:8000], data.train_labels[:8000]), rescale)
    assert merged.gram.n_samples == one.gram.n_samples == 8000
    for name in ("gram", "corr", "target_sq"):
        expected = getattr(one.gram, name)
        np.testing.assert_allclose(
            getattr(merged.gram, name), expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max()
        )
    assert parts[0].gram.n_samples == 2000, "merging changes no part"
    # (C, D) are fitted to the samples at hand, the rows to the moments of all.
    reference = Reference.capture(net, split(data)[0])
    found = cimf.sparsify_path(reference, [0.5], "causal", rescale, moments=merged)[0].report
    direct = cimf.sparsify(
        net, batches(data.train_inputs[:8000], data.train_labels[:8000]), 0.5, "causal", rescale
    ).report
    assert found.certified == 17
    np.testing.assert_allclose(found.solution.coef, direct.solution.coef, rtol=1e-6, atol=1e-9)


def test_moments_that_do_not_fit_are_refused(net, data):
    part = split(data)[0]
    own, plain = moments(net, part), moments(net, part, rescale=False)
    other = moments(mlp(SIZES, seed=3), part)
    with pytest.raises(InputError, match="another network"):
        own.merge(other)
    with pytest.raises(InputError, match="other units"):
        own.merge(plain)
    reference = Reference.capture(net, part)
    with pytest.raises(InputError, match="another network"):
        cimf.sparsify_path(reference, [0.5], moments=other)
    with pytest.raises(InputError, match="other units"):
        cimf.sparsify_path(reference, [0.5], moments=plain)


def first_takes_its_worker_down(net, part, file):
    """Moments of one part; whoever takes the first one dies on the way, once."""
    if file is not None and not os.path.exists(file):
        with open(file, "w", encoding="utf-8"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return moments(net, part)


def test_moments_from_two_workers_one_of_them_killed(net, data, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra [cluster]")
    expected = reduce(Moments.merge, [moments(net, part) for part in split(data)])
    file = str(tmp_path / "killed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        victims = set(client.scheduler_info()["workers"])
        tasks = [
            client.submit(first_takes_its_worker_down, net, part, file if k == 1 else None)
            for k, part in enumerate(split(data))
        ]
        killed = reduce(Moments.merge, client.gather(tasks))
        assert victims - set(client.scheduler_info()["workers"]), "nobody was killed"
        found = run_the_page(client=client, net=net, shards=split(data), test=None)
    for merged in (killed, found["merged"]):
        for name in ("gram", "corr", "target_sq", "n_samples"):
            np.testing.assert_array_equal(getattr(merged.gram, name), getattr(expected.gram, name))
        np.testing.assert_array_equal(merged.scale, expected.scale)
    assert found["result"].report.certified == 17


def run_the_page(**names):
    """Run the section of docs/parallel.md; return its names."""
    text = (Path(__file__).parents[2] / "docs" / "parallel.md").read_text(encoding="utf-8")
    section = text[text.index("## Calibration samples") :]
    exec(re.search(r"```python\n(.*?)```", section, flags=re.DOTALL).group(1), names)
    return names
