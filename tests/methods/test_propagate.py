"""Teacher and student in step: what the statistics are, and the mismatch."""

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import CaptureError
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.statistics_options import Statistics
from cimf.network.layers import LayerGraph


class Residual(nn.Module):
    """The last layer corrects its shortcut."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.a(x)
        return h + self.b(h.relu())


def samples(n=50):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def halved(seen):
    """A `solve` that halves the first layer, and keeps what it is given."""

    def solve(layer, statistics):
        seen[layer.path] = statistics.group(0)
        return (layer.weight / 2, layer.module.bias / 2) if layer.path == "a" else None

    return solve


@pytest.mark.parametrize("correct", [True, False])
def test_statistics_are_the_students_or_the_teachers(correct):
    net, u = Residual().double(), samples()
    seen = {}
    propagate(LayerGraph(net, u[:5]), u.split(20), halved(seen), Statistics(), correct=correct)
    with torch.no_grad():
        h = net.a(u)
        student = h / 2 if correct else h
        design = np.column_stack([student.relu(), np.ones(50)])
        goal = (net.b(h.relu()) + h - student).numpy()
    np.testing.assert_allclose(seen["b"].gram, design.T @ design, rtol=1e-12)
    np.testing.assert_allclose(seen["b"].corr, goal.T @ design, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(seen["b"].target_sq, np.square(goal).sum(axis=0), rtol=1e-12)
    assert seen["b"].n_samples == 50


def test_the_mismatch_of_a_residual_layer_is_that_of_the_sum():
    net, u = Residual().double(), samples()
    found = propagate(LayerGraph(net, u[:5]), u.split(20), halved({}), Statistics())
    with torch.no_grad():
        h = net.a(u)
        before, after = h + net.b(h.relu()), h / 2 + net.b(h.relu() / 2)
        for path, teacher, student in (("a", h, h / 2), ("b", before, after)):
            spread = (teacher - teacher.mean(0)).square().sum()
            expected = float((student - teacher).square().sum() / spread)
            assert found[path] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("halve", [False, True])
def test_the_mismatch_of_a_constant_output(halve):
    """No variance to compare with: zero without an error, infinite with one."""
    net = nn.Sequential(nn.Linear(5, 2)).double()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1.0)

    def solve(layer, statistics):
        return (layer.weight, layer.module.bias / 2) if halve else None

    assert propagate(LayerGraph(net, samples()[:5]), [samples()], solve, Statistics())["0"] == (
        float("inf") if halve else 0.0
    )


class Root(nn.Module):
    """Not finite for a sample whose first entry is negative."""

    def forward(self, x):
        return torch.where(x[:, :1] < -8, x / 0, x)


@pytest.mark.parametrize("where", [8, 37])
def test_a_sample_that_is_not_finite_in_some_layer_is_named(where):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), Root(), nn.Linear(5, 2))
    with torch.no_grad():
        net[0].weight[0], net[2].weight[0], net[2].bias[0] = 1.0, 0.0, 0.0
        net[2].weight[0, 0], net[0].bias[0] = 10.0, 0.0
    u = samples().abs().float()
    u[where] = -9.0
    with pytest.raises(CaptureError, match=rf"input or output of layer '4' .* sample {where}:"):
        cimf.prune(net, u.split(20), 0.5, n_jobs=1)


def test_overflow_in_a_layer_is_named():
    net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.fill_(1e20)
    u = samples().abs().float()
    u[12] = 1e30
    with pytest.raises(CaptureError, match=r"layer '0' .* sample 12:"):
        cimf.prune(net, u, 0.5, n_jobs=1)


class Optional(Residual):
    """With an argument that is left at its default: it must not be taken for the input."""

    def forward(self, x, scale=2.0):
        return self.b(self.a(x[:, :4] * scale).relu())


def test_an_argument_with_a_default_keeps_it():
    net, u = Optional().double(), samples()[:, :4].contiguous()
    net.a = nn.Linear(4, 4).double()
    seen = {}
    propagate(LayerGraph(net, u[:5]), u.split(20), halved(seen), Statistics())
    design = np.column_stack([2.0 * u, np.ones(50)])
    np.testing.assert_allclose(seen["a"].gram, design.T @ design, rtol=1e-12)
