"""What must not change the result: units, order and number of samples; and sums of two shapes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.methods.base import Task
from cimf.methods.layered import elimination
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.statistics_options import Statistics
from cimf.network.patches import PatchGram

EVERYTHING = {"positions": None, "n_jobs": 1}


def error(net, reference, u):
    with torch.no_grad():
        return float((net(u) - reference(u)).square().mean())


class Scaled(nn.Module):
    """One function, the unit of every input and hidden column chosen freely."""

    def __init__(self, inputs, hidden):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(8, 12).double(), nn.Linear(12, 5).double()
        with torch.no_grad():
            self.a.weight.mul_(hidden[:, None]).div_(inputs)
            self.a.bias.mul_(hidden)
            self.b.weight.div_(hidden)
        self.inputs = inputs

    def forward(self, x):
        return self.b(self.a(x * self.inputs).relu())


@pytest.mark.parametrize("base", [2.0, 3.0])
@pytest.mark.parametrize("allocation", ["output", "uniform"])
def test_units_of_columns_change_nothing(base, allocation):
    """Powers of two change no rounding error. One input is dead; default damping was absolute."""
    u = torch.randn(200, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:, 3] = 0.0
    inputs = base ** torch.tensor([0, 5, -9, 7, 12, -3, 2, -14], dtype=torch.float64)
    hidden = base ** (torch.arange(12, dtype=torch.float64) - 6)
    plain = Scaled(torch.ones_like(inputs), torch.ones_like(hidden))
    first = cimf.prune(plain, u, 0.6, allocation=allocation, n_jobs=1).network
    second = cimf.prune(Scaled(inputs, hidden), u, 0.6, allocation=allocation, n_jobs=1).network
    back = second.a.weight * inputs / hidden[:, None], second.b.weight * hidden
    for expected, found in zip((first.a.weight, first.b.weight), back, strict=True):
        assert torch.equal(expected != 0, found != 0)
        torch.testing.assert_close(found, expected, rtol=0.0 if base == 2.0 else 1e-9, atol=0.0)
    with torch.no_grad():
        torch.testing.assert_close(first(u), second(u), rtol=1e-9, atol=1e-12)


def test_the_scale_of_the_input_moved_into_the_first_layer():
    """With absolute damping the sparse network was 11 times worse at 80 %."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
    scale = torch.logspace(-3, 3, 20)
    u = torch.randn(300, 20)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved[0].weight.div_(scale)
    one = error(cimf.prune(net, u, 0.8, n_jobs=1).network, net, u)
    two = error(cimf.prune(moved, u * scale, 0.8, n_jobs=1).network, moved, u * scale)
    assert two == pytest.approx(one, rel=1e-2)


@pytest.mark.parametrize("change", ["order", "twice"])
def test_samples_in_another_order_or_twice_change_nothing(change):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    u = torch.randn(100, 8).double()
    index = torch.randperm(100) if change == "order" else torch.arange(100).repeat(2)
    first, second = (cimf.prune(net, v, 0.6, n_jobs=1).network for v in (u, u[index]))
    for expected, found in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected != 0, found != 0)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


class Dueling(nn.Module):
    """A value that is repeated over the advantages."""

    def __init__(self):
        super().__init__()
        self.body, self.value, self.advantage = (
            nn.Linear(10, 32),
            nn.Linear(32, 1),
            nn.Linear(32, 6),
        )

    def forward(self, x):
        h = self.body(x).relu()
        advantage = self.advantage(h)
        return self.value(h) + (advantage - advantage.mean(1, keepdim=True))


def test_a_layer_that_a_sum_repeats_is_fitted_by_least_squares():
    """Fitted to column 0 of the sum, the squared error was half as large again."""
    torch.manual_seed(0)
    net, u = Dueling(), torch.randn(300, 10)
    result = cimf.prune(net, u, 0.7, n_jobs=1).network
    with torch.no_grad():
        h = result.body(u).relu().double().numpy()
        goal = net.value(net.body(u).relu()).double().numpy()
        kept = np.flatnonzero(result.value.weight[0].numpy())
        found = result.value(result.body(u).relu()).double().numpy()
    design = np.column_stack([h[:, kept], np.ones(300)])
    best = goal - design @ np.linalg.lstsq(design, goal, rcond=None)[0]
    assert kept.size < 32
    assert np.square(found - goal).sum() == pytest.approx(np.square(best).sum(), rel=1e-3)


class Gated(nn.Module):
    """A summand that repeats along axes of the layer, or the layer along those of the sum."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        if kind == "images":
            self.small, self.large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        else:
            self.small, self.large = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=True) if self.kind == "images" else x.mean(1, keepdim=True)
        return self.small(pooled) + self.large(x)


@pytest.mark.parametrize(("kind", "shape"), [("images", (3, 6, 5)), ("tokens", (7, 5))])
def test_sums_over_shapes_that_differ(kind, shape):
    """The large layer corrects the small one: its target is what is left of the whole sum."""
    torch.manual_seed(1)
    net, u = Gated(kind), torch.randn(60, *shape)
    assert error(cimf.prune(net, u, 0.0, n_jobs=1).network, net, u) < 1e-10
    result = cimf.prune(net, u, 0.5, positions=None, n_jobs=1)
    fresh = Calibration.of(Task(net, u), Statistics(positions=None, n_jobs=1))
    order = [layer.path for layer in fresh.graph.layers]
    assert order == ["small", "large"]
    with torch.no_grad():
        pooled = u.mean((2, 3), keepdim=True) if kind == "images" else u.mean(1, keepdim=True)
        fixed = result.network.small(pooled) - net.small(pooled)
        goal = net.large(u) - fixed
        layer = fresh.graph.layers[1]
        statistics = PatchGram(layer)
        statistics.update(u, goal, (slice(None),) * (len(shape) - 1 if kind == "images" else 0))
        own = statistics.group(0)
        weight = result.network.large.weight.flatten(1).double().numpy()
        coef = np.column_stack([weight, result.network.large.bias.double().numpy()])
        mask = coef != 0
        mask[:, -1] = True
        best = elimination.losses(own, elimination.polished(own, mask, 1)[0])
    np.testing.assert_allclose(elimination.losses(own, coef), best, rtol=1e-4)
    assert result.report.layers[1].mismatch == pytest.approx(
        error(result.network, net, u) * net(u).numel() / spread(net(u)), rel=1e-3
    )


class Wide(nn.Module):
    """The layer that a sum repeats is the larger one; it is solved first all the same."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(2)
        self.axes = (2, 3) if kind == "images" else (1,)
        self.channels = 1 if kind == "images" else -1
        layer = (lambda n: nn.Conv2d(n, 4, 1)) if kind == "images" else (lambda n: nn.Linear(n, 4))
        self.each, self.pooled = layer(5), layer(10)

    def forward(self, x):
        both = torch.cat([x, x.square()], self.channels).mean(self.axes, keepdim=True)
        return self.pooled(both) + self.each(x)


@pytest.mark.parametrize(("kind", "shape"), [("images", (5, 6, 3)), ("tokens", (7, 5))])
def test_a_layer_that_is_repeated_over_positions_has_its_own_target(kind, shape):
    """These were tracebacks: the target had the shape of the sum."""
    net, u = Wide(kind), torch.randn(60, *shape)
    report = cimf.prune(net, u, 0.5, **EVERYTHING).report
    assert [layer.path for layer in report.layers] == ["pooled", "each"]
    alone = Wide(kind)
    with torch.no_grad():
        alone.each.weight.zero_()
        alone.each.bias.zero_()
    counts = [np.array([8, 8, 7, 7]), np.zeros(4, int)]
    first, second = (
        cimf.prune(one, u, 0.5, allocation=counts, support="magnitude", **EVERYTHING)
        for one in (Wide(kind), alone)
    )
    torch.testing.assert_close(first.network.pooled.weight, second.network.pooled.weight)
    assert first.report.layers[0].mismatch == pytest.approx(second.report.layers[0].mismatch)


def spread(z):
    """Summed squared deviation from the mean of every channel."""
    axis = 1 if z.ndim == 4 else -1
    channels = z.detach().double().movedim(axis, 0).flatten(1)
    return float((channels - channels.mean(1, keepdim=True)).square().sum())
