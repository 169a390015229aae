import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cimf.data import corpora, datasets, text
from experiments import newsgroups
from experiments.__main__ import app

pytest.importorskip("transformers", reason="needs cimf[text]")

GROUPS = ("cats", "dogs", "birds")
ARGUMENTS = ["newsgroups", "--texts", "40", "--methods", "layered,wanda", "--levels", "0.2,0.6"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The same experiment on random words, with a small network and a cache folder of its own."""
    rng = np.random.default_rng(0)

    def message(label):
        words = [f"{GROUPS[label]}", *(f"w{chr(97 + k)}" for k in rng.integers(0, 9, 12))]
        return f"From: x\nSubject: {GROUPS[label]}\n\n" + " ".join(words[: rng.integers(3, 13)])

    labels = np.sort(rng.integers(0, 3, 90))
    corpus = corpora.Texts(
        "small", tuple(map(message, labels)), labels, tuple(map(message, labels[::2])),
        labels[::2], GROUPS, {},
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpora, "newsgroups", lambda: corpus)
    monkeypatch.setattr(datasets, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(newsgroups, "VOCABULARY", 14)
    monkeypatch.setattr(newsgroups, "LENGTH", 10)
    monkeypatch.setattr(newsgroups, "EPOCHS", 2)
    sizes = {"width": 16, "hidden": 24, "heads": 2, "layers": 2, "dropout": 0.1}
    monkeypatch.setattr(newsgroups, "ARCHITECTURE", sizes)
    return tmp_path


def test_the_experiment_trains_once_and_compares(small):
    result = CliRunner().invoke(app, ARGUMENTS)
    assert result.exit_code == 0, result.output
    table = pd.read_csv("results/newsgroups/table.csv")
    assert list(table["method"]) == ["layered", "wanda"] * 2
    assert np.allclose(table["sparsity_network_weights"], table["target"], atol=1e-3)
    record = json.loads((small / "results/newsgroups/manifest.json").read_text())
    assert record["samples"] == {"calibration": 40, "test": 45}
    trained = {file: file.stat().st_mtime_ns for file in (small / "cache/networks").iterdir()}
    assert trained

    again = CliRunner().invoke(app, [*ARGUMENTS, "--out", "again"])
    assert again.exit_code == 0, again.output
    assert {file: file.stat().st_mtime_ns for file in (small / "cache/networks").iterdir()} == (
        trained
    )
    pd.testing.assert_frame_equal(
        pd.read_csv("again/table.csv").drop(columns="seconds"), table.drop(columns="seconds")
    )


def test_a_checkpoint_replaces_the_training(small):
    from transformers import BertTokenizer

    def save(classes):
        net = text.distilbert(
            vocabulary=20, length=10, classes=classes, width=8, hidden=8, heads=2, layers=1,
            dropout=0.1,
        )  # fmt: skip
        net.model.save_pretrained(f"net-{classes}")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GROUPS, "wa", "wb"]
        BertTokenizer({word: k for k, word in enumerate(words)}).save_pretrained(f"net-{classes}")
        return ["--checkpoint", f"net-{classes}"]

    result = CliRunner().invoke(app, [*ARGUMENTS, *save(3)])
    assert result.exit_code == 0, result.output
    assert not (small / "cache").exists()
    result = CliRunner().invoke(app, [*ARGUMENTS, *save(2), "--out", "other"])
    assert result.exit_code == 1
    assert "'net-2' has 2 classes, 3 are needed" in result.output


def test_a_checkpoint_that_is_not_there_is_one_line(small):
    result = CliRunner().invoke(app, [*ARGUMENTS, "--checkpoint", "no/such/folder"])
    assert result.exit_code == 1
    assert result.output.count("\n") == 1, result.output
    assert "'no/such/folder' cannot be loaded" in result.output
