"""Layers that are not what they seem, parameters of nobody, wrappers: handled right, or by name."""

import copy
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

import cimf
from cimf.errors import CaptureError
from cimf.network.capture import capture_states
from cimf.network.copies import working_copy
from cimf.network.layer_checks import check_layers
from cimf.network.layers import LayerGraph

U = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def same_function(net, u=U):
    """Assert that graph and export are the network and that changed rows show in both."""
    with torch.no_grad():
        expected = net(u)
    graph = LayerGraph(net, u[:8])
    torch.testing.assert_close(graph.run(u), expected)
    torch.testing.assert_close(graph.export()(u), expected)
    rows = {layer.path: (2 * layer.weight, layer.module.bias) for layer in graph.layers}
    changed = graph.run(u, rows)
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(graph.export(rows)(u), changed)
    torch.testing.assert_close(graph.run(u), expected)
    return graph


def doubling_pre_hook(net):
    net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def doubling_hook(net):
    net.register_forward_hook(lambda module, inputs, output: output * 2)


def replaced_forward(net):
    forward = net[0].forward
    net[0].forward = lambda x: forward(x)


def equalised(net):
    """The weight is computed from another parameter before every call."""
    weight = net[0].weight
    del net[0].weight
    net[0].weight_orig = nn.Parameter(weight.detach() / 2)
    hook = lambda module, inputs: setattr(module, "weight", module.weight_orig * 2)  # noqa: E731
    net[0].register_forward_pre_hook(hook)
    hook(net[0], None)


def overwritten(net):
    def restore(module, inputs):
        module.weight.data.copy_(module.kept)

    net[0].register_buffer("kept", net[0].weight.detach().clone())
    net[0].register_forward_pre_hook(restore)


class Standardised(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight - self.weight.mean(), self.bias)


class StandardisedConv(nn.Conv1d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class OddWeight(nn.Linear):
    """Calls a base forward that torch traces as a leaf, with another bias."""

    def __call__(self, x):
        return super().__call__(x) + 1.0


def shared_bias(net):
    net[2] = nn.Linear(5, 5)
    net[2].bias = net[0].bias


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (doubling_pre_hook, "hooks on 2 change the network's output"),
        (doubling_hook, "hooks on the network itself change"),
        (replaced_forward, r"layer '0' \(Linear\) has its forward replaced"),
        (equalised, r"layer '0' \(Linear\) has a weight that is no parameter"),
        (overwritten, "its weights are overwritten|does not return its weight"),
        (
            lambda net: net.__setitem__(0, Standardised(4, 5)),
            "'0' .Standardised. has its weight read",
        ),
        (lambda net: net.__setitem__(0, OddWeight(4, 5)), "OddWeight|differs from the network"),
        (shared_bias, r"layer '2' \(Linear\) shares its bias with '0'.*clone"),
    ],
)
def test_a_layer_that_is_not_its_weight_and_bias_is_refused_by_name(change, words):
    net = mlp()
    change(net)
    with pytest.raises(CaptureError, match=words):
        LayerGraph(net, U)


def test_a_convolution_that_standardises_its_weight_is_refused_by_name():
    net = nn.Sequential(StandardisedConv(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(CaptureError, match=r"'0' \(StandardisedConv\) does not return its weight"):
        LayerGraph(net, torch.randn(4, 2, 5))


def test_the_comparison_of_a_layer_with_its_rows_can_fail():
    graph = LayerGraph(mlp(), U)
    net = working_copy(graph.original, torch.float32)
    torch.testing.assert_close(check_layers(copy.deepcopy(net), graph.layers, U), graph.run(U))
    net[2].register_forward_hook(lambda *args: args[-1] + 1e-2)
    with pytest.raises(CaptureError, match=r"layer '2'.*difference 1\.0e-02"):
        check_layers(net, graph.layers, U)


def test_hooks_that_look_are_kept_and_run_once():
    net, seen = mlp(), []
    net[0].register_forward_hook(lambda *args: seen.append(1))
    graph = LayerGraph(net, U)
    assert len(seen) <= 3
    graph.export()(U)
    assert len(graph.export()[0]._forward_hooks) == 1


def pruned(net):
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "weight", 0.2)
    prune.l1_unstructured(net[2], "bias", 1)


@torch.no_grad()
def pruned_without_gradients(net):
    pruned(net)


class Centred(nn.Module):
    def forward(self, weight):
        return weight - weight.mean(1, keepdim=True)


REPARAMETRISED = {
    "pruned": pruned,
    "pruned without gradients": pruned_without_gradients,
    "weight norm": lambda net: parametrizations.weight_norm(net[0]),
    "spectral norm": lambda net: parametrizations.spectral_norm(net[0]),
    "old spectral norm": lambda net: nn.utils.spectral_norm(net[2]),
    "standardised": lambda net: parametrize.register_parametrization(net[0], "weight", Centred()),
}


@pytest.mark.parametrize("name", REPARAMETRISED)
@pytest.mark.parametrize("training", [False, True])
def test_reparametrised_layers_are_exported_as_plain_ones(name, training):
    net = mlp()
    REPARAMETRISED[name](net)
    state = {key: value.clone() for key, value in net.eval().state_dict().items()}
    expected = net(U).detach()
    net.train(training)
    graph = same_function(net.eval()) if not training else LayerGraph(net, U)
    torch.testing.assert_close(graph.run(U), expected)
    out = graph.export()
    assert [type(module) for module in out] == [nn.Linear, nn.ReLU, nn.Linear]
    assert sorted(out.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert out.training == training
    assert sorted(net.state_dict()) == sorted(state), "the network is left as it is"
    torch.testing.assert_close(net.eval()(U).detach(), expected)
    assert np.abs(capture_states(net, U).Y.T - expected.numpy()).max() < 1e-6


class Renamed(nn.Linear):
    pass


class RenamedConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Conv2d(2, 3, 3), (2, 5, 5)),
        (Renamed(4, 3), (4,)),
        (nn.Sequential(Renamed(4, 3), nn.ReLU(), nn.Linear(3, 2)), (4,)),
        (nn.Sequential(RenamedConv(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()), (2, 5, 5)),
    ],
)
def test_bare_layers_and_subclasses_that_only_rename(net, shape):
    torch.manual_seed(0)
    u = torch.randn(20, *shape)
    graph = same_function(net.eval(), u)
    assert graph.layers[0].path == ("" if len(list(net.modules())) == 1 else "0")
    result = cimf.prune(net, u, 0.5, n_jobs=1).network
    assert type(result) is type(net)
    weights = [p for p in result.parameters() if p.ndim > 1]
    assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() for w in weights) // 2


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_are_taken_off(wrap):
    net = mlp()
    inner = nn.Sequential(wrap(net), nn.ReLU()).eval()
    for wrapped, path in ((wrap(net), "0"), (inner, "0.0")):
        graph = LayerGraph(wrapped, U)
        assert graph.layers[0].path == path
        expected = net(U) if path == "0" else net(U).relu()
        torch.testing.assert_close(graph.export()(U), expected)
        assert capture_states(wrapped, U).n_states == (5 if path == "0" else 8)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_networks_and_samples_made_without_autograd(mode):
    with mode():
        net, u = mlp(), U * 1.0
        expected = net(u).clone()
        graph = LayerGraph(net, u)
        states = capture_states(net, u)
        found = graph.export()(u)
        sparse = cimf.prune(net, u, 0.5, n_jobs=1).network.state_dict()
    plain = cimf.prune(mlp(), U, 0.5, n_jobs=1).network.state_dict()
    assert all(torch.equal(sparse[key], value) for key, value in plain.items())
    assert not graph.layers[0].module.weight.is_inference()
    assert not sparse["0.weight"].is_inference()
    torch.testing.assert_close(found, expected)
    np.testing.assert_allclose(states.Y.T, expected.numpy(), atol=1e-6)


class Auxiliary(nn.Module):
    """A head that runs in training only."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)
        self.unused = nn.LSTM(3, 3)

    def forward(self, x):
        h = torch.relu(self.body(x))
        return (self.head(h), self.aux(h)) if self.training else self.head(h)


def test_layers_that_are_not_called_in_eval_mode_are_named():
    graph = LayerGraph(Auxiliary(), U)
    assert graph.uncalled == ("aux", "unused.ih_l0", "unused.hh_l0")
    assert [layer.path for layer in graph.layers] == ["body", "head"]


class Tokens(nn.Module):
    """A class token, position embeddings, a table of attention biases, scales of shape (D, 1)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(4))
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.places = nn.Parameter(torch.randn(1, 4, 6))
        self.table = nn.Parameter(torch.randn(7, 2))
        self.scale = nn.Parameter(torch.randn(6, 1))
        self.norm, self.head = nn.LayerNorm([4, 6]), nn.Linear(6, 2)
        self.register_buffer("index", torch.arange(4)[:, None] - torch.arange(4) + 3)

    def forward(self, x):
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        q, k, v = (f(x).unflatten(2, (2, 3)).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = self.table[self.index].permute(2, 0, 1)[None]
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = (y.transpose(1, 2).flatten(2).mT * self.scale).mT
        return self.head(self.norm(x + y)[:, 0])


def test_parameters_of_no_matrix_stay_as_they_are():
    net = Tokens().eval()
    graph = same_function(net, torch.randn(9, 3, 6))
    assert len(graph.layers) == 5
    for name in ("token", "places", "table", "scale", "norm.weight"):
        assert torch.equal(graph.export().get_parameter(name), net.get_parameter(name))


class Matrix(nn.Module):
    def __init__(self, apply):
        super().__init__()
        self.lin, self.kernel, self.apply_ = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4)), apply

    def forward(self, x):
        return self.lin(torch.relu(self.apply_(x, self.kernel)))


@pytest.mark.parametrize(
    "apply",
    [
        lambda x, w: x @ w,
        lambda x, w: torch.einsum("bi,oi->bo", x, w),
        lambda x, w: functional.linear(x, weight=w.tanh()),
        lambda x, w: torch.addmm(x, x, w),
        lambda x, w: (x[:, None] @ w.reshape(4, 2, 2).flatten(1))[:, 0],
    ],
)
def test_matrices_that_are_applied_outside_of_a_layer_are_refused(apply):
    net = Matrix(apply)
    with pytest.raises(CaptureError, match=r"\(Matrix\) is not supported: its kernel is applied"):
        LayerGraph(net, U)


class Pooled(nn.Module):
    """A layer of the mean over the tokens, (b, 1, D)."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.lin = nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.lin(x.mean(1, keepdim=True))


class Sum(nn.Module):
    """Two layers whose outputs are added, of any shapes."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return self.b(x) + self.a(x)


@pytest.mark.parametrize(
    ("a", "b", "shape", "found"),
    [  # the larger layer goes last, or the one whose output has the shape of the sum
        (nn.Linear(4, 1), nn.Linear(4, 6), (4,), {"b": True, "a": False}),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1)),
            nn.Conv2d(2, 3, 3, padding=1),
            (2, 5, 5),
            {"a.1": False, "b": True},
        ),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1, groups=1)),
            nn.Conv2d(2, 3, 1, groups=1, bias=False),
            (2, 5, 5),
            None,
        ),
        (nn.Linear(4, 6), nn.Linear(4, 6, bias=False), (4,), None),
        (Pooled(4, 6), nn.Linear(4, 6), (5, 4), {"a.lin": False, "b": True}),
        (nn.Linear(4, 1), nn.Identity(), (4,), {"a": False}),
        (nn.Linear(4, 4), nn.Identity(), (4,), {"a": True}),
        (nn.Linear(4, 1), nn.Linear(4, 6), (5, 4), {"a": False, "b": True}),
        (
            nn.Conv2d(2, 1, 3, padding=1),
            nn.Conv2d(2, 4, 1),
            (2, 5, 5),
            {"a": False, "b": True},
        ),
    ],
)
def test_a_sum_is_a_target_only_where_it_has_the_shape_of_the_layer(a, b, shape, found):
    torch.manual_seed(0)
    net, u = Sum(a, b).eval(), torch.randn(30, *shape)
    graph = LayerGraph(net, u[:2])
    summands = {layer.path: layer.summand is not None for layer in graph.layers}
    if found is not None:
        assert summands == found
    with torch.no_grad():
        same = cimf.prune(net, u, 0.0, n_jobs=1).network(u)
        torch.testing.assert_close(same, net(u), atol=1e-4, rtol=0)
    shapes = graph.traced.shapes(u[:2])
    for layer in graph.layers:
        if layer.summand is not None:
            (add,) = layer.node.users
            assert shapes[add] == shapes[layer.node]
            assert len(shapes[layer.summand]) == len(shapes[add])


class SequenceFirst(nn.Module):
    """Reads (T, B, F) and mixes the steps; one output per step."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        z = self.lin(x)
        return z + z.mean(0, keepdim=True)


@pytest.mark.parametrize("steps", [1, 12, 300])
def test_networks_that_mix_the_first_dimension_are_refused(steps):
    net, u = SequenceFirst(), torch.randn(steps, 5, 4)
    with pytest.raises(CaptureError, match=r"('mean'|'add').*mixes the samples") as error:
        cimf.prune(net, u, 0.5)
    assert "first dimension" in str(error.value)


def test_steps_that_do_not_mix_are_samples():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    result = cimf.prune(net, torch.randn(300, 5, 4), 0.5, n_jobs=1)
    assert result.report.nonzeros["network_weights"] == (12, 24)


def test_integer_images_are_floating_numbers():
    pixels = torch.randint(0, 2, (40, 4), generator=torch.Generator().manual_seed(1))
    net = mlp()
    first = cimf.prune(net, pixels.float(), 0.5, n_jobs=1).network.state_dict()
    for kind in (torch.uint8, torch.bool, torch.int16):
        found = cimf.prune(net, pixels.to(kind).numpy(), 0.5, n_jobs=1).network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in first.items())


class Applies(nn.Module):
    """Applies a function to its layer's output."""

    def __init__(self, function):
        super().__init__()
        self.lin, self.function = nn.Linear(4, 4), function

    def forward(self, x):
        return self.function(torch.relu(self.lin(x)))


OTHER = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.LazyLinear(3), nn.ReLU()), r"'0' \(LazyLinear\) has no weight yet"),
        (Applies(lambda x: OTHER(x)), "no parameter of it in 'linear'.*must be registered"),
        (Applies(lambda x: x + OTHER.weight.sum() * x.mean(0)), "'add' .*mixes the samples"),
        (Applies(lambda x: x.log() - x.log()), "NaN or infinite values"),
    ],
)
def test_other_networks_that_are_refused(net, words):
    with pytest.raises(CaptureError, match=words):
        LayerGraph(net, U)


def test_bound_methods_of_other_networks_are_no_layers():
    """A closure over another network hides its weights from the copy."""
    other, net = mlp(), mlp()
    net.forward = types.MethodType(lambda self, x: other(x), net)
    with pytest.raises(CaptureError, match=r"itself' \(Sequential\) has its forward"):
        LayerGraph(net, U)


class Transposed(nn.Module):
    """Takes samples first and works on (T, B, F), as `nn.Transformer` does."""

    def __init__(self):
        super().__init__()
        self.lin, self.wide, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.flip = True

    def forward(self, x):
        h = x.transpose(0, 1) if self.flip else x
        h = torch.relu(self.wide(torch.relu(self.lin(h))))
        return self.out(h[0] if self.flip else h[:, 0])


@pytest.mark.parametrize("samples", [20, 60, 300])
def test_the_order_of_the_axes_inside_of_a_network_does_not_matter(samples):
    torch.manual_seed(0)
    net, u = Transposed(), torch.randn(samples, 7, 5)
    found = cimf.prune(net, u, 0.5, n_jobs=1)
    net.flip = False
    expected = cimf.prune(net, u, 0.5, n_jobs=1)
    for one, other in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    layers = LayerGraph(Transposed(), u[:8]).layers
    assert [layer.sample_axis for layer in layers] == [1, 1, 0]
    assert [layer.output_shape for layer in layers] == [(7, 8), (7, 8), (3,)]


def test_a_layer_that_reads_no_sample_is_refused():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.position = nn.Linear(4, 3), nn.Linear(2, 3)
            self.register_buffer("place", torch.ones(1, 2))

        def forward(self, x):
            return torch.relu(self.lin(x) + self.position(self.place))

    with pytest.raises(CaptureError, match=r"'position' .*reads nothing of the samples"):
        cimf.prune(Position(), torch.randn(50, 4), 0.5)


def test_a_hook_that_acts_on_a_later_sample_only_is_refused():
    net, u = mlp(), torch.randn(300, 4) * 0.01
    u[-1] = 100.0
    net[0].register_forward_hook(lambda module, args, out: out.clamp(max=5.0))
    with pytest.raises(CaptureError, match="forward hooks on 0 change"):
        cimf.prune(net, u, 0.5, n_jobs=1)
