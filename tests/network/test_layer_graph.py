import pytest
import torch
from torch import nn
from torch.nn import functional

from cimf.data.networks import ResNet20
from cimf.errors import CaptureError, InputError
from cimf.network.layers import LayerGraph


def random_norms(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1, 1)
                nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2), nn.ReLU(),
        nn.Conv2d(6, 4, 3, dilation=2, padding=2, padding_mode="reflect"),
        nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5, bias=False),
    )  # fmt: skip


def shared_norm():
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3), norm, nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


NETWORKS = {
    "shared norm": (shared_norm, (3, 8, 8)),
    "convolutions": (conv_net, (3, 8, 8)),
    "option A": (lambda: ResNet20(10), (3, 32, 32)),
    "projection": (lambda: ResNet20(10, stem=8, projection=True, pool=4), (3, 32, 32)),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(),
                              nn.Linear(24, 3)),
        (2, 8),
    ),
    "normalised linear": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)),
        (5,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_graph_and_export_are_the_network(name):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net = random_norms(build().double())
    u = torch.randn(3, *shape, dtype=torch.float64)
    expected = net(u)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    graph = LayerGraph(net, u)
    torch.testing.assert_close(graph.module(u), expected)
    torch.testing.assert_close(graph.export()(u), expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    # The test can fail: one changed row shows in both.
    layer = graph.layers[0]
    rows = {layer.path: (2 * layer.weight, layer.module.bias)}
    assert not torch.allclose(graph.run(u, rows), expected)
    torch.testing.assert_close(graph.export(rows)(u), graph.run(u, rows))


def test_zeros_of_the_rows_are_zeros_of_the_exported_weights():
    graph = LayerGraph(random_norms(conv_net()), torch.randn(3, 3, 8, 8))
    layer = graph.layers[0]
    rows = layer.weight
    rows[:, ::2] = 0.0
    net = graph.export({layer.path: (rows, layer.module.bias)})
    assert torch.equal(net[0].weight.flatten(1) == 0, rows == 0)


@pytest.mark.parametrize("projection", [False, True])
def test_every_second_convolution_of_a_block_knows_its_shortcut(projection):
    graph = LayerGraph(ResNet20(10, projection=projection), torch.randn(2, 3, 32, 32))
    summands = {layer.path: layer.summand for layer in graph.layers}
    for path, summand in summands.items():
        assert (summand is not None) == path.endswith("conv2")


def test_summand_is_used_only_where_the_sum_is_all_that_sees_the_output():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.a(x)
            return torch.relu(h + x) + self.b(h)

    assert LayerGraph(Twice(), torch.randn(4, 3)).layers[0].summand is None


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Last(nn.Module):
    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, x):
        return self.core(x)[0]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(3, 3))

    def forward(self, x):
        return functional.linear(x, self.kernel)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (Branching(), (3,), "control flow"),
        (Tied(), (3,), "'b'"),
        (Functional(), (3,), "kernel"),
        (nn.Sequential(nn.Conv3d(3, 4, 3)), (3, 4, 4, 4), "'0' \\(Conv3d\\)"),
        (
            Last(nn.LSTM(4, 4, proj_size=2, batch_first=True)),
            (4, 4),
            "'core' \\(LSTM\\) is not supported: its weight_ih_l0 is",
        ),
        (Last(nn.LSTM(4, 4)), (4, 4), "number of samples"),
        (Last(nn.LSTM(4, 4)), (4,), "tensors \\(samples, steps, features\\) only"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            (3, 8, 8),
            "'1'",
        ),
        (nn.Sequential(nn.LayerNorm(4)), (4,), "no convolution"),
    ],
)
def test_networks_that_cannot_be_matched_are_refused_by_name(net, shape, words):
    with pytest.raises(CaptureError, match=words):
        LayerGraph(net, torch.randn(4, *shape))


class InPlace(nn.Module):
    """A network that changes its input and its states in place, by the given function."""

    def __init__(self, change, exported=False):
        super().__init__()
        torch.manual_seed(0)
        self.exported = exported
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.change = change

    def forward(self, x):
        if self.exported:
            torch.zeros(int(x.shape[1]))  # symbolic tracing cannot follow this
        x = self.change(x)
        h = self.a(x)
        self.change(h)  # h is read after it was changed
        return self.c(self.change(torch.relu(self.b(h))) + h + x)


def augmented(x):
    x /= 4.0
    x *= 2.0
    x -= 0.5
    return x


CHANGES = {
    "method": lambda x: x.mul_(2.0).clamp_(-1.0, 1.0),
    "torch": torch.relu_,
    "functional": functional.elu_,
    "positional": lambda x: functional.leaky_relu(x, 0.1, True),
    "module": nn.Sequential(nn.ReLU(inplace=True)),
}


@pytest.mark.parametrize(
    ("change", "exported"),
    [(name, False) for name in CHANGES] + [("augmented", True), ("method", True)],
)
def test_changes_in_place_give_the_same_output_and_leave_the_input(change, exported):
    change = augmented if change == "augmented" else CHANGES[change]
    net, u = InPlace(change, exported).eval(), torch.randn(4, 3)
    expected, kept = net(u.clone()), u.clone()
    graph = LayerGraph(net, u.clone())
    with torch.no_grad():
        torch.testing.assert_close(graph.module(u), expected)
    assert torch.equal(u, kept)


def test_changes_in_place_without_a_counterpart_are_refused_by_name():
    with pytest.raises(CaptureError, match="in place by zero_"):
        LayerGraph(InPlace(lambda x: x.zero_()), torch.randn(4, 3))


def test_a_refusal_prints_nothing(capfd):
    with pytest.raises(CaptureError, match="control flow"):
        LayerGraph(Branching(), torch.zeros(4, 3))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("net", [None, "resnet", nn.ReLU()])
def test_something_else_than_a_network_is_refused(net):
    with pytest.raises(InputError):
        LayerGraph(net, torch.zeros(2, 3))
