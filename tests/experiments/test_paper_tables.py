"""The paper's tables and figures from the command line, on a tiny network."""

import json

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cimf.studies import solver_times
from cimf.studies.case import Case
from experiments import figure4, trained_networks
from experiments.__main__ import app


def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    u = torch.randn(130, 6)
    labels = net(u).argmax(1)
    train = torch.randn(200, 6)
    return Case(net.eval(), train, u, labels, {"name": "tiny"}, net(train).argmax(1))


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(trained_networks.NETWORKS, "digits", ("tiny", case))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_table1_has_every_step_at_every_kappa(small):
    result = run("table1")
    assert result.exit_code == 0, result.output
    folder = small / "results/table1/digits"
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 6 * 6
    assert (table["certified_rows"] == 16).all()
    record = json.loads((folder / "manifest.json").read_text())
    formats = ("csv", "parquet", "md", "tex", "png", "pdf")
    assert set(record["files"]) == {
        "layers.txt", "report.html", *(f"table.{kind}" for kind in formats)
    }  # fmt: skip
    assert record["settings"]["calibration"] == 1000
    assert record["wall_seconds"] > 0


def test_another_network_is_refused_before_any_work(small):
    result = run("table1", "--network", "digits,mnist")
    assert result.exit_code == 1
    assert "network 'mnist'" in result.output
    assert not (small / "results").exists()


def test_figures_2_and_3_follow_the_bisection(small):
    for name, figures in (("figure2", {"iteration"}), ("figure3", {"iteration", "passes"})):
        result = run(name)
        assert result.exit_code == 0, result.output
        folder = small / "results" / name / "digits"
        record = json.loads((folder / "manifest.json").read_text())
        assert {name[:-4] for name in record["files"] if name.endswith(".png")} == figures
        assert {"curves.csv", "curves.md"} < set(record["files"])
        assert record["settings"]["kappas"] == (
            [0.005, 0.01, 0.05, 0.1, 0.5, 0.99] if name == "figure2" else [0.1, 0.5, 1.0]
        )


def test_table3_times_every_solver(small, monkeypatch):
    monkeypatch.delitem(solver_times.SOLVERS, "CVXPY")
    result = run("table3")
    assert result.exit_code == 0, result.output
    record = json.loads((small / "results/table3/digits/manifest.json").read_text())
    assert {"times.csv", "table.csv", "table.md", "table.png"} < set(record["files"])
    assert record["settings"]["shares"] == [0.2, 0.3]


def test_figure4_has_three_nested_seeds(small, monkeypatch):
    plan = {"shares": (0.5, 1.0), "kappas": (0.5,)}
    monkeypatch.setattr(figure4, "_PLANS", {"digits": plan})
    result = run("figure4")
    assert result.exit_code == 0, result.output
    folder = small / "results/figure4/digits"
    table = pd.read_csv(folder / "table.csv")
    assert len(table) == 2 * 2 * 3
    assert sorted(set(table["seed"])) == [0, 1, 2]
    assert {path.name for path in folder.glob("*.png")} == {
        "rescaled.png", "rescaled-corrected-polished.png",
    }  # fmt: skip
