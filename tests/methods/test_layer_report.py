"""The report of a layered run against a recount of the network that came back."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from cimf.data.networks import BasicBlock
from cimf.errors import InputError
from cimf.evaluate.held_out import HeldOut
from cimf.judge import DENOMINATORS
from cimf.methods.layered.calibration import sparsify_layers


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
    held_out = HeldOut(net, [(u[:40], labels[:40]), (u[40:], labels[40:])])
    return held_out.evaluated(sparsify_layers(net, [u], 0.95, support="ball", n_jobs=1))


def test_emptied_rows_and_unread_channels_are_those_of_the_network(result):
    emptied = unread = 0
    for layer in result.report.layers:
        weight = result.network.get_submodule(layer.path).weight.detach()
        rows = (weight.flatten(1) == 0).all(dim=1)
        assert layer.emptied == tuple(torch.nonzero(rows).flatten().tolist())
        channels = (weight.transpose(0, 1).flatten(1) == 0).all(dim=1)
        assert layer.unread == int(channels.sum())
        assert layer.kept == int(weight.count_nonzero())
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
    text = str(sparsify_layers(net, u, 0.5, n_jobs=1).report)
    assert text.splitlines()[1].split()[6:8] == ["-", "-"]
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
    same = sparsify_layers(net, u, 0.0, n_jobs=1)
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

    with pytest.raises(InputError, match=r"\(1, 2\) per test sample"):
        HeldOut(Tokens(4, 2), u)
    for labels, words in (([0, 1], "2 labels for 3"), ([0, 1, 2], "classes 0 to 1")):
        with pytest.raises(InputError, match=words):
            HeldOut(nn.Linear(4, 2), [(u, np.array(labels))])
    with pytest.raises(InputError, match="empty"):
        HeldOut(nn.Linear(4, 2), [])
