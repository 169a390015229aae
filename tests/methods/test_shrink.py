"""Whole channels: chosen by exact costs, the smaller network equal to the one with zeros."""

import subprocess
import sys
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.data.networks import ResNet20
from cimf.errors import CaptureError, InputError
from cimf.methods.base import Task
from cimf.methods.by_name import prune_task
from cimf.methods.layered.channel_choice import Effects, Reader, remove_cheapest
from cimf.methods.structured import shrink as shrinking
from cimf.methods.structured.shrink import shrink
from cimf.network.channel_flow import TiedChannels
from cimf.statistics import Gram

MAGNITUDE = ("magnitude-layer", "magnitude-global", "magnitude-polish")


def randomised(net, seed=0):
    """Return a network in float64 whose batch norms are none of the identity."""
    torch.manual_seed(seed)
    net = net.double()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
    return net.eval()


def mlp():
    return randomised(nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.Sigmoid(), nn.Linear(20, 4)
    ))  # fmt: skip


def small_cnn():
    return randomised(nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 4),
    ))  # fmt: skip


class Residual(nn.Module):
    """Two blocks with a sum, a projection between them, a head behind global pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.one, self.one_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.two_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.three, self.side = nn.Conv2d(8, 10, 3, 2, 1), nn.Conv2d(8, 10, 1, 2)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(x + self.two_norm(self.two(torch.relu(self.one_norm(self.one(x))))))
        return self.head(torch.relu(self.three(x) + self.side(x)).mean((2, 3)))


class Mobile(nn.Module):
    """Concatenation, batch norm behind it, depthwise, squeeze and excite, flattening."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.depth = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, groups=12)
        self.squeeze, self.excite = nn.Linear(12, 6), nn.Linear(6, 12)
        self.head = nn.Linear(12 * 9, 4)

    def forward(self, x):
        a = torch.relu(self.a(x))
        x = self.depth(torch.relu(self.norm(torch.cat([a, self.b(a)], 1))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = nn.functional.max_pool2d(x * gate[:, :, None, None], 2)
        return self.head(x.view(x.size(0), -1))


class Tokens(nn.Module):
    """Positions, attention in heads, a feed-forward block, layer norm: its neurons may go."""

    def __init__(self):
        super().__init__()
        self.embed, self.query = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 40), nn.Linear(40, 8)
        self.head, self.places = nn.Linear(8, 4), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = self.embed(x) + self.places
        q = self.query(x).view(x.shape[0], 5, 2, 4).transpose(1, 2)
        x = x + ((q @ q.mT).softmax(-1) @ q).transpose(1, 2).flatten(2)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


NETWORKS = {
    "mlp": (mlp, (12,)),
    "cnn": (small_cnn, (3, 8, 8)),
    "residual": (lambda: randomised(Residual()), (3, 8, 8)),
    "mobile": (lambda: randomised(Mobile()), (3, 8, 8)),
    "tokens": (lambda: randomised(Tokens()), (5, 6)),
}


def data(shape, count=80, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).double()


@contextmanager
def whole_channels():
    """Few large groups miss a target by more than 0.1 %, and few samples are warned about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s)the sparsity is .*|fewer calibration")
        yield


# --- the costs ---


def test_costs_are_those_of_refitting_without_the_columns():
    """Two readers, a sum of their errors; the second removal sees the first."""
    rng = np.random.default_rng(0)
    problems, designs = {}, {}
    for path, (n, r) in {"a": (6, 3), "b": (12, 2)}.items():
        M = rng.standard_normal((60, n)) @ (np.eye(n) + 0.5 * rng.standard_normal((n, n)))
        Z = rng.standard_normal((60, r))
        designs[path], problems[path] = (M, Z), Gram.from_arrays(M, Z)
    layers = {
        "a": _Layer(nn.Linear(6, 3)), "b": _Layer(nn.Conv1d(6, 2, 2)),
    }  # fmt: skip
    groups = [TiedChannels({}, {"a": np.array([c]), "b": np.array([c])}, {}) for c in range(6)]
    price = {"a": rng.random(3), "b": rng.random(2)}
    readers = {path: Reader(problems[path], price[path]) for path in problems}
    effects = Effects(layers, groups, readers)

    def loss(gone):
        total = 0.0
        for path, kernel in (("a", 1), ("b", 2)):
            M, Z = designs[path]
            left = [j for j in range(M.shape[1]) if j // kernel not in gone]
            residual = Z - M[:, left] @ np.linalg.lstsq(M[:, left], Z, rcond=None)[0]
            total += np.square(residual).sum(0) @ price[path]
        return total

    gone = []
    for take in (2, 5, 0):
        for k in set(range(6)) - set(gone):
            assert effects.price(k, 7) == pytest.approx(
                (loss([*gone, k]) - loss(gone)) / 7, rel=1e-8
            )
        effects.remove(take)
        gone.append(take)


def test_rows_that_are_gone_cost_nothing():
    rng = np.random.default_rng(0)
    gram = Gram.from_arrays(rng.standard_normal((30, 4)), rng.standard_normal((30, 2)))
    layers = {"a": _Layer(nn.Linear(4, 2))}
    groups = [TiedChannels({"a": np.array([0, 1])}, {}, {})] + [
        TiedChannels({}, {"a": np.array([c])}, {}) for c in range(4)
    ]
    effects = Effects(layers, groups, {"a": Reader(gram, np.ones(2))})
    assert effects.price(1, 1) > 0
    effects.remove(0)
    assert effects.price(1, 1) == 0


class _Layer:
    def __init__(self, module):
        self.module, self.has_bias = module, False
        self.n_rows, self.n_columns = module.weight.shape[0], module.weight[0].numel()
        self.n_weights, self.weight = module.weight.numel(), module.weight.detach().flatten(1)


class _Dearer:
    def price(self, k, freed):
        return k

    def remove(self, k):
        pass


def test_no_layer_is_emptied_and_the_goal_is_met_as_closely_as_groups_allow():
    layers = {"a": _Layer(nn.Linear(3, 5)), "b": _Layer(nn.Linear(5, 4))}
    groups = [TiedChannels({"a": np.array([c])}, {"b": np.array([c])}, {}) for c in range(5)]
    for goal, zeros in ((0, 0), (3, 0), (4, 7), (10, 7), (11, 14), (28, 28)):
        removal, count = remove_cheapest(layers, groups, _Dearer(), goal)
        assert removal.zeros == zeros == 7 * count
        assert int((~removal.rows["a"]).sum()) == count
    with pytest.raises(InputError, match=r"sparsity of 80.0% at most.*the target is 91.4%"):
        remove_cheapest(layers, groups, _Dearer(), 32)


# --- the networks ---


@pytest.mark.parametrize("method", ["layered", *MAGNITUDE])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_smaller_network_is_the_zeroed_one(name, method):
    build, shape = NETWORKS[name]
    net, x = build(), data(shape)
    with whole_channels():
        result = cimf.prune(net, [x], 0.5, method=method, structure="channels", n_jobs=1)
    small = result.shrink()
    assert type(small) is type(net)
    held_out = data(shape, seed=1)
    torch.testing.assert_close(small(held_out), result.network(held_out), rtol=0, atol=1e-10)
    # What is counted: the smaller network holds the weights that are left, and no zeros.
    kept, total = result.report.matched
    weights = [m.weight for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert sum(w.numel() for w in weights) == sum(int((w != 0).sum()) for w in weights) == kept
    assert abs(kept / total - 0.5) < 0.06
    assert cimf.multiply_adds(small, held_out) < 0.8 * cimf.multiply_adds(net, held_out)
    state = small.state_dict()
    assert state.keys() == net.state_dict().keys()
    assert all(not module.training for module in small.modules())


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_target_zero_changes_nothing(name):
    build, shape = NETWORKS[name]
    net, x = build(), data(shape, 200)
    result = cimf.prune(net, [x], 0.0, structure="channels", n_jobs=1)
    torch.testing.assert_close(result.network(x), net(x), rtol=0, atol=1e-8)
    with pytest.warns(UserWarning, match="nothing to shrink"):
        small = result.shrink()
    assert torch.equal(small(x), result.network(x))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_effects_beat_magnitudes_on_held_out_inputs(name):
    build, shape = NETWORKS[name]
    net, x, held_out = build(), data(shape, 200), data(shape, 200, seed=1)
    mix = torch.eye(shape[0]).double() + 0.4 * data((shape[0],), shape[0], seed=2)
    x, held_out = (torch.einsum("ij,nj...->ni...", mix, value) for value in (x, held_out))
    task, error = Task(net, [x]), {}
    for method in ("layered", *MAGNITUDE):
        with whole_channels():
            found = prune_task(task, 0.5, method, structure="channels", n_jobs=1)
        error[method] = float((found.network(held_out) - net(held_out)).norm())
    assert error["layered"] < min(error[method] for method in MAGNITUDE)


def test_layers_that_are_kept_keep_their_channels():
    net, x = small_cnn(), data((3, 8, 8))
    with whole_channels():
        result = cimf.prune(net, [x], 0.3, structure="channels", keep=["0"], n_jobs=1)
    small = result.shrink()
    assert small[0].weight.shape == net[0].weight.shape
    assert small[3].out_channels < 12
    assert any("groups of tied channels are removed" in note for note in result.report.notes)


def test_option_a_shortcuts_and_float32():
    torch.manual_seed(0)
    net, x = ResNet20().eval(), torch.randn(60, 3, 8, 8)
    with whole_channels():
        result = cimf.prune(net, [x], 0.3, "magnitude-layer", structure="channels")
    small = result.shrink()
    assert result.report.sparsity["network_weights"] == pytest.approx(0.3, abs=0.005)
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(
        p.numel() for p in net.parameters()
    )
    with torch.no_grad():
        torch.testing.assert_close(small(x), result.network(x), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_multiply_adds_counted_by_hand():
    net = small_cnn()  # 8x8 -> 6x6 -> 4x4 -> 2x2
    wanted = 8 * 27 * 36 + 12 * 72 * 16 + 4 * 48
    assert cimf.multiply_adds(net, data((3, 8, 8), 2)) == wanted
    tokens = randomised(Tokens())
    attention = 2 * 2 * 5 * 5 * 4  # two products, two heads
    wanted = 5 * (6 * 8 + 8 * 8 + 8 * 40 + 40 * 8) + attention + 8 * 4
    assert cimf.multiply_adds(tokens, data((5, 6), 3)) == wanted


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(16, 8, batch_first=True)

    def forward(self, x):
        return torch.nn.functional.linear(self.cell(x)[0], torch.ones(3, 8))


@pytest.mark.parametrize(
    ("net", "shape", "wanted"),
    [
        (nn.ConvTranspose1d(5, 7, 3), (5, 16), 16 * 5 * 7 * 3),
        (nn.Conv3d(2, 3, 3), (2, 4, 4, 4), 8 * 27 * 2 * 3),
        (nn.Conv2d(8, 8, 3, groups=8), (8, 4, 4), 4 * 9 * 8),
        # Per token: query, key, value, output, two layers; two heads of 8: scores and mean.
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (5, 16),
         5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 5 * 5 * 8),
        (Cell(nn.LSTM), (5, 16), 5 * (4 * 8 * (16 + 8) + 3 * 8)),
        (Cell(nn.GRU), (5, 16), 5 * (3 * 8 * (16 + 8) + 3 * 8)),
    ],
)  # fmt: skip
def test_multiply_adds_of_what_no_method_prunes(net, shape, wanted):
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    assert cimf.multiply_adds(net.train(), torch.randn(3, *shape)) == wanted
    assert all(module.training for module in net.modules())
    assert before == (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled)


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (3, torch.ones(2, 4), "torch.nn.Module"),
        (nn.Linear(4, 2), None, "iterable"),
        (nn.Linear(4, 2), torch.ones(0, 4), "empty"),
        (nn.Linear(4, 2), torch.ones(2, 5), "cannot be run"),
    ],
)
def test_multiply_adds_of_what_does_not_fit(net, inputs, message):
    with pytest.raises(InputError, match=message):
        cimf.multiply_adds(net, inputs)
    assert torch.backends.mha.get_fastpath_enabled()


def test_all_samples_are_compared():
    """Networks that differ beyond 1e6 alone: the last sample tells."""
    one, two = nn.Identity(), nn.Threshold(-1e6, 0.0)
    batches = [torch.ones(250, 3), torch.ones(50, 3)]
    shrinking._check(one, two, batches)
    batches[1][-1] = -1e7
    with pytest.raises(CaptureError, match="another function"):
        shrinking._check(one, two, batches)


def test_other_methods_shrink_too():
    """A method that sets channels to zero in its own way: the structure search of SSS."""
    net, x = small_cnn().float(), data((3, 8, 8)).float()
    labels = torch.arange(len(x)) % 4
    with whole_channels():
        result = cimf.prune(net, [(x, labels)], 0.5, "sss", epochs=1, tune_epochs=0)
    small = result.shrink()
    weights = [m.weight for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert sum(w.numel() for w in weights) == result.report.matched[0]
    assert cimf.multiply_adds(small, x) < cimf.multiply_adds(net, x)


def test_channels_that_only_dead_channels_read_go_as_well():
    net = mlp()
    with torch.no_grad():
        net[4].weight[:, :7] = 0.0
        net[2].weight[7:, :5] = 0.0  # neurons 0 to 4 are read by 0 to 6 of the next layer alone
    small = shrink(net, [data((12,))])
    assert [tuple(small[k].weight.shape) for k in (0, 2, 4)] == [(15, 12), (13, 15), (4, 13)]


def test_a_layer_that_nothing_reads_keeps_one_channel_and_what_it_reads():
    net = mlp()
    with torch.no_grad():
        net[4].weight.zero_()
    with pytest.warns(UserWarning, match=r"4 of layer 4 \(they are the network's output\)"):
        small = shrink(net, [data((12,))])
    assert [tuple(small[k].weight.shape) for k in (0, 2, 4)] == [(20, 12), (1, 20), (4, 1)]


# --- plain, and refused ---


def test_the_smaller_network_loads_without_this_library(tmp_path):
    net = mlp().float()
    with whole_channels():
        small = cimf.prune(net, [data((12,)).float()], 0.5, structure="channels").shrink()
    torch.save(small, tmp_path / "small.pt")
    x = torch.ones(1, 12)
    torch.save(small(x).detach(), tmp_path / "wanted.pt")
    code = (
        "import sys, torch; sys.modules['cimf'] = sys.modules['formulations'] = None\n"
        f"net = torch.load(r'{tmp_path / 'small.pt'}', weights_only=False)\n"
        f"assert torch.equal(net(torch.ones(1, 12)), torch.load(r'{tmp_path / 'wanted.pt'}'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class FixedSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Linear(24, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).view(-1, 24))


def test_a_forward_pass_that_counts_on_the_size_is_refused():
    net = FixedSize().double().eval()
    with torch.no_grad():
        net.head.weight[:, :4] = 0.0
    with pytest.raises(CaptureError, match="counts on the number of channels"):
        shrink(net, [data((1, 4, 4))])


def test_zero_channels_that_stay_are_named():
    net = randomised(ResNet20()).float()
    with torch.no_grad():
        net.layer2[0].conv2.weight[0] = 0.0
        net.layer1[0].conv2.weight[:, 0] = 0.0
    with pytest.warns(UserWarning, match=r"1 of layer layer2\.0\.conv2 \('pad' in layer 'layer2"):
        shrink(net, [torch.randn(2, 3, 8, 8)])


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (mlp, {"sparsity": 0.99}, "every layer keeping one; the target is 99.0%"),
        (mlp, {"sparsity": 0.5, "allocation": "uniform"}, 'allocation "output" or "error"'),
        (mlp, {"sparsity": 0.5, "support": "magnitude"}, "not used by structure"),
        (mlp, {"sparsity": 0.5, "swaps": False}, "not used by structure"),
        (mlp, {"sparsity": 0.5, "keep": ["0", "2"]}, "no whole channel can be taken out"),
        (mlp, {"sparsity": None}, "needs a target sparsity"),
        (lambda: nn.Sequential(nn.Linear(12, 4)), {"sparsity": 0.5}, "they are the network's out"),
    ],
)
def test_bad_input(net, options, message):
    with pytest.raises(InputError, match=message):
        cimf.prune(net().double(), [data((12,))], structure="channels", **options)
