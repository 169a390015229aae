import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cimf.data import corpora
from cimf.data.datasets import Dataset
from cimf.data.networks import Pretrained
from cimf.errors import RunError
from cimf.methods.base import Task
from cimf.methods.by_name import METHODS, prune_task
from cimf.methods.layered.calibration import Calibration
from cimf.studies import compare
from experiments.__main__ import app


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The same experiment with a small network on small random images."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.random((60, 3, 8, 8), dtype=np.float32)
    labels = rng.integers(0, 4, 60)
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 6, 3, stride=2))
    net.add_module("relu", nn.ReLU())
    net.add_module("flat", nn.Flatten())
    net.add_module("linear", nn.Linear(54, 4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        corpora,
        "cifar10",
        lambda train, test: Dataset("small", images[:train], labels[:train], images, labels, 4),
    )
    monkeypatch.setattr(
        "cimf.data.networks.resnet20_cifar10",
        lambda: Pretrained(net.eval(), (0.5,) * 3, (0.2,) * 3),
    )


ARGUMENTS = ["resnet20", "--images", "60", "--methods", "layered,obs,magnitude-global"]


def test_the_experiment_writes_its_table_figures_and_manifest(small):
    result = CliRunner().invoke(app, [*ARGUMENTS, "--levels", "0.1,0.4"])
    assert result.exit_code == 0, result.output
    table = pd.read_csv("results/resnet20/table.csv")
    assert len(table) == 6
    assert np.allclose(table["sparsity_network_weights"], table["target"], atol=1e-3)
    with open("results/resnet20/manifest.json", encoding="utf-8") as stream:
        manifest = json.load(stream)
    assert set(manifest["files"]) == {
        "table.csv", "table.parquet", "table.md", "table.tex", "layers.txt",
        "accuracy.png", "accuracy.pdf", "layers.png", "layers.pdf", "report.html",
    }  # fmt: skip
    with open("results/resnet20/layers.txt", encoding="utf-8") as stream:
        assert "mismatch" in stream.read()
    again = CliRunner().invoke(app, [*ARGUMENTS, "--levels", "0.3"])
    assert again.exit_code == 1
    assert "holds another run" in again.output


def test_a_target_below_the_dense_head_is_one_line(small):
    result = CliRunner().invoke(app, [*ARGUMENTS, "--levels", "0.9"])
    assert result.exit_code == 1
    assert "more weights than" in result.output or "at most" in result.output


def test_an_interrupted_table_is_continued(small, monkeypatch):
    calls = []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    original = compare.prune_task
    monkeypatch.setattr(compare, "prune_task", interrupted)
    result = CliRunner().invoke(app, [*ARGUMENTS, "--levels", "0.1,0.4"])
    assert result.exit_code == 130
    result = CliRunner().invoke(app, [*ARGUMENTS, "--levels", "0.1,0.4"])
    assert result.exit_code == 0, result.output
    assert "2 points are there from an interrupted run" in result.output
    assert len(calls) == 3 + 4
    table = pd.read_csv("results/resnet20/table.csv")
    assert len(table) == 6
    assert list(table.columns[:3]) == ["method", "target", "accuracy"]


def test_accuracy_against_the_number_of_images(small):
    arguments = ["resnet20-calibration", "--images", "55,60", "--levels", "0.4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    table = pd.read_csv("results/resnet20-calibration/table.csv")
    assert len(table) == 2 * 2
    assert set(table["images"]) == {55, 60}


def test_every_variant_keeps_the_same_number_of_weights(small):
    result = CliRunner().invoke(app, ["resnet20-ablation", "--images", "60", "--levels", "0.2"])
    assert result.exit_code == 0, result.output
    table = pd.read_csv("results/resnet20-ablation/table.csv")
    assert table["nonzero_weights"].nunique() == 1
    balls = table[table["variant"].str.startswith("ball")]
    assert (balls["certified_rows"] == balls["solved_rows"]).all()
    assert (balls["solved_rows"] == 10).all()


@pytest.mark.parametrize(
    "wrong", [["--levels", "abc"], ["--levels", "1.5"], ["--levels", ""], ["--methods", "foo"]]
)
def test_wrong_options_are_named_before_anything_is_loaded(wrong, monkeypatch, tmp_path):
    monkeypatch.setattr(corpora, "cifar10", lambda *_: pytest.fail("data was read"))
    done = CliRunner().invoke(app, ["resnet20", "--out", str(tmp_path / "out"), *wrong])
    assert done.exit_code == 1
    assert wrong[1] in done.output
    assert not (tmp_path / "out").exists()


@pytest.fixture
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    u = torch.randn(90, 6)
    return compare.Case(net, u, u, net(u).argmax(1), {})


def test_points_share_statistics_only_where_samples_and_options_are_equal(
    case, tmp_path, monkeypatch
):
    seen = []

    def spy(task, sparsity, method, **options):
        record = METHODS[method].options(**options)
        seen.append((Calibration.of(task, record.statistics), task.n_samples))
        return prune_task(task, sparsity, method, **options)

    monkeypatch.setattr(compare, "prune_task", spy)
    kinds = [
        (None, {}), (None, {}), (None, {"damping": 1e-2}),
        (40, {"damping": 1e-2}), (40, {}), (40, {"swaps": False}),
    ]  # fmt: skip
    points = [
        compare.Point({"k": k}, "layered", 0.5, {**compare.FAST, **options}, samples)
        for k, (samples, options) in enumerate(kinds)
    ]
    with compare.claim(tmp_path, {}, False) as run:
        compare.measure(run, case, points)
    shared = [first[0] is second[0] for first, second in pairwise(seen)]
    assert shared == [True, False, False, False, True]
    assert [found.statistics.damping for found, _ in seen] == [1e-4, 1e-4, 1e-2, 1e-2, 1e-4, 1e-4]
    assert [samples for _, samples in seen] == [90, 90, 90, 40, 40, 40]
    assert all(found.statistics.precision == torch.float32 for found, _ in seen), "of `FAST`"


def test_a_row_sums_over_the_layers_and_takes_the_worst_gap(case, tmp_path):
    with compare.claim(tmp_path, {}, False) as run:
        (ball, obs) = compare.measure(run, case, [
            compare.Point({"support": name}, "layered", 0.6, {**compare.FAST, "support": name})
            for name in ("ball", "obs")
        ])  # fmt: skip
    task = Task(case.network, case.calibration)
    result = prune_task(task, 0.6, support="ball", **compare.FAST)
    first, second = result.report.layers
    assert first.worst_gap != second.worst_gap, "otherwise nothing was tested"
    assert ball["worst_gap"] == max(first.worst_gap, second.worst_gap)
    assert ball["solved_rows"] == ball["certified_rows"] == 11
    assert obs["worst_gap"] is None
    assert obs["solved_rows"] == 0
    assert ball["exchanges"] == first.exchanges + second.exchanges
    assert ball["unread_channels"] == first.unread + second.unread
    assert ball["emptied_rows"] == len(first.emptied) + len(second.emptied)
    assert ball["head_mismatch"] == second.mismatch
    assert ball["nonzero_weights"] == first.kept + second.kept
    right = result.network(case.inputs).argmax(1) == case.labels
    assert ball["accuracy"] == ball["agreement"] == right.double().mean(), "labels are its own"


def test_accuracy_is_against_labels_and_agreement_against_the_network(case, tmp_path):
    wrong = replace(case, labels=(case.labels + 1) % 3)
    with compare.claim(tmp_path, {}, False) as run:
        (row,) = compare.measure(run, wrong, [compare.Point({"k": 0}, "layered", 0.0)])
    assert wrong.dense == 0.0
    assert row["accuracy"] == 0.0
    assert row["agreement"] == 1.0


def test_the_options_of_all_points_are_settings(tmp_path, monkeypatch):
    with compare.claim(tmp_path, {"a": 1}, False) as run:
        run.finish({})
    monkeypatch.setitem(compare.FAST, "positions", 32)
    with pytest.raises(RunError, match=r"\(other options\)"):
        compare.claim(tmp_path, {"a": 1}, False)


def test_a_failing_figure_loses_no_table(small, monkeypatch):
    monkeypatch.setattr(compare, "plot_lines", lambda *_, **__: 1 / 0)
    result = CliRunner().invoke(app, [*ARGUMENTS, "--levels", "0.4"])
    assert isinstance(result.exception, ZeroDivisionError)
    with open("results/resnet20/manifest.json", encoding="utf-8") as stream:
        formats = ("csv", "md", "parquet", "tex")
        names = ["layers.txt", "report.html", *(f"table.{f}" for f in formats)]
        assert json.load(stream)["files"] == names


def test_percent_finds_the_row_of_all_labels():
    rows = [{"method": "a", "target": 0.5, "accuracy": 0.5}, {"method": "a", "target": 0.9,
             "accuracy": 0.98765}, {"method": "b", "target": 0.9, "accuracy": 0.1}]  # fmt: skip
    assert compare.percent(rows, method="a", target=0.9) == "98.77"
    assert compare.percent(rows, method="b", target=0.5) == "-"
