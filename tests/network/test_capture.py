"""Capture: every kind of batches, what is refused and why, and that the network is not changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cimf.errors import CaptureError, InputError
from cimf.network.activations import ACTIVATIONS
from cimf.network.capture import capture_states, iter_states
from cimf.network.graph import KeepPrecision
from cimf.network.state_blocks import Block
from cimf.network.states import Reconstruction, States


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


X = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """Linear, ReLU, then an operation: a module, or a function of (network, x)."""

    def __init__(self, operation):
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.act = nn.Linear(6, 6), nn.ReLU()
        self.suspect = operation if isinstance(operation, nn.Module) else None
        self.function = operation

    def forward(self, x):
        x = self.act(self.lin(x))
        return self.suspect(x) if self.suspect is not None else self.function(self, x)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


REFUSED = {
    "max-pool": (nn.MaxPool1d(2), "layer 'suspect' \\(MaxPool1d\\).*maximum"),
    "softmax": (nn.Softmax(1), "layer 'suspect' \\(Softmax\\).*logits"),
    "log-softmax": (
        lambda net, x: F.log_softmax(x, 1),
        "'log_softmax' in the network's own.*logits",
    ),
    "layer norm": (nn.LayerNorm(6), "layer 'suspect' \\(LayerNorm\\).*statistics of the sample"),
    "group norm": (nn.GroupNorm(2, 6), "layer 'suspect' \\(GroupNorm\\).*statistics"),
    "batch statistics": (
        nn.BatchNorm1d(6, track_running_stats=False),
        "layer 'suspect' \\(BatchNorm1d\\).*track_running_stats",
    ),
    "attention": (
        nn.TransformerEncoderLayer(6, 1, 6, batch_first=True),
        "layer 'suspect' \\(TransformerEncoderLayer\\)",
    ),
    "lstm": (nn.LSTM(6, 3), "layer 'suspect' \\(LSTM\\).*recurrent"),
    "embedding": (nn.Embedding(3, 4), "layer 'suspect' \\(Embedding\\) failed"),
    "glu": (nn.GLU(), "layer 'suspect' \\(GLU\\).*multiplies"),
    "many slopes": (nn.PReLU(6, init=0.1), "layer 'suspect' \\(PReLU\\).*single slope"),
    "hardshrink": (nn.Hardshrink(), "layer 'suspect' \\(Hardshrink\\).*discontinuous"),
    "square": (lambda net, x: x * x, "'mul' in the network's own forward.*multiplies"),
    "product": (lambda net, x: x * net.lin(x), "'mul'.*multiplies"),
    "matmul": (lambda net, x: x @ x.T, "'matmul'.*multiplies"),
    "norm": (lambda net, x: x / x.norm(dim=1, keepdim=True), "'norm'"),
    "exp": (lambda net, x: x.exp(), "'exp'.*not one of the known elementwise activations"),
    "sort": (lambda net, x: x.sort(1)[0], "'sort'"),
    "far kink": (lambda net, x: torch.where(x < 50.0, x, 2 * x), "'lt'.*compares"),
    "far kink 2": (lambda net, x: torch.maximum(x, -x - 40), "'maximum'"),
    "active dropout": (lambda net, x: F.dropout(x, 0.5), "'dropout'.*training=self.training"),
    "batch mean": (lambda net, x: x - x.mean(0), "'sub'.*mixes the samples"),
    "control flow": (Branch(), "forward pass of 'suspect' \\(Branch\\) failed.*depend on the data"),
    "merged samples": (lambda net, x: x.view(-1), "returns a tensor of shape"),
    "fixed batch": (lambda net, x: x.view(10, 6), "'view' in the network's own forward failed"),
    "samples second": (lambda net, x: net.act(x.T).T, "layer 'act'.*samples must be in the first"),
    "dict": (lambda net, x: {"logits": x}, "returns a dict"),
    "tuple": (lambda net, x: (x, x), "returns a tuple"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_layer_and_the_reason(name):
    operation, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message):
        capture_states(Around(operation), X)


@pytest.mark.parametrize(
    "operation",
    [
        nn.MaxPool1d(1),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.AvgPool1d(2),
        nn.Unflatten(1, (2, 3)),
        nn.Identity(),
        lambda net, x: x.reshape(x.shape[0], 2, 3).transpose(1, 2).mean(2),
        lambda net, x: torch.stack([x[:, :3], x[:, 3:]], dim=1).sum(1) - 2.0 * x[:, 1:4] / 3,
        lambda net, x: x.split(3, dim=1)[1],
        lambda net, x: F.dropout(x, 0.5, net.training),
        lambda net, x: x + torch.relu(net.lin.bias),
        lambda net, x: F.linear(x, net.lin.weight**2),
        lambda net, x: x[:, 0],
    ],
)
def test_affine_operations_pass(operation):
    states = capture_states(Around(operation), X)
    assert states.reconstruction.worst <= 1e-12
    assert len(states.blocks) == 1  # relu of a parameter is a constant, not a state


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return torch.relu(x) + y


class OptionalInput(nn.Module):
    def forward(self, x, shift=1.0):
        return torch.relu(x) + shift


def test_several_inputs():
    with pytest.raises(CaptureError, match=r"2 inputs \(x, y\)"):
        capture_states(TwoInputs(), X)
    assert capture_states(OptionalInput(), X).n_states == 6


@pytest.mark.parametrize("net", [nn.Linear(6, 2), nn.Sequential(), nn.Flatten()])
def test_no_nonlinearity(net):
    with pytest.raises(CaptureError, match="no nonlinearity"):
        capture_states(net, X)


def test_not_a_network():
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        capture_states(torch.relu, X)


def test_every_kind_of_batches_gives_the_same_states():
    net = _net()
    labels = torch.zeros(10)
    reference = capture_states(net, X)
    kinds = {
        "list": [X[:4], X[4:]],
        "pairs": [(X[:4], labels[:4]), [X[4:], labels[4:]]],
        "generator": (part for part in X.split(3)),
        "loader": DataLoader(TensorDataset(X, labels), batch_size=4),
        "array": X.numpy(),
        "single samples": X.split(1),
        "arrays": [X[:5].numpy(), X[5:].double()],
    }
    for name, batches in kinds.items():
        states = capture_states(net, batches)
        for field in "UXZY":
            np.testing.assert_allclose(
                getattr(states, field), getattr(reference, field), atol=1e-14, err_msg=name
            )
    parts = list(iter_states(net, X.split(4)))
    assert [part.n_samples for part in parts] == [4, 4, 2]
    assert States.concatenate(parts).n_samples == 10


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        (iter(()), "empty"),
        (torch.zeros(0, 6), "empty"),
        ([X, torch.zeros(0, 6)], "batch 1 is empty"),
        ([X, X[:, :5]], "batch 1 has samples of shape"),
        ((X, torch.zeros(10)), "at least two dimensions"),
        ((X, torch.zeros(10, 1)), "must be in a list"),
        ([X[0]], "at least two dimensions"),
        ([{"x": X}], "has 1 inputs; a tensor"),
        ([X, torch.full((2, 6), torch.nan)], "batch 1 holds 12 NaN"),
        ([X, X.where(torch.arange(10)[:, None] < 7, torch.nan)], "18 .* in 3 .* first in sample 7"),
        ([np.ma.masked_less(X.numpy(), 0.0)], "batch 0 is a masked array"),
        ([np.array([["a", "b"]])], "batch 0 is an array of <U1"),
        ([torch.full((2, 6), torch.inf)], "batch 0 holds 12 NaN or infinite"),
        ([X.to(torch.complex64)], "complex"),
        (3, "iterable"),
    ],
)
def test_bad_batches(batches, message):
    with pytest.raises(InputError, match=message):
        capture_states(_net(), batches)


@pytest.mark.parametrize("kind", [np.uint8, np.bool_, np.int64, np.float16, ">f8"])
def test_every_kind_of_numbers_is_captured_as_floating_ones(kind):
    values = (np.arange(60).reshape(10, 6) % 2).astype(kind)[::-1]
    values.flags.writeable = False
    states = capture_states(_net(), values)
    np.testing.assert_array_equal(states.Z, capture_states(_net(), values.astype(np.float64)).Z)


def test_wrong_width_names_the_layer():
    with pytest.raises(CaptureError, match="layer '0' \\(Linear\\) failed"):
        capture_states(_net(), X[:, :5])


def test_bad_weights_name_the_first_bad_block():
    net = _net()
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    with pytest.raises(CaptureError, match=r"'2\.weight' holds 1 NaN or infinite") as caught:
        capture_states(net, X)
    assert "known activations" not in str(caught.value)
    net = nn.Sequential(*_net()[:4], nn.Linear(6, 6), nn.ReLU()).double()
    with torch.no_grad():
        net[2].weight.fill_(1e300)
        net[0].weight.mul_(1e30)
    with pytest.raises(CaptureError, match="block '3' has NaN or infinite"):
        capture_states(net, X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_states_are_float64_whatever_the_network_is(dtype):
    net = _net().to(dtype)
    states = capture_states(net, X)
    exact = copy.deepcopy(net).double()
    z = exact[0](X.double()).detach().numpy().T
    np.testing.assert_allclose(states.Z[6:], z, rtol=0, atol=1e-15)
    assert next(net.parameters()).dtype == dtype


class Casting(nn.Module):
    """Casts on the way, as code written for mixed precision does."""

    def __init__(self):
        super().__init__()
        self.net = _net()
        self.shift = torch.tensor(0.1)  # neither parameter nor buffer

    def forward(self, x):
        return self.net(x.float() + self.shift).to(torch.float32)


def test_casts_inside_the_network_do_not_round():
    states = capture_states(Casting(), X)
    plain = capture_states(_net(), X.double() + float(torch.tensor(0.1)))
    np.testing.assert_allclose(states.Z, plain.Z, rtol=0, atol=1e-14)


def test_the_network_is_left_untouched():
    net = _net().train()
    net[0].bias.requires_grad_(False)
    seen = []
    net[1].register_forward_hook(lambda *args: seen.append(args))
    loss = net(X).sum()
    loss.backward()
    seen.clear()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradient = net[0].weight.grad.clone()
    capture_states(net, X)
    assert net.training
    assert len(seen) == 2  # on copies, to see that it changes nothing: first samples, then all
    assert len(net[1]._forward_hooks) == 1
    assert not net[0].bias.requires_grad
    assert net[0].weight.requires_grad
    torch.testing.assert_close(net[0].weight.grad, gradient, rtol=0, atol=0)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    np.testing.assert_array_equal(X, torch.randn(10, 6, generator=torch.Generator().manual_seed(1)))


def test_inputs_survive_an_in_place_first_layer():
    u = X.double()
    capture_states(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 2)), u)
    np.testing.assert_array_equal(u, X.double())


def test_hooks_that_change_the_output_are_refused():
    net = _net()
    net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    with pytest.raises(CaptureError, match="hooks on 2 change the network's output"):
        capture_states(net, X)


class Unpacked(nn.Module):
    """Cannot be traced symbolically: a choice by shape."""

    def __init__(self):
        super().__init__()
        self.net = _net()

    def forward(self, x):
        samples, width = x.shape
        x = self.net[:3](x.float()) if width == 6 else x  # the cast must not round
        return self.net[4](torch.nn.functional.gelu(x.view(samples, 6)).clamp(max=0.3)) + x[:, :3]


def test_networks_that_only_export_can_trace_are_captured():
    net = Unpacked()
    u = X.double() / 3
    states = capture_states(net, u)
    with torch.no_grad(), KeepPrecision(torch.float64):
        expected = copy.deepcopy(net).double()(u)
    np.testing.assert_allclose(states.Y.T, expected.numpy(), rtol=0, atol=1e-14)
    assert [str(b.activation).partition("(")[0] for b in states.blocks] == [
        "hardtanh",
        "gelu",
        "relu",
    ]


@pytest.mark.parametrize(
    ("layer", "leaves"), [(nn.MaxPool1d(2), True), (nn.Softmax(1), True), (nn.LSTM(6, 3), False)]
)
def test_the_layered_design_is_named_only_where_it_leaves_a_layer_as_it_is(layer, leaves):
    with pytest.raises(CaptureError, match="cannot be represented") as caught:
        capture_states(Around(layer), X)
    assert ("leaves it as it is" in str(caught.value)) == leaves


class Sneaky(nn.Module):
    """Computes something else when it is traced than when it runs."""

    def forward(self, x):
        return torch.relu(x) if isinstance(x, torch.fx.Proxy) else torch.relu(x) * 1.5


def test_a_trace_that_differs_from_the_network_is_noticed():
    with pytest.raises(CaptureError, match="differs from the network itself by 3"):
        capture_states(nn.Sequential(nn.Linear(6, 6), Sneaky()), X)


def test_progress_counts_samples():
    seen = []
    capture_states(_net(), X.split(4), progress=seen.append)
    assert seen == [4, 8, 10]


def _states(**change):
    z = np.array([[1.0, -1.0], [0.5, 2.0], [-3.0, 4.0]])
    blocks = (
        Block("top", 0, 1, ACTIVATIONS["tanh"]),
        Block("bottom", 1, 3, ACTIVATIONS["relu"]),
    )
    fields = {
        "U": np.array([[0.3, 0.4], [1.0, 1.0]]),
        "X": np.vstack([np.tanh(z[:1]), np.maximum(z[1:], 0)]),
        "Z": z,
        "Y": np.ones((1, 2)),
        "blocks": blocks,
        "bias": True,
        "reconstruction": Reconstruction(0.0, 0.0, 0.0, 0.0),
    }
    return States(**{**fields, **change})


def test_states_describe_the_row_problems():
    states = _states()
    assert (states.n_states, states.n_inputs, states.n_outputs, states.n_columns) == (3, 2, 1, 5)
    np.testing.assert_array_equal(states.design(), np.vstack([states.X, states.U]).T)
    assert states.free_columns.tolist() == [False, False, False, False, True]
    assert states.scalable.tolist() == [False, True, True]
    assert states.causal_mask().astype(int).tolist() == [
        [0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]
    scaled = states.scaled([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(scaled.X[1:], np.maximum(scaled.Z[1:], 0))
    np.testing.assert_array_equal(scaled.Z[2], states.Z[2] / 4)
    with pytest.raises(InputError, match="positively homogeneous"):
        states.scaled([2.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "change",
    [
        {"U": np.ones((2, 3))},
        {"X": np.ones((2, 2))},
        {"Z": np.full((3, 2), np.nan)},
        {"U": np.zeros((2, 2))},
        {"blocks": (Block("top", 0, 1, ACTIVATIONS["tanh"]),)},
    ],
)
def test_inconsistent_states_are_refused(change):
    with pytest.raises(InputError):
        _states(**change)


def test_states_of_different_networks_do_not_mix():
    other = capture_states(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), X)
    with pytest.raises(InputError, match="different networks"):
        States.concatenate([capture_states(_net(), X), other])
    with pytest.raises(InputError, match="no states"):
        States.concatenate([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_a_gpu():
    net = _net()
    reference = capture_states(net, X)
    states = capture_states(net.cuda(), X.cuda())
    np.testing.assert_array_equal(states.Z, reference.Z)
    assert next(net.parameters()).is_cuda


@pytest.mark.parametrize(
    ("layer", "listed"),
    [(nn.MaxPool1d(2), False), (nn.Softmax(dim=1), False), (nn.Tanhshrink(), True)],
)
def test_activations_are_listed_only_where_one_could_help(layer, listed):
    with pytest.raises(CaptureError, match="cannot be represented") as caught:
        capture_states(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), layer), X)
    assert ("known activations" in str(caught.value)) == listed


def test_a_hook_that_acts_on_a_later_sample_only_is_seen():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs = 0.01 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    inputs[-1] = 100.0
    net[0].register_forward_hook(lambda module, args, out: out.clamp(max=5.0))
    with pytest.raises(CaptureError, match="a hook does something that tracing does not see"):
        capture_states(net, [inputs])
