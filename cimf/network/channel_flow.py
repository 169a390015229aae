"""Which channels of a network stand or fall together.

Every output channel of a layer is followed through the graph to the layers that read it. Channels
that meet in a sum or a product are tied; what a concatenation, a flattening or a pooling does to
them is found by trying: inputs of an operation are drawn anew, channel by channel, and the places
of the output that change are looked at. A channel whose trace is lost (it is mixed with others by
something that is no layer, or reaches the network's output) is held: it cannot be taken out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from cimf.network.batches import Batch
from cimf.network.exported import MATCHED, NORMS
from cimf.network.graph import Graph, Lane

Index = NDArray[np.int64]

# Why the channels of a last layer are held.
OUTPUT = "they are the network's output"
# Random samples on which operations are tried: an activation that is flat on one side hides a
# change of a single value once in four, of all samples once in 4^16.
_SAMPLES = 16


@dataclass(frozen=True)
class TiedChannels:
    """Channels that can only be taken out together.

    Attributes
    ----------
    rows : dict of str to (k,) int64
        By layer: its output channels among them.
    columns : dict of str to (k,) int64
        By layer without groups: the input channels that carry them (after a flattening one for
        each place).
    norms : dict of str to (k,) int64
        By batch norm: its channels.
    """

    rows: dict[str, Index]
    columns: dict[str, Index]
    norms: dict[str, Index]


@dataclass(frozen=True)
class ChannelFlow:
    """All channels of a network.

    Attributes
    ----------
    groups : tuple of TiedChannels
        Those that can be taken out.
    held : dict of str to str
        By layer, for those with output channels that cannot: why.
    """

    groups: tuple[TiedChannels, ...]
    held: dict[str, str]


@torch.no_grad()
def channel_flow(graph: Graph, sample: Batch) -> ChannelFlow:
    """Follow the channels of a network.

    Parameters
    ----------
    graph : Graph
        As `cimf.network.trace.trace` returns it: batch norms are there, nothing is done in place.
    sample : Tensor (b, ...)
        Inputs: shapes and types.
    """
    found = _Follower(graph)
    u = sample[torch.arange(_SAMPLES) % len(sample)]
    lane = graph.lane(u)
    for node in graph.walk(lane):
        found.follow(node, lane)
    return found.result()


@dataclass
class _Follower:
    """Names of channels: integers, one along the channel axis of every tensor that has them."""

    graph: Graph
    parent: list[int] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    names: dict[fx.Node, tuple[int, Index]] = field(default_factory=dict)
    rows: dict[str, Index] = field(default_factory=dict)
    columns: dict[str, Index] = field(default_factory=dict)
    norms: dict[str, Index] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def new(self, count: int) -> Index:
        first = len(self.parent)
        self.parent += range(first, first + count)
        return np.arange(first, first + count)

    def root(self, name: int) -> int:
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def tie(self, one: Sequence[int] | Index, other: Sequence[int] | Index) -> None:
        for a, b in zip(one, other, strict=True):
            self.parent[self.root(int(a))] = self.root(int(b))

    def hold(self, names: Sequence[int] | Index, why: str) -> None:
        for name in names:
            self.reasons.setdefault(int(name), why)

    def follow(self, node: fx.Node, lane: Lane) -> None:
        """Name the channels of a node's value, tie and hold what it ties and holds."""
        module, named = (
            self.graph.called(node),
            [n for n in node.all_input_nodes if n in self.names],
        )
        if isinstance(module, MATCHED):
            self._layer(node, module, lane)
        elif isinstance(module, NORMS):
            self._norm(node, lane)
        elif node.op == "output":
            for source in named:
                self.hold(self.names[source][1], OUTPUT)
        elif named and not self._through(node, module, named, lane):
            for source in named:
                self.hold(self.names[source][1], f"{self.graph.where(node)} mixes or reshapes them")

    def _layer(self, node: fx.Node, module: Any, lane: Lane) -> None:
        path, source, out = str(node.target), node.all_input_nodes[0], lane[node]
        linear = isinstance(module, torch.nn.Linear)
        axis = out.ndim - 1 if linear else 1
        groups, inputs = getattr(module, "groups", 1), module.weight.shape[1]
        given = self.names.get(source)
        fits = given is not None and given[0] == axis and len(given[1]) == inputs * groups
        again = path in self.rows  # the module was called before: its channels are the same ones
        if fits and given is not None and groups == 1 and (not again or path in self.columns):
            self.tie(self.columns.setdefault(path, given[1]), given[1])
        elif fits and given is not None and inputs == 1 and not again:
            # Depthwise: a channel stays a channel.
            self.rows[path] = np.repeat(given[1], len(module.weight) // groups)
            self.names[node] = axis, self.rows[path]
            return
        elif given is not None:
            how = "in groups" if groups > 1 else "along another axis"
            self.hold(given[1], f"{self.graph.where(node)} reads them {how}")
        if again and given is None and path in self.columns:
            self.hold(self.columns[path], f"{self.graph.where(node)} reads something fixed as well")
        if not again:
            self.rows[path] = self.new(len(module.weight))
        if groups > 1:
            self.hold(self.rows[path], f"{self.graph.where(node)} has groups")
        if any(
            isinstance(m, torch.nn.Embedding) and m.weight is module.weight
            for m in self.graph.module.modules()
        ):
            tied = f"{self.graph.where(node)} shares its matrix with an embedding"
            self.hold(self.rows[path], tied)
            self.hold(self.columns.get(path, ()), tied)
        self.names[node] = axis, self.rows[path]

    def _norm(self, node: fx.Node, lane: Lane) -> None:
        given = self.names.get(node.all_input_nodes[0])
        if given is None:
            return
        axis, names = given
        if axis != 1:
            self.hold(names, f"{self.graph.where(node)} normalises something else")
            return
        self.tie(self.norms.setdefault(str(node.target), names), names)
        self.names[node] = given

    def _through(self, node: fx.Node, module: Any, named: list[fx.Node], lane: Lane) -> bool:
        """Follow the channels through an operation; return whether it keeps them apart."""
        sized = [] if module is None else [*module.parameters(), *module.buffers()]
        if not isinstance(lane[node], Tensor):
            holds = isinstance(lane[node], tuple | list) and not isinstance(lane[node], torch.Size)
            return not holds  # a size does not
        if any(value.numel() > 1 for value in sized):
            return False
        if not all(lane[source].is_floating_point() for source in named):  # masks, positions
            return False
        trial = _Trial(self.graph, node, lane, self.generator)
        reads = {source: trial.reads(source, *self.names[source]) for source in named}
        others = [n for n in node.all_input_nodes if n not in named and isinstance(lane[n], Tensor)]
        touched = {n: trial.touched(n) for n in others}
        for axis in range(1, lane[node].ndim):
            found = {source: read[axis] for source, read in reads.items()}
            if all((index != _MANY).all() for index in found.values()) and any(
                (index != _NONE).any() for index in found.values()
            ):
                beside = [
                    touched[n][axis] for n in others if not _broadcast(lane[n], lane[node], axis)
                ]
                self.names[node] = axis, self._names_behind(node, found, beside)
                return True
        return False

    def _names_behind(
        self, node: fx.Node, found: Mapping[fx.Node, Index], beside: Sequence[NDArray[np.bool_]]
    ) -> Index:
        """Return the names of an output's channels from the input channels that each one reads."""
        count = len(next(iter(found.values())))
        names = np.full(count, _NONE)
        for source, index in found.items():
            own = np.where(index == _NONE, _NONE, self.names[source][1][index])
            both = (own != _NONE) & (names != _NONE)
            self.tie(own[both], names[both])
            names = np.where(names == _NONE, own, names)
        empty = names == _NONE
        names[empty] = self.new(int(empty.sum()))
        self.hold(names[empty], f"{self.graph.where(node)} fills them up")
        for changed in beside:
            self.hold(names[changed], f"{self.graph.where(node)} joins them with something fixed")
        return names

    def result(self) -> ChannelFlow:
        held = {self.root(name): why for name, why in self.reasons.items()}
        members: dict[int, TiedChannels] = {}
        for kind in ("rows", "columns", "norms"):
            for path, names in getattr(self, kind).items():
                roots = np.array([self.root(int(name)) for name in names])
                for root in np.unique(roots):
                    group = members.setdefault(int(root), TiedChannels({}, {}, {}))
                    getattr(group, kind)[path] = np.flatnonzero(roots == root)
        groups = tuple(
            group for root, group in sorted(members.items()) if root not in held and group.rows
        )
        reasons = {
            path: why
            for path, names in self.rows.items()
            if (why := next((held[r] for n in names if (r := self.root(int(n))) in held), ""))
        }
        return ChannelFlow(groups, reasons)


# What a place of an output reads: no channel of an input, or more than one.
_NONE, _MANY = -1, -2


class _Trial:
    """An operation on random inputs of the shapes that it has in the network."""

    def __init__(self, graph: Graph, node: fx.Node, lane: Lane, generator: torch.Generator) -> None:
        self.graph, self.node, self.lane, self.generator = graph, node, lane, generator
        self.inputs = {
            n: self._drawn(lane[n])
            for n in node.all_input_nodes
            if isinstance(lane[n], Tensor) and lane[n].is_floating_point() and n.op != "get_attr"
        }
        self.base = self._run({})

    def _drawn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)

    def _run(self, changed: Mapping[fx.Node, Tensor]) -> Tensor:
        values = Lane(self.lane.given)
        values.update({n: self.lane[n] for n in self.node.all_input_nodes})
        values.update({**self.inputs, **changed})
        out: Tensor = self.graph.evaluate(self.node, values)
        return out

    def _changes(self, changed: Mapping[fx.Node, Tensor]) -> list[NDArray[np.bool_]]:
        """Return which indices of each axis of the output change."""
        now = self._run(changed)
        moved = ~((now == self.base) | (now.isnan() & self.base.isnan()))
        return [
            moved.movedim(k, 0).reshape(moved.shape[k], -1).any(1).numpy()
            for k in range(moved.ndim)
        ]

    def touched(self, source: fx.Node) -> list[NDArray[np.bool_]]:
        """Return which indices of each axis of the output change with an input as a whole."""
        if source not in self.inputs:  # a constant, or integers: taken to matter everywhere
            return [np.ones(size, dtype=bool) for size in self.base.shape]
        return self._changes({source: self._drawn(self.inputs[source])})

    def reads(self, source: fx.Node, axis: int, names: Index) -> list[Index]:
        """Return, for every index of each axis of the output, which channel of an input it reads.

        Half of the channels are drawn anew at a time, by the bits of their numbers: an index that
        changes with exactly one of the halves for every bit reads one channel.
        """
        x, fresh = self.inputs[source], self._drawn(self.inputs[source])
        shape = [1] * x.ndim
        shape[axis] = -1
        number = torch.arange(len(names)).view(shape)
        found = [np.zeros(size, np.int64) for size in self.base.shape]
        none = [np.ones(size, bool) for size in self.base.shape]
        many = [np.zeros(size, bool) for size in self.base.shape]
        for bit in range(max(1, (len(names) - 1).bit_length())):
            one, two = (
                self._changes({source: torch.where((number >> bit) % 2 == half, fresh, x)})
                for half in (0, 1)
            )
            for k in range(self.base.ndim):
                none[k] &= ~(one[k] | two[k])
                many[k] |= one[k] == two[k]
                found[k] += two[k].astype(np.int64) << bit
        return [
            np.where(none[k], _NONE, np.where(many[k], _MANY, found[k]))
            for k in range(self.base.ndim)
        ]


def _broadcast(value: Tensor, out: Tensor, axis: int) -> bool:
    """Whether an operand has no extent of its own along an axis of the output."""
    place = axis - out.ndim  # counted from the end, as broadcasting does
    return -place > value.ndim or value.shape[place] == 1
