import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cimf.data import corpora
from cimf.data.datasets import Dataset
from cimf.data.networks import Pretrained
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
        "table.csv", "table.md", "layers.txt", "accuracy.png", "layers.png",
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
