"""Capture and conversion of real architectures against a plain forward pass written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from cimf.errors import CaptureError
from cimf.model import ImplicitModel
from cimf.network.capture import capture_states
from cimf.network.states import States


class ResidualMLP(nn.Module):
    """One activation module used three times, in place, next to residual additions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(6, 2)

    def forward(self, x):
        x = self.act(self.first(x))
        x = x + self.act(self.second(x))
        y = self.third(x)
        y += x
        return self.head(self.act(y))


class OverwrittenInput(nn.Module):
    """A later layer reads the tensor that an in-place activation has overwritten."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = self.first(x)
        F.relu_(z)
        return self.second(z) + z[:, :3]


class OverwrittenOutput(nn.Module):
    """The output of an activation is added to in place: the state is what it was before."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x.add_(self.second(x))
        return torch.relu(x)


class Functional(nn.Module):
    """Every way to write a rectifier, and parameters that must be read by value."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    def forward(self, x):
        functions = [
            F.relu,
            torch.relu,
            lambda z: z.relu(),
            lambda z: z.clamp(min=0),
            lambda z: F.leaky_relu(z, 0.3),
            lambda z: F.leaky_relu(z, negative_slope=0.4, inplace=True),
            lambda z: F.elu(z, alpha=1.5) + torch.clamp(z, -0.2, max=0.3),
            lambda z: F.gelu(z, approximate="tanh"),
        ]
        for layer, phi in zip(self.layers, functions, strict=True):
            x = phi(layer(x))
        return x


class SmallCNN(nn.Module):
    """Convolutions, batch norm, dropout, pooling, concatenation, a residual, two heads of shape."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.act, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(24, 4)
        self.bn.running_mean.uniform_(-1, 1)
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        y = self.act(self.bn(self.conv1(x)))
        z = self.conv2(y)
        z += y
        z = F.dropout(self.act(z), 0.3, self.training)
        z = torch.cat([F.avg_pool2d(z, 2), F.adaptive_avg_pool2d(y, 2)], dim=1)
        z = self.drop(z.permute(0, 2, 3, 1).contiguous().view(z.size(0), -1).to(x.dtype))
        return self.fc(torch.sigmoid(z))


def _sequential(*activations):
    layers = []
    for k, phi in enumerate(activations):
        layers += [nn.Linear(5 if k == 0 else 4, 4), phi]
    return nn.Sequential(*layers, nn.Linear(4, 3))


def _pruned():
    net = _sequential(nn.ReLU())
    prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def _normed():
    net = _sequential(nn.ReLU())
    parametrizations.weight_norm(net[0])
    return net


NETWORKS = {
    "one unit": (lambda: nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), (1,)),
    "relu": (lambda: _sequential(nn.ReLU(), nn.ReLU()), (5,)),
    "in place": (lambda: _sequential(nn.ReLU(inplace=True), nn.ReLU(inplace=True)), (5,)),
    "tanh": (lambda: _sequential(nn.Tanh(), nn.Tanh()), (5,)),
    "leaky": (lambda: _sequential(nn.LeakyReLU(0.2, inplace=True)), (5,)),
    "mixed": (lambda: _sequential(nn.GELU(), nn.ELU(0.5), nn.Softplus(2.0), nn.PReLU()), (5,)),
    "more": (lambda: _sequential(nn.SiLU(), nn.ReLU6(), nn.Hardtanh(-2, 1), nn.SELU()), (5,)),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)),
        (3,),
    ),
    "ends in phi": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), (3,)),
    "starts with phi": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), (3,)),
    "two affine": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)),
        (3,),
    ),
    "residual": (ResidualMLP, (5,)),
    "overwritten": (OverwrittenInput, (4,)),
    "added in place": (OverwrittenOutput, (4,)),
    "functional": (Functional, (4,)),
    "cnn": (SmallCNN, (2, 4, 4)),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 2),
            nn.Tanh(),
            nn.Upsample(scale_factor=2),
            nn.Flatten(),
            nn.Linear(24, 2),
        ),
        (2, 5),
    ),
    "pruned": (_pruned, (5,)),
    "weight norm": (_normed, (5,)),
}


def _build(name):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return make(), shape


def _consistent(states: States, model: ImplicitModel) -> None:
    """Assert that the converted network explains the captured states: the strongest cross-check."""
    assert model.blocks == states.blocks
    scale = max(1.0, np.abs(states.Z).max())
    Z = model.A @ states.X + model.B @ states.U
    assert np.abs(Z - states.Z).max() <= 1e-12 * scale
    Y = model.C @ states.X + model.D @ states.U
    assert np.abs(Y - states.Y).max() <= 1e-12 * max(1.0, np.abs(states.Y).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_states_and_conversion(name):
    net, shape = _build(name)
    x = torch.randn(7, *shape, dtype=torch.float64)
    states = capture_states(net, [x[:3], (x[3:], torch.zeros(4))])
    model = ImplicitModel.from_network(net, shape)
    _consistent(states, model)
    expected = net.double().eval()(x.clone()).detach().numpy().T
    assert np.abs(states.Y - expected).max() <= 1e-12
    assert np.abs(model.predict(states.U) - expected).max() <= 1e-10
    assert np.abs(model.predict(states.U[:-1]) - expected).max() <= 1e-10
    np.testing.assert_array_equal(states.U[:-1].T, x.flatten(1).numpy())
    assert states.reconstruction.worst <= 1e-12
    assert model.wellposedness().acyclic
    assert model.equilibrium(states.U).residual.max() == 0.0
    # Strictly block upper triangular: no block reads itself or one above it.
    reach = states.causal_mask()
    assert not np.asarray(model.A)[~reach[:, : model.n_states]].any()


@pytest.mark.parametrize("name", ["residual", "cnn", "two affine"])
def test_sparse_conversion_is_the_dense_one(name):
    net, shape = _build(name)
    dense = ImplicitModel.from_network(net, shape)
    sparse = ImplicitModel.from_network(net, shape, sparse=True)
    for matrix in "ABCD":
        np.testing.assert_array_equal(getattr(sparse, matrix).toarray(), getattr(dense, matrix))


def test_paper_example_is_read_exactly():
    """Section 2.1: (A B; C D) = (0 W1 0; 0 0 W0; W2 0 0), here with the biases as last column."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    net.double()
    w0, w1, w2 = (net[k].weight.detach().numpy() for k in (0, 2, 4))
    b0, b1, b2 = (net[k].bias.detach().numpy() for k in (0, 2, 4))
    model = ImplicitModel.from_network(net)
    zero = np.zeros((2, 2))
    np.testing.assert_array_equal(model.A, np.block([[zero, w1], [zero, zero]]))
    np.testing.assert_array_equal(
        model.B, np.block([[np.zeros((2, 3)), b1[:, None]], [w0, b0[:, None]]])
    )
    np.testing.assert_array_equal(model.C, np.block([w2, np.zeros((1, 2))]))
    np.testing.assert_array_equal(model.D, np.block([np.zeros((1, 3)), b2[:, None]]))
    assert [block.name for block in model.blocks] == ["3", "1"]
    assert [block.predecessors for block in model.blocks] == [("1",), ("input",)]


def test_states_equal_a_forward_pass_by_hand():
    net, _ = _build("residual")
    x = torch.randn(6, 5)
    states = capture_states(net, x)
    net.double()
    z1 = net.first(x.double())
    x1 = torch.relu(z1)
    z2 = net.second(x1)
    x2 = torch.relu(z2)
    z3 = net.third(x1 + x2) + x1 + x2
    z, after = torch.cat([z3, z2, z1], 1), torch.cat([torch.relu(z3), x2, x1], 1)
    np.testing.assert_allclose(states.Z, z.detach().numpy().T, rtol=0, atol=1e-15)
    np.testing.assert_allclose(states.X, after.detach().numpy().T, rtol=0, atol=1e-15)
    assert [b.name for b in states.blocks] == ["act#3", "act#2", "act"]
    assert states.blocks[0].predecessors == ("act", "act#2")
    assert states.output_predecessors == ("act#3",)
    # Pre-activations read after the in-place activation would equal X.
    assert np.abs(states.Z - states.X).max() > 0.1


def test_large_biases_do_not_blur_small_weights():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1e-12, 0.0], [3.3e-9, 1.0]]))
        net[0].bias.fill_(1e6)
    model = ImplicitModel.from_network(net)
    np.testing.assert_array_equal(model.B[:, :-1], net[0].weight.detach().numpy())


def test_zeros_stay_exact_behind_chained_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 40), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2))
    with torch.no_grad():
        net[0].weight[:, 1] = 0.0
    model = ImplicitModel.from_network(net)
    np.testing.assert_array_equal(model.B[:, 1], 0.0)
    assert np.count_nonzero(model.B) == 40 * 3


def test_dead_units_and_zero_weights():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    states = capture_states(net, torch.randn(5, 3))
    assert states.blocks[0].predecessors == ()
    np.testing.assert_array_equal(states.X[:2], 0.0)
    model = ImplicitModel.from_network(net)
    _consistent(states, model)


def test_affine_network_converts_but_has_no_states():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model = ImplicitModel.from_network(net)
    x = torch.randn(4, 3, dtype=torch.float64)
    assert model.n_states == 0
    assert np.abs(model.predict(x.T.numpy()) - net.double()(x).detach().numpy().T).max() <= 1e-12
    with pytest.raises(CaptureError, match="no nonlinearity"):
        capture_states(net.float(), x)


def test_input_shape_is_asked_for_only_where_needed():
    net, _ = _build("cnn")
    with pytest.raises(ValueError, match="input_shape is needed"):
        ImplicitModel.from_network(net)
    with pytest.raises(ValueError, match="positive integers"):
        ImplicitModel.from_network(net, (0, 4, 4))
    with pytest.raises(CaptureError, match="conv1"):
        ImplicitModel.from_network(net, (3, 4, 4))


@pytest.mark.parametrize("sparse", [False, True])
def test_memory_limit(sparse):
    net, shape = _build("cnn")
    with pytest.raises(CaptureError, match="memory_limit"):
        ImplicitModel.from_network(net, shape, sparse=sparse, memory_limit=2000)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def test_own_activation_modules_can_be_declared():
    net = nn.Sequential(nn.Linear(3, 4), Swish(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with pytest.raises(CaptureError, match="'mul' in layer '1'"):
        capture_states(net, x)
    states = capture_states(net, x, activations={Swish: "silu"})
    _consistent(states, ImplicitModel.from_network(net, activations={Swish: "silu"}))
    # A false declaration is the planted error that X = phi(Z) must catch.
    with pytest.raises(CaptureError, match=r"block '1'.*differ from relu"):
        capture_states(net, x, activations={Swish: "relu"})


def test_a_wrong_matrix_is_noticed(monkeypatch):
    """The planted error: one weight read wrongly; the comparison with the network must fail."""
    from cimf.model import convert

    read = convert._read_matrix

    def wrong(*args):
        whole = read(*args)
        whole[0, 0] += 1e-8
        return whole

    monkeypatch.setattr(convert, "_read_matrix", wrong)
    net, shape = _build("tanh")
    with pytest.raises(CaptureError, match="converted network differs"):
        ImplicitModel.from_network(net, shape)
