"""Channels that stand or fall together, against architectures whose ties are known."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cimf.network.channel_flow import channel_flow
from cimf.network.copies import plain_copy, working_copy
from cimf.network.trace import trace


def flow(net, sample):
    torch.manual_seed(0)
    reference = working_copy(plain_copy(net.eval()), torch.float32)
    return channel_flow(trace(reference, torch.float32, sample), sample)


def listed(group):
    """{kind: {path: indices}} of a group, as plain lists."""
    return {
        kind: {path: index.tolist() for path, index in getattr(group, kind).items()}
        for kind in ("rows", "columns", "norms")
    }


class Wide(nn.Module):
    """Concatenation, batch norm behind it, depthwise, squeeze and excite, pooling, flattening."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.norm, self.depth = nn.BatchNorm2d(10), nn.Conv2d(10, 20, 3, groups=10)
        self.squeeze, self.excite = nn.Linear(20, 4), nn.Linear(4, 20)
        self.head = nn.Linear(20 * 9, 5)

    def forward(self, x):
        a = torch.relu(self.a(x))
        x = self.depth(torch.relu_(self.norm(torch.cat([a, self.b(a)], 1))))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        x = functional.max_pool2d(x * gate[:, :, None, None], 2)
        return self.head(x.view(x.size(0), -1))


def test_ties_of_concatenation_depthwise_product_and_flattening():
    found = flow(Wide(), torch.randn(3, 3, 8, 8))
    groups = [listed(group) for group in found.groups]
    assert len(groups) == 4 + 6 + 4  # outputs of a, of b, and of the squeeze
    for c in range(4):  # a channel of a: tenth c of what is concatenated, twice in the depthwise
        assert {
            "rows": {"a": [c], "depth": [2 * c, 2 * c + 1], "excite": [2 * c, 2 * c + 1]},
            "columns": {
                "b": [c], "squeeze": [2 * c, 2 * c + 1], "head": list(range(18 * c, 18 * c + 18)),
            },
            "norms": {"norm": [c]},
        } in groups  # fmt: skip
        assert {"rows": {"squeeze": [c]}, "columns": {"excite": [c]}, "norms": {}} in groups
    assert {path: why for path, why in found.held.items() if path != "head"} == {}
    assert "output" in found.held["head"]


class Padded(nn.Module):
    """A residual sum, then a shortcut that subsamples and pads the channels with zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.wide = nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.norm(self.body(x)))
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(torch.relu(self.wide(x) + short).mean((2, 3)))


def test_sums_tie_and_padding_holds():
    found = flow(Padded(), torch.randn(3, 2, 8, 8))
    assert [listed(group)["rows"] for group in found.groups] == [
        {"stem": [c], "body": [c], "wide": [c + 2]} for c in range(4)
    ]
    assert listed(found.groups[1])["columns"] == {"body": [1], "wide": [1], "head": [3]}
    assert "pad" in found.held["wide"]


class Tokens(nn.Module):
    """Embedding with positions, attention in heads, a feed-forward block, layer norm."""

    def __init__(self):
        super().__init__()
        self.embed, self.query = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head, self.places = nn.Linear(8, 3), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = self.embed(x) + self.places
        q = self.query(x).view(x.shape[0], 5, 2, 4).transpose(1, 2)
        x = x + ((q @ q.mT).softmax(-1) @ q).transpose(1, 2).flatten(2)
        return self.head((x + self.down(functional.gelu(self.up(self.norm(x))))).mean(1))


def test_of_a_transformer_the_hidden_neurons_are_free():
    found = flow(Tokens(), torch.randn(3, 5, 6))
    assert [listed(group) for group in found.groups] == [
        {"rows": {"up": [c]}, "columns": {"down": [c]}, "norms": {}} for c in range(12)
    ]
    assert set(found.held) == {"embed", "query", "down", "head"}
    assert "view" in found.held["query"]


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (nn.ReLU(), True),
        (nn.ReLU6(), True),
        (nn.PReLU(), True),
        (nn.AvgPool2d(2), True),
        (nn.InstanceNorm2d(6), True),
        (nn.Dropout(), True),
        (nn.PReLU(6), False),  # has parameters of its own for every channel
        (nn.GroupNorm(2, 6), False),
        (nn.Softmax(1), False),
        (nn.ChannelShuffle(2), True),  # followed; the smaller network is then checked
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_keeps_channels_apart(between, free):
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    found = flow(net, torch.randn(4, 2, 8, 8))
    assert len(found.groups) == (6 if free else 0)
    assert ("0" in found.held) != free
    if free:
        columns = np.concatenate([group.columns["4"] for group in found.groups])
        assert sorted(columns.tolist()) == list(range(6))


class Gated(nn.Module):
    """A mask by comparison: not followed, so held."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.one(x)
        return self.two(x * (x > 0.1))


class Transposed(nn.Module):
    """A linear layer over the positions of a map."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(2, 5, 1), nn.Linear(7, 3)

    def forward(self, x):
        return self.two(self.one(x)).flatten(1)


def test_masks_and_other_axes_are_held_by_name():
    found = flow(Gated(), torch.randn(3, 4))
    assert found.groups == ()
    assert "mul" in found.held["one"]
    found = flow(Transposed(), torch.randn(3, 2, 7))
    assert found.groups == ()
    assert "'two' (Linear) reads them along another axis" in found.held["one"]


def test_a_grouped_convolution_holds_both_sides():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(16, 2)
    )
    found = flow(net, torch.randn(3, 2, 2, 2))
    assert found.groups == ()
    assert "groups" in found.held["0"]
    assert "groups" in found.held["1"]
