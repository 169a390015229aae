import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from cimf.data import datasets
from cimf.studies.kappa_sweep import KAPPAS
from experiments import fashion
from experiments.__main__ import app


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The same experiment on a small synthetic data set, with a cache folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "fashion_mnist", lambda: datasets.synthetic(600, 12, 3))
    monkeypatch.setattr(datasets, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(fashion, "SIZES", (12, 8, 6, 3))
    monkeypatch.setattr(fashion, "CALIBRATION", 400)
    return tmp_path


def test_fashion_composes_a_sweep_and_keeps_its_network(small):
    result = CliRunner().invoke(app, ["fashion"])
    assert result.exit_code == 0, result.output
    table = pd.read_csv("results/fashion/sweep.csv")
    assert len(table) == len(KAPPAS) * len(fashion.CONFIGURATIONS)
    assert (table["certified"] == table["rows"]).all()
    assert set(zip(table["design"], table["rescale"], strict=True)) == set(fashion.CONFIGURATIONS)
    record = json.loads((small / "results/fashion/manifest.json").read_text())
    assert record["samples"]["calibration"] == 400
    (cached,) = (small / "cache/networks").iterdir()
    before, digest = cached.stat().st_mtime_ns, record["network"]["sha256"]

    assert CliRunner().invoke(app, ["fashion"]).exit_code == 0
    assert cached.stat().st_mtime_ns == before
    cached.write_bytes(cached.read_bytes()[:100])
    assert CliRunner().invoke(app, ["fashion"]).exit_code == 0, "a damaged cache is trained anew"
    record = json.loads((small / "results/fashion/manifest.json").read_text())
    assert record["network"]["sha256"] == digest
    assert CliRunner().invoke(app, ["fashion", "--seed", "1"]).exit_code == 1


def test_missing_data_is_one_line(small, monkeypatch):
    def missing():
        raise datasets.DataError("Fashion-MNIST is not available: do this")

    monkeypatch.setattr(datasets, "fashion_mnist", missing)
    result = CliRunner().invoke(app, ["fashion"])
    assert result.exit_code == 1
    assert result.output.strip() == "error: Fashion-MNIST is not available: do this"
