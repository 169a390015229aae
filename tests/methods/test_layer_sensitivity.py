"""Layers of least sensitivity: the bound sound and exact, slopes, budgets, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import cimf
from cimf.errors import CaptureError, InputError
from cimf.methods.base import Task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.prune_sensitivity import LayerSensitivity, SensitivityBudget
from cimf.network.layers import LayerGraph
from cimf.network.magnitude import MagnitudeNetwork


def norm(channels):
    """A batch norm of random scales, shifts and statistics."""
    layer = nn.BatchNorm2d(channels)
    for value in (layer.weight.data, layer.bias.data, layer.running_mean):
        value.normal_()
    layer.running_var.uniform_(0.5, 2.0)
    return layer


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm(4), nn.LeakyReLU(1.5), nn.Conv2d(4, 6, 3, stride=2),
        nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


class Residual(nn.Module):
    """A shortcut padded with zeros, a batch norm in front of all, constants, a maximum."""

    def __init__(self, pool):
        super().__init__()
        self.before, self.stem = norm(2), nn.Conv2d(2, 3, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1, stride=2, bias=False), norm(5)
        self.grouped, self.linear = nn.Conv2d(5, 5, 1, groups=5), nn.Linear(20, 3)
        self.pool = pool
        self.register_buffer("shift", torch.tensor([-0.5]))

    def forward(self, x):
        x = torch.relu(self.stem(self.before(x)) + self.shift)
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = functional.gelu(self.norm(self.conv(x)) - short * self.shift)
        x = 3.0 - self.pool(-self.grouped(x)) / 2.0
        return self.linear(torch.cat([x.flatten(1)], 1))


def residual(pool=nn.AvgPool2d):
    torch.manual_seed(1)
    return Residual(pool(2)).eval()


X = torch.randn(160, 2, 8, 8, generator=torch.Generator().manual_seed(2))
NETS = {"plain": plain, "mean": residual, "maximum": lambda: residual(nn.MaxPool2d)}


@pytest.fixture(scope="module", params=NETS)
def name(request):
    return request.param


MOVES = X.amax(0) - X.amin(0)


def magnitude(net, moves=MOVES):
    return MagnitudeNetwork(LayerGraph(net, X[:8]), moves)


def problem(net):
    return LayerSensitivity(Calibration.of(Task(net, X), SensitivityBudget(n_jobs=1).statistics))


def zeros(net):
    return sum(int((p == 0).sum()) for p in net.parameters() if p.ndim > 1)


def test_the_bound_is_that_of_the_implicit_model():
    found = magnitude(plain())
    matrix = cimf.ImplicitModel.from_network(plain(), (2, 8, 8)).sensitivity()[:, :-1]
    np.testing.assert_allclose(
        found.outputs(), matrix @ MOVES.double().flatten().numpy(), rtol=1e-5
    )
    assert found.total() == pytest.approx(float(found.outputs().sum()))


def test_of_several_paths_every_one_counts():
    """A shortcut beside the centre of a kernel: |a + 1| <= |a| + 1."""
    own = cimf.ImplicitModel.from_network(residual(), (2, 8, 8)).sensitivity()[:, :-1]
    exact = own @ MOVES.double().flatten().numpy()
    found = magnitude(residual()).outputs()
    assert (found >= exact * (1 - 1e-6)).all()
    assert (found <= 3.0 * exact).all()


def test_no_move_of_the_inputs_moves_the_outputs_further(name):
    """Corners of the box, where the bound is attained by linear networks, and points within."""
    net, generator = NETS[name]().double(), torch.Generator().manual_seed(0)
    for size in (1e-3, 0.3, 3.0):
        moves = size * torch.rand(MOVES.shape, generator=generator, dtype=torch.float64)
        bound = magnitude(net.float(), moves).outputs()
        net.double()
        u = torch.randn(2000, *MOVES.shape, generator=generator, dtype=torch.float64)
        signs = torch.randint(0, 2, u.shape, generator=generator) * 2.0 - 1.0
        signs[1000:] *= torch.rand(signs[1000:].shape, generator=generator)
        with torch.no_grad():
            moved = (net(u + signs * moves) - net(u)).abs().amax(0).numpy()
        assert (moved <= bound).all()
        assert moved.max() > 1e-4 * bound.max()


def test_a_linear_network_attains_its_bound():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3, bias=False), nn.Flatten(), nn.Linear(9, 1)).eval()
    for layer in (net[0], net[2]):
        layer.weight.data.abs_()
    moves = torch.rand(2, 5)
    graph = LayerGraph(net, torch.randn(4, 2, 5))
    with torch.no_grad():
        moved = float(net(moves[None]) - net(torch.zeros(1, 2, 5)))
    assert MagnitudeNetwork(graph, moves).total() == pytest.approx(moved, rel=1e-6)


def test_slopes_are_differences_of_the_total(name):
    net = NETS[name]().double()
    graph = LayerGraph(net, X[:8].double())
    found = MagnitudeNetwork(graph, MOVES)
    total, rng = found.total(), np.random.default_rng(0)
    for layer in graph.layers:
        slopes, weight = found.slopes(layer), layer.weight
        bias = layer.module.bias
        for _ in range(3):
            i, j = rng.integers(layer.n_rows), rng.integers(layer.n_columns)
            moved = weight.clone()
            moved[i, j] += 1e-6 * torch.sign(moved[i, j])
            after = found.total({layer.path: (moved, bias)})
            assert (after - total) / 1e-6 == pytest.approx(slopes[i, j], rel=1e-4, abs=1e-6 * total)


def test_without_maxima_the_total_is_linear_in_one_layer():
    net = residual().double()
    graph = LayerGraph(net, X[:8].double())
    found = MagnitudeNetwork(graph, MOVES)
    for layer in graph.layers:
        other = torch.randn_like(layer.weight)
        change = found.total({layer.path: (other, layer.module.bias)}) - found.total()
        by_slopes = found.slopes(layer) * (other.abs() - layer.weight.abs()).numpy()
        assert change == pytest.approx(by_slopes.sum(), rel=1e-9)


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, 3, 3), function

    def forward(self, x):
        return self.function(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.softmax(x, 1), r"'softmax' in the network's own forward"),
        (lambda x: x * x, r"'mul' in the network's own"),
        (lambda x: 1.0 / (x * x + 1.0), "'mul' in"),
        (lambda x: 2.0 / x.abs(), "'truediv' in"),
        (lambda x: functional.pad(x, (1, 1), value=2.0), "'pad' in"),
        (lambda x: torch.cat([x, x.detach() * 0 + torch.ones(3, 1, 1)], 1), "'detach' in"),
        (nn.LayerNorm([3, 6, 6]), r"layer 'function' \(LayerNorm\)"),
        (nn.CELU(-1.0), r"layer 'function' \(CELU\): .* no Lipschitz"),
    ],
)
def test_what_has_no_known_bound_is_refused_by_name(function, message):
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match=message):
        cimf.prune(Own(function).eval(), X, method="sensitivity", kappa=0.5)


def test_inputs_that_never_move_are_refused():
    with pytest.raises(InputError, match="no input moves"):
        cimf.prune(plain(), X[:1].expand(40, -1, -1, -1), method="sensitivity", kappa=0.5)


@pytest.mark.parametrize("kappa", [0.0, -1.0, float("nan"), "much", float("inf")])
def test_a_budget_is_a_positive_number(kappa):
    with pytest.raises(InputError, match="kappa must be a positive number"):
        cimf.prune(plain(), X, method="sensitivity", kappa=kappa)


def test_a_budget_or_a_target():
    with pytest.raises(InputError, match="not both"):
        cimf.prune(plain(), X, 0.5, "sensitivity", kappa=0.5)
    with pytest.raises(InputError, match="needs a target sparsity"):
        cimf.prune(plain(), X, method="sensitivity")


@pytest.mark.parametrize("kappa", [1, 3.0])
def test_the_whole_budget_is_the_network_itself(kappa):
    net = plain()
    found = cimf.prune(net, X, method="sensitivity", kappa=kappa)
    for path, value in net.state_dict().items():
        assert torch.equal(found.network.state_dict()[path], value)
    assert "the network itself" in str(found.report)


def test_budgets_are_met_certified_and_counted_again(name):
    net = NETS[name]()
    own, before = magnitude(net).total(), 0
    for kappa in (0.5, 0.1):
        found = cimf.prune(net, X, method="sensitivity", kappa=kappa, n_jobs=1)
        total = magnitude(found.network).total()
        assert 0.8 * kappa * own <= total <= kappa * own * (1 + 1e-6)
        assert f"total sensitivity {total:.4g}, {total / own:.4f} of" in str(found.report)
        records = found.report.layers
        assert all(r.certified == r.solved == r.rows for r in records)
        assert sum(r.rows * r.columns - r.kept for r in records) == zeros(found.network) >= before
        before = zeros(found.network)
    assert before > 0


def test_a_target_of_zeros_is_met():
    weights, total = cimf.prune(plain(), X, 0.6, "sensitivity", n_jobs=1).report.matched
    assert weights == round(0.4 * total)


def test_the_objective_of_a_layer_does_not_rise(name):
    """From the network's own rows to the new ones, on the statistics of the layer."""
    found = problem(NETS[name]())
    for factor in (1e-4, 1e-2, 1.0):
        descent = found.descend(factor * found.scale, SensitivityBudget(kappa=0.5, n_jobs=1))
        assert list(descent.values) == [layer.path for layer in found.calibration.graph.layers]
        for before, after in descent.values.values():
            assert after <= before * (1 + 1e-9)
        assert any(after < 0.99 * before for before, after in descent.values.values())
        if name != "maximum":
            assert descent.shortened == ()


def test_on_the_states_of_the_network_itself_the_total_never_rises():
    """In the first layer there is nothing to correct: its own rows match, so T pays for all."""
    found, (first, *_) = problem(plain()), magnitude(plain())._layers
    for lam in (1e-4, 1e-2, 1.0):
        descent = found.descend(lam * found.scale, SensitivityBudget(kappa=0.5, n_jobs=1))
        assert found.magnitude.total({first.path: descent.rows[first.path]}) <= found.network


def test_rows_are_those_of_the_weighted_problem():
    """The last layer by hand: subgradients of w_i / (2 m) ||M a - z||^2 + lam g |a|, damped."""
    net = plain().double()
    u = X.double()
    options = SensitivityBudget(kappa=0.5, n_jobs=1, damping=1e-12)
    found = LayerSensitivity(Calibration.of(Task(net, u), options.statistics))
    lam = 3e-4 * found.scale
    descent = found.descend(lam, options)
    last = found.calibration.graph.layers[-1]
    student = found.calibration.graph.export(descent.rows)
    with torch.no_grad():
        M, Z = student[:-1](u), net(u)
    weight, bias = descent.rows[last.path]
    slopes = found.magnitude.slopes(last, {**descent.rows, last.path: (last.weight, None)})
    error = (M @ weight.T + bias - Z) * torch.from_numpy(found.effects[last.path])
    gradient, price = (error.T @ M / len(X)).numpy(), lam * slopes
    held = weight.numpy() != 0
    assert 0 < held.sum() < held.size
    tolerance = 1e-6 * price.max()
    np.testing.assert_allclose(
        gradient[held], (-price * np.sign(weight.numpy()))[held], atol=tolerance
    )
    assert (np.abs(gradient[~held]) <= price[~held] + tolerance).all()


def test_a_budget_that_only_an_empty_network_meets_is_warned_about():
    with pytest.warns(UserWarning, match="0 of the network's, the budget 1e-06: .* emptied"):
        found = cimf.prune(plain(), X, method="sensitivity", kappa=1e-6, n_jobs=1)
    assert not any(r.kept for r in found.report.layers)


@pytest.mark.parametrize("samples", [400, 600])
def test_all_samples_take_part_in_the_rows(samples):
    """Few of them tell the size of lam where there are more than 500."""
    inputs = torch.randn(samples, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    found = cimf.prune(plain(), inputs, method="sensitivity", kappa=0.3, n_jobs=1)
    assert found.report.layers[-1].samples == samples
    moves = inputs.amax(0) - inputs.amin(0)
    share = magnitude(found.network, moves).total() / magnitude(plain(), moves).total()
    assert 0.28 <= share <= 0.3 * (1 + 1e-6)
