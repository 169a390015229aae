"""The experiments on methods that train: files, columns, and what an interruption keeps."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from cimf.data.networks import LeNet5
from cimf.methods.base import Task
from cimf.studies import gate_control, trained_comparison
from cimf.studies.case import Case
from cimf.studies.trained_rows import costs
from experiments import gate_runs, table2, trained_networks
from experiments.__main__ import app

G = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=G)
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    return Case(net.eval(), X, X[:40], LABELS[:40], {"name": "small"}, LABELS)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(trained_networks.NETWORKS, "digits", ("small", case))
    plan = {"densities": (0.5,), "seeds": (0, 1), "searched": (0.5,), "options": {"epochs": 3}}
    monkeypatch.setitem(gate_runs._PLANS, "digits", plan)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.filterwarnings("ignore:the gates ended:UserWarning")
def test_gates_writes_every_run_and_says_which_met_their_target(small):
    result = run("gates")
    assert result.exit_code == 0, result.output
    folder = small / "results/gates/digits"
    table = pd.read_csv(folder / "table.csv")
    constrained = table[table["constraint"].isin(gate_control.CONSTRAINTS)]
    assert len(constrained) == 2 * 2
    assert (constrained["sparsity_network_weights"] == 0.5).all()
    near = (constrained["median_density"] - 0.5).abs() <= 0.005 + 1e-9
    assert (constrained["met"].astype(bool) == near).all()
    assert len(table) == 4 + len(gate_control.PENALTIES)
    record = json.loads((folder / "manifest.json").read_text())
    assert {"table.csv", "table.md", "layers.txt", "density.png"} < set(record["files"])
    assert "bisection" in (folder / "table.md").read_text()


@pytest.mark.filterwarnings("ignore:the gates ended:UserWarning")
def test_an_interrupted_control_goes_on(small, monkeypatch):
    calls = []
    plain = gate_control.bisect_penalty

    def broken(*arguments, **given):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(gate_control, "bisect_penalty", broken)
    assert run("gates").exit_code == 130
    monkeypatch.setattr(gate_control, "bisect_penalty", plain)
    points = json.loads((small / "results/gates/digits/unfinished.json").read_text())["points"]
    assert len(points.keys() - {"origin"}) == 4 + len(gate_control.PENALTIES)
    result = run("gates")
    assert result.exit_code == 0, result.output
    assert "points are there from an interrupted run" in result.output


@pytest.mark.filterwarnings("ignore:the gates ended:UserWarning")
def test_dynamics_has_a_row_per_epoch_and_variant(small):
    result = run("gates-dynamics")
    assert result.exit_code == 0, result.output
    epochs = pd.read_csv(small / "results/gates-dynamics/epochs.csv")
    assert set(epochs["variant"]) == set(gate_control.VARIANTS)
    assert (epochs.groupby("variant").size() == 40).all()
    assert {"loss", "density", "median density", "multiplier"} <= set(epochs)
    assert (small / "results/gates-dynamics/dynamics.png").exists()


@pytest.mark.filterwarnings("ignore:the (gates ended|sparsity is):UserWarning")
def test_table2_keeps_methods_that_train_apart(small, monkeypatch):
    plain = trained_comparison.trained_comparison

    def short(name, folder, load, plan, overwrite):
        tunings = [replace(t, options={"epochs": 2}) for t in plan.tunings]
        less = replace(plan, training={"batch_size": 60, "epochs": 3}, tune_epochs=1)
        return plain(name, folder, load, replace(less, tunings=tunings), overwrite)

    monkeypatch.setattr(trained_comparison, "trained_comparison", short)
    result = run("table2")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(small / "results/table2/digits/table.csv").set_index(["method", "target"])
    assert table.loc[("sss", 0.5), "epochs"] == 3
    assert table.loc[("layered + labels", 0.9), "epochs"] == 2
    assert pd.isna(table.loc[("obs", 0.5), "epochs"])
    tuned = table.loc[("layered + distillation", 0.9), "sparsity_network_weights"]
    assert tuned == table.loc[("layered", 0.9), "sparsity_network_weights"]
    text = (small / "results/table2/digits/table.md").read_text()
    trained, one_shot = text.split("## One shot")
    assert "| obs |" in one_shot
    assert "| obs |" not in trained
    wanted = {"sss": "yes", "gates, channels": "yes", "layered + labels": "yes",
              "layered + distillation": "no"}  # fmt: skip
    for method, labels in wanted.items():
        assert f"| {method} |" not in one_shot
        lines = [line for line in text.splitlines() if line.startswith(f"| {method} |")]
        assert lines
        assert all(line.endswith(f"| {labels} |") for line in lines)
    assert table2.main.__doc__


def test_costs_by_hand():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    graph = Task(net, torch.randn(4, 2, 4, 4, generator=G)).graph
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].weight[:, 1] = 0.0
        net[3].weight[:, :3] = 0.0
    found = costs(graph, net)
    left, total = 4 * 2 * 9 + 18, 4 * 54 + 24
    assert found["multiply_adds"] == pytest.approx(left / total)
    assert found["zero_structures"] == pytest.approx((1 + 1 + 3) / (3 + 2 + 2 + 12))


def test_lenet_has_the_size_of_the_papers():
    net = LeNet5()
    assert sum(p.numel() for p in net.parameters() if p.ndim > 1) == 430_500
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
