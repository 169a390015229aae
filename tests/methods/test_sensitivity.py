"""Sensitivities against Jacobians, and what happens where the output has no gradient."""

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import UnknownNameError
from cimf.methods.base import Task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.sensitivity import output_sensitivity as by_sample
from cimf.methods.layered.sensitivity import positions_that_count
from cimf.methods.layered.statistics_options import Statistics
from cimf.network.layers import LayerGraph


class Head(nn.Module):
    """A network with something behind it."""

    def __init__(self, function, net):
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


def small(outputs=3, inputs=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).double()


def samples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def output_sensitivity(*arguments):
    return [value.mean(axis=0) for value in by_sample(*arguments)]


def by_jacobian(net, u):
    """Mean over samples of the squared Jacobian of the output by the first layer's rows."""
    J = torch.func.vmap(torch.func.jacrev(net[1:]))(net[0](u))
    return J.square().sum(1).mean(0).detach().numpy()


def fisher(net, u):
    """The same for the Kullback-Leibler divergence, from its definition: E_k (d log p_k)^2."""
    J = torch.func.vmap(torch.func.jacrev(lambda z: torch.log_softmax(net[1:](z), -1)))(net[0](u))
    p = torch.softmax(net(u), -1)
    return (p[..., None] * J.square()).sum(1).mean(0).detach().numpy()


def test_few_outputs_are_exact():
    net, u = small(), samples(20, 6)
    graph = LayerGraph(net, u[:5])
    expected = by_jacobian(net, u)
    found = output_sensitivity(graph, [u[:7], u[7:]])
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)
    np.testing.assert_allclose(found[1], 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        output_sensitivity(graph, [u], "softmax")[0], fisher(net, u), rtol=1e-10
    )
    assert all(not p.requires_grad for p in graph.module.parameters())
    with pytest.raises(UnknownNameError, match="softmax"):
        output_sensitivity(graph, [u], "accuracy")


@pytest.mark.parametrize("metric", ["output", "softmax"])
@pytest.mark.parametrize("projections", [3, 40])
def test_many_outputs_are_estimated_without_bias(metric, projections):
    net, u = small(outputs=50), samples(1200, 6)
    expected = by_jacobian(net, u) if metric == "output" else fisher(net, u)
    found = output_sensitivity(LayerGraph(net, u[:5]), [u], metric, projections)[0]
    np.testing.assert_allclose(found, expected, rtol=0.15)


def test_positions_of_a_convolution_add_up():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)).double()
    u = samples(9, 2, 6, 6)
    found = output_sensitivity(LayerGraph(net, u[:5]), [u])[0]
    total = np.zeros(3)
    for x in u:
        z = net[0](x[None])
        J = torch.autograd.functional.jacobian(net[1:], z)
        total += J.square().sum((0, 1, 2, 4, 5)).detach().numpy()
    np.testing.assert_allclose(found, total / 9, rtol=1e-10)


@pytest.mark.parametrize("outputs", [1, 30])
def test_opposite_outputs_do_not_cancel(outputs):
    """Under one vector of random signs z and -z cancelled in half of the samples."""
    net = Head(lambda z: torch.cat([-z, z], -1), small(outputs))
    plain = output_sensitivity(LayerGraph(net.net, samples(5, 6)), [samples(300, 6)])[0]
    found = output_sensitivity(LayerGraph(net, samples(5, 6)), [samples(300, 6)])[0]
    np.testing.assert_allclose(found, 2 * plain, rtol=1e-10 if outputs == 1 else 0.3)


def test_tiny_outputs_have_sensitivities():
    """Squares of gradients of 1e-25 are zero in float32, the sensitivities are not."""
    net = small().float()
    u = samples(20, 6).float()
    plain = output_sensitivity(LayerGraph(net, u[:5]), [u])[0]
    tiny = output_sensitivity(LayerGraph(Head(lambda z: z * 1e-25, net), u[:5]), [u])[0]
    np.testing.assert_allclose(tiny * 1e50, plain, rtol=1e-4)


class Tokens(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.function = function

    def forward(self, x):
        h = self.b(self.a(x).tanh()).tanh()
        return self.function(self.head(h[:, :2].mean(1)))


@pytest.mark.parametrize("samples_", [1, 60])
@pytest.mark.parametrize(
    "function",
    [
        lambda z: torch.cat([-z, z], -1),
        lambda z: torch.cat([z.sigmoid(), 1 - z.sigmoid()], -1),
        lambda z: (100 * z).sigmoid(),  # saturated in most samples
        lambda z: 1e-40 * z,
    ],
)
def test_no_calibration_sample_is_lost(function, samples_):
    net, u = Tokens(function), samples(samples_, 5, 4).float()
    graph = LayerGraph(net, u)
    graph.run(u)
    counting = positions_that_count(graph, u.split(32))
    counting = {str(node.target): counts for node, counts in counting.items()}
    assert set(counting) == {"a", "b"}
    for counts in counting.values():
        assert torch.cat(counts)[:, :2].all(), "the tokens that are read"
    unread = torch.cat(counting["b"])[:, 2:]
    saturated = torch.cat(counting["b"]).all(1)
    assert not unread[~saturated].any()


def test_without_a_gradient_everything_counts():
    net, u = Tokens(lambda z: z.sign()), samples(40, 5, 4).float()
    for function in (torch.sign, lambda z: z > 0):
        net.function = function
        graph = LayerGraph(net, u)
        graph.run(u)
        assert all(torch.cat(c).all() for c in positions_that_count(graph, [u]).values())


WITHOUT_GRADIENT = {
    "argmax": lambda y: y.argmax(1),
    "one label": lambda y: y.argmax(1, keepdim=True),
    "round": torch.round,
    "sign": torch.sign,
    "saturated": lambda y: torch.softmax(1e4 * y, -1),
}


@pytest.mark.parametrize(
    ("name", "metric"), [*((name, "output") for name in WITHOUT_GRADIENT), ("argmax", "softmax")]
)
def test_outputs_without_gradient_are_allocated_by_error_and_say_so(name, metric):
    net, u = Head(WITHOUT_GRADIENT[name], small(4).float()), samples(300, 6).float()
    expected = cimf.prune(net, u, 0.6, allocation="error", n_jobs=1)
    assert expected.report.notes == ()
    with pytest.warns(UserWarning, match=r'no gradient with respect to net\.0.*"error" was used'):
        found = cimf.prune(net, u, 0.6, metric=metric, n_jobs=1)
    assert 'the allocation "output" cannot price' in str(found.report)
    for a, b in zip(expected.network.parameters(), found.network.parameters(), strict=True):
        assert torch.equal(a, b)


class Binary(nn.Module):
    """Half of the hidden channels go through a sign: no gradient there, but every influence."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.cat([h[:, :5].sign(), h[:, 5:].relu()], 1))


def test_rows_without_gradient_that_move_the_output_are_found():
    net, u = Binary(), samples(300, 6).float()
    calibration = Calibration.of(Task(net, u), Statistics(n_jobs=1))
    assert (calibration.survey.curves[0].sensitivity == 0).tolist() == [True] * 5 + [False] * 5
    assert calibration.survey.blind == ("a",)
    with pytest.warns(UserWarning, match="no gradient with respect to a,"):
        report = cimf.prune(net, u, 0.5, n_jobs=1).report
    assert report.layers[0].emptied == ()


def test_rows_that_are_really_unread_need_no_note():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    with torch.no_grad():
        net[0].bias[:2] = -100.0  # dead
        net[2].weight[:, 3] = 0.0  # not read
    calibration = Calibration.of(Task(net, samples(300, 6).float()), Statistics(n_jobs=1))
    result = cimf.prune(net, samples(300, 6).float(), 0.5, n_jobs=1)
    assert (calibration.survey.curves[0].sensitivity == 0).sum() == 3
    assert calibration.survey.blind == calibration.survey.notes == ()
    assert result.report.notes == ()
    assert {0, 1, 3} <= set(result.report.layers[0].emptied)


def test_scales_are_measured_over_predicted_and_leave_the_network_as_it_was():
    """Of a linear network the prediction is exact up to correlations; of one layer wholly."""
    torch.manual_seed(0)
    net, u = nn.Sequential(nn.Linear(6, 5)).double(), samples(200, 6)
    calibration = Calibration.of(Task(net, u), Statistics(n_jobs=1))
    before = calibration.graph.layers[0].weight.clone()
    assert calibration.survey.scales(0.5) == pytest.approx([1.0], rel=1e-3)
    assert torch.equal(calibration.graph.layers[0].weight, before)


def test_scales_of_weights_that_are_zero_already_are_one():
    """Measured over predicted was one rounding error over another."""
    net = small().float()
    with torch.no_grad():
        net[0].weight[:, 3:] = 0.0
        net[2].weight[:, 4:] = 0.0
    calibration = Calibration.of(Task(net, samples(300, 6).float()), Statistics(n_jobs=1))
    np.testing.assert_allclose(calibration.survey.scales(0.4), 1.0, rtol=0.5)
