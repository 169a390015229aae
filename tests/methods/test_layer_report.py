"""The report of a layered run against a recount of the network that came back."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.data.networks import BasicBlock
from cimf.errors import InputError
from cimf.evaluate.held_out import HeldOut
from cimf.judge import DENOMINATORS


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        BasicBlock(6, 8, 2, projection=True, relu=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    u = torch.randn(64, 2, 8, 8)
    net(u)  # running statistics
    return net.eval(), u


@pytest.fixture(scope="module")
def result(trained):
    net, u = trained
    labels = net(u).argmax(1)
    return cimf.prune(
        net, [u], 0.95, support="ball", n_jobs=1,
        test=[(u[:40], labels[:40]), (u[40:], labels[40:])],
    )  # fmt: skip


def test_emptied_rows_and_unread_channels_are_those_of_the_network(result):
    emptied = unread = 0
    for layer in result.report.layers:
        weight = result.network.get_submodule(layer.path).weight.detach()
        rows = (weight.flatten(1) == 0).all(dim=1)
        assert layer.emptied == tuple(torch.nonzero(rows).flatten().tolist())
        channels = (weight.transpose(0, 1).flatten(1) == 0).all(dim=1)
        assert layer.unread == int(channels.sum())
        assert layer.kept == int(weight.count_nonzero())
        assert layer.sparsity == pytest.approx(float((weight == 0).double().mean()), abs=1e-12)
        emptied, unread = emptied + int(rows.sum()), unread + layer.unread
    assert emptied
    assert unread, "otherwise nothing was tested"


def test_the_text_is_a_table_and_says_everything(result):
    report = result.report
    lines = str(report).splitlines()
    table = lines[: len(report.layers) + 1]
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    heading = table[0].replace("worst gap", "worst-gap").split()
    for layer, line in zip(report.layers, table[1:], strict=True):
        cells = dict(zip(heading, line.split(), strict=True))
        assert cells["layer"] == layer.path
        assert cells["mismatch"] == f"{layer.mismatch:.4f}"
        assert cells["sparsity"] == f"{layer.sparsity:.1%}"
        assert cells["certified"] == f"{layer.rows}/{layer.rows}"
        assert float(cells["worst-gap"]) <= 1e-9
        assert (cells["empty"], cells["unread"]) == (str(len(layer.emptied)), str(layer.unread))
        for k in layer.emptied[:8]:
            (flagged,) = [text for text in lines if text.startswith(f"layer {layer.path}: ")]
            assert str(k) in flagged.split(": ")[2].replace(",", "").split()
    for name, words in DENOMINATORS.items():
        count, total = report.nonzeros[name]
        (line,) = [text for text in lines if text.endswith(words)]
        assert line.startswith(f"sparsity {1 - count / total:.2%}:")
        assert f"{count:,} of" in line
    assert any(text.startswith("input channels that no row reads: ") for text in lines)


def test_rules_without_a_certificate_show_none(trained):
    net, u = trained
    text = str(cimf.prune(net, u, 0.5, n_jobs=1).report)
    heading = text.splitlines()[0]
    assert heading.split() == [
        "layer", "rows", "columns", "kept", "sparsity", "support", "swaps", "mismatch",
        "empty", "unread",
    ]  # fmt: skip
    assert len(text.splitlines()[1].split()) == 10
    assert "test samples" not in text


def test_test_samples_are_judged_by_both_networks(trained, result):
    net, u = trained
    found = result.report.evaluation
    with torch.no_grad():
        dense, sparse = net(u), result.network(u)
    assert found.samples == 64
    assert found.dense_accuracy == 1.0, "the labels are its own"
    assert found.accuracy == pytest.approx(
        float((sparse.argmax(1) == dense.argmax(1)).float().mean())
    )
    assert found.output_error == pytest.approx(float((sparse - dense).norm() / dense.norm()), 1e-5)
    assert str(found) in str(result.report)


def test_test_samples_without_labels(trained):
    net, u = trained
    same = cimf.prune(net, u, 0.0, n_jobs=1)
    found = HeldOut(copy.deepcopy(net).half(), u).evaluated(same).report.evaluation
    assert found.accuracy is None
    assert found.output_error < 1e-2
    assert "accuracy" not in str(found)
    assert not math.isnan(found.output_error)


def test_test_samples_that_cannot_be_used():
    u = np.zeros((3, 4), np.float32)

    class Tokens(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, None, :]

    given = HeldOut(Tokens(4, 2), [(u, np.array([0, 1, 0]))])
    assert given.labels is None
    assert given.notes == ("outputs are (1, 2) per test sample, no vector: no accuracy",)
    for labels, words in (([0, 1], "2 labels for 3"), ([0, 1, 2], "classes 0 to 1")):
        with pytest.raises(InputError, match=words):
            HeldOut(nn.Linear(4, 2), [(u, np.array(labels))])
    with pytest.raises(InputError, match="empty"):
        HeldOut(nn.Linear(4, 2), [])


def test_known_totals_of_one_linear_layer():
    """3 rows of 5 weights with biases: 6 weights stay; a second layer of 2 rows reads 3 states."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(5, 3))
    u = torch.randn(50, 5)
    assert cimf.prune(one, u, 0.6, n_jobs=1).report.nonzeros == {
        "network_weights": (6, 15),
        "network_parameters": (6 + 3, 15 + 3),
        "admissible": (6 + 3, 15 + 3),
        "dense": (6 + 3, 3 * (5 + 1)),
    }
    two = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    assert cimf.prune(two, u, 1 / 3, n_jobs=1).report.nonzeros == {
        "network_weights": (14, 21),
        "network_parameters": (14 + 3, 21 + 3),
        "admissible": (14 + 3, 21 + 3),
        "dense": (14 + 3, (3 + 2) * (3 + 5 + 1)),
    }


def test_a_convolution_counts_once_per_position_in_the_implicit_model():
    """2 channels from 1 by a kernel of 1 x 1 on 2 x 3 pixels: each weight acts six times."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    found = cimf.prune(net, torch.randn(80, 1, 2, 3), 0.0, n_jobs=1).report
    assert found.nonzeros["network_weights"] == (26, 26)
    assert found.nonzeros["admissible"] == (2 * 6 + 24 + 2, 2 * 6 + 24 + 2)
    assert found.nonzeros["dense"] == (38, (12 + 2) * (12 + 6 + 1))


def test_the_report_says_what_is_proved_and_what_is_not(trained):
    net, u = trained
    fitted = cimf.prune(net, u, 0.5, n_jobs=1).report
    worst = max(record.polish_gap for record in fitted.layers)
    assert 0 <= worst < 1e-9
    text = str(fitted)
    assert (
        f"proved: the coefficients are the least squares on their supports, recomputed; "
        f"largest relative excess {worst:.0e}" in text
    )
    assert "not proved: that no other support of the same size is better" in text
    assert "convex" not in text, "supports by OBS have no convex problem behind them"
    rough = str(cimf.prune(net, u, 0.5, polish=False, swaps=False, n_jobs=1).report)
    assert "not proved: the coefficients, which no polish fitted" in rough
    balls = cimf.prune(net, u, 0.5, support="ball", n_jobs=1).report
    rows = sum(record.rows for record in balls.layers)
    assert f"proved: {rows} of {rows} rows of the convex problems behind" in str(balls)
