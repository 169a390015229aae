"""The graph of a network with its linear maps as row problems.

A matched layer is a convolution or a linear module, with the batch norm behind it folded in. Its
rows are its output channels; its regressors are the patches of its input, with the network's own
weight sharing; its target is its output. Where the output is only added to something that is
known by then (a shortcut), the sum is the target and the other summand is the fixed part.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from cimf.errors import CaptureError, InputError
from cimf.network.batches import Batch, Inputs, joined, run, tensors_of
from cimf.network.copies import check_hooks, difference, plain_copy, tolerance, working_copy
from cimf.network.equivalents import Equivalent
from cimf.network.expansion import by_modules, expand, expanded
from cimf.network.exported import MATCHED
from cimf.network.fold import fold_norms, unfold
from cimf.network.graph import Graph, as_output
from cimf.network.layer_checks import (
    check_layers,
    refuse_matrices,
    refuse_shared,
    sample_axes,
)
from cimf.network.patches import Layer as Layer
from cimf.network.trace import join_outputs, trace

_ADDITIONS = {operator.add, torch.add, torch.ops.aten.add.Tensor, "add"}

Rows = Mapping[str, tuple[Tensor, Tensor | None]]
"""By layer: rows (r, N) of its folded weight, and its bias (r,) or None."""


def working_dtype(net: nn.Module) -> torch.dtype:
    """Return the dtype in which a network's states are computed: float32, or float64 where it is.

    Raises
    ------
    InputError
        `net` is not a network with parameters.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    if isinstance(net, fx.GraphModule):
        raise InputError("net must be the network itself, not a traced graph")
    if not any(True for _ in net.parameters()):
        raise InputError(f"net ({type(net).__name__}) has no parameters: nothing to make sparse")
    double = any(p.dtype == torch.float64 for p in net.parameters())
    return torch.float64 if double else torch.float32


class LayerGraph:
    """A folded, traced copy of a network in eval mode, and its matched layers in order.

    Parameters
    ----------
    net : nn.Module
        Not modified. Statistics are taken on a float32 copy (float64 where the network is).
    sample : Tensor or Inputs
        Samples (b, ...) in `working_dtype` on which everything is checked: that the graph is the
        network, that samples do not mix, that every layer is W x + b with its own weight, and that
        the network uses the weights which `export` writes.
    others : sequence of Tensor or Inputs
        Further inputs, on which forward hooks are tried as well.

    Attributes
    ----------
    original : nn.Module
        The network as a `plain_copy`: of this one `export` returns copies.
    module : fx.GraphModule
        The folded copy; running it gives the network's output.
    layers : list of Layer
        In the order in which they are solved.
    several : bool
        Whether the network returns several tensors, which are one here, see `as_output`.
    uncalled : tuple of str
        Paths of convolutions and linear modules that are not called in eval mode.

    Raises
    ------
    InputError
        `net` is not an nn.Module, or fails on the sample.
    CaptureError
        It cannot be copied or traced, a layer shares a parameter or is not what it
        seems to be, or there is none. The message names the module's path.
    """

    def __init__(self, net: nn.Module, sample: Batch, others: Sequence[Batch] = ()) -> None:
        self.dtype = working_dtype(net)
        with torch.inference_mode(False), torch.no_grad():
            self.original = plain_copy(net)
            self._build(sample, others)

    def _build(self, sample: Batch, others: Sequence[Batch]) -> None:
        if len(sample) == 1:  # samples that mix show only beside others
            sample = joined([sample, _rolled(sample)])
        refuse_shared(self.original)
        reference = working_copy(self.original, self.dtype)
        expected = as_output(run(reference, sample, "calibration"), len(sample))
        check_hooks(self.original, reference, sample, *others)
        if not torch.isfinite(expected).all():
            raise CaptureError("the network's output has NaN or infinite values")
        with by_modules():
            self._follow(reference, sample, expected)

    def _follow(self, reference: nn.Module, sample: Batch, expected: Tensor) -> None:
        whole, _ = expand(reference)
        graph = self.traced = trace(whole, self.dtype, sample)
        self.several = join_outputs(graph)
        refuse_matrices(graph, whole)
        shapes = graph.shapes(sample)
        if not difference(graph(sample), expected) <= tolerance(self.dtype):
            raise CaptureError(
                f"the traced network differs from the network itself by "
                f"{difference(graph(sample), expected):.1e}: its forward pass does something "
                "that tracing does not see, or reads what was changed in place"
            )
        axes = sample_axes(graph, sample)
        norms = fold_norms(graph, shapes)
        self.layers = _find_layers(graph, norms, shapes, axes)
        if isinstance(self.original, MATCHED):
            self.layers = [
                replace(layer, path="", again=tuple(replace(one, path="") for one in layer.again))
                for layer in self.layers
            ]
        if not self.layers:
            raise CaptureError("the network has no convolution and no linear layer to match")
        called = {layer.path for layer in self.layers}
        self.uncalled = tuple(
            path
            for path, module in whole.named_modules()
            if isinstance(module, MATCHED) and path not in called
        )
        self._seen = [layer for layer in self.layers if not _within_equivalent(whole, layer.path)]
        self._check_export(sample)

    @property
    def module(self) -> fx.GraphModule:
        """The folded copy."""
        return self.traced.module

    @property
    def n_weights(self) -> int:
        """Entries of all matched weights, biases left out."""
        return sum(layer.n_weights for layer in self.layers)

    def run(self, u: Batch, rows: Rows | None = None) -> Tensor:
        """Return the output for inputs u (b, ...), with other rows of some layers."""
        changed = {}
        for layer in self.layers:
            for name, value in layer.parameters(rows or {}).items():
                changed[f"{layer.node.target}.{name}"] = value
        return functional_call(self.module, changed, tensors_of(u))

    def export(self, rows: Rows | None = None) -> nn.Module:
        """Return a copy of the network with its layers' weights replaced by rows.

        A folded batch norm stays in place as the identity up to the layer's bias. Class, dtype,
        device and mode are those of the network; wrappers and reparametrisations (pruning masks,
        weight norm) are gone.
        """
        with torch.inference_mode(False):
            net = copy.deepcopy(self.original)
            self._write(net, rows or {})
        return net

    @torch.no_grad()
    def _write(self, net: nn.Module, rows: Rows) -> None:
        with expanded(net) as whole:
            self._write_layers(whole, rows)

    def _write_layers(self, net: nn.Module, rows: Rows) -> None:
        for layer in self.layers:
            target: Any = net.get_submodule(layer.path)
            new = layer.parameters(rows) or dict(layer.module.named_parameters())
            weight, bias = new["weight"].double(), new.get("bias")
            if layer.norm and bias is not None:
                unfold(target, net.get_submodule(layer.norm), weight, bias)
                continue
            target.weight.copy_(weight)
            if bias is not None:
                target.bias.copy_(bias)

    def _check_export(self, sample: Batch) -> None:
        """Change every row and see that the network which is written does what the graph says."""
        generator = torch.Generator().manual_seed(0)

        def moved(value: Tensor, size: Tensor) -> Tensor:
            signs = torch.randint(0, 2, (2, *value.shape), generator=generator) * 2 - 1
            return value * (1 + 0.1 * signs[0]) + 0.02 * size * signs[1]

        rows = {}
        for layer in self.layers:
            weight, bias = layer.module.weight.flatten(1), layer.module.bias
            size = weight.square().mean().sqrt()
            rows[layer.path] = moved(weight, size), None if bias is None else moved(bias, size)
        net = working_copy(self.original, self.dtype, hooks=True)
        self._write(net, rows)
        found = check_layers(net, self._seen, sample)
        error = difference(found, self.run(sample, rows))
        if not error <= tolerance(self.dtype):
            raise CaptureError(
                f"with other weights the network differs from its graph by {error:.1e}: it reads a "
                "weight or a batch norm in more than one place, or its weights are overwritten"
            )


def _within_equivalent(net: nn.Module, path: str) -> bool:
    """Whether a module is, or stands in, the equivalent of another one."""
    parts = path.split(".")
    owners = [".".join(parts[:k]) for k in range(len(parts) + 1)]
    return any(isinstance(net.get_submodule(owner), Equivalent) for owner in owners)


def _rolled(sample: Batch) -> Batch:
    """Return samples whose values stand elsewhere."""

    def roll(u: Tensor) -> Tensor:
        return u.flatten(1).roll(1, 1).view_as(u) if u.ndim > 1 else u

    return sample.map(roll) if isinstance(sample, Inputs) else roll(sample)


def _find_layers(
    graph: Graph,
    norms: Mapping[str, str],
    shapes: Mapping[fx.Node, tuple[int, ...]],
    axes: Mapping[fx.Node, int | None],
) -> list[Layer]:
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if not isinstance(graph.called(node), MATCHED):
            continue
        if node not in axes:
            raise CaptureError(
                f"{graph.where(node)} reads nothing of the samples, its output is the same for all "
                "of them: compute it once and keep it as a buffer"
            )
        nodes.setdefault(str(node.target), []).append(node)

    def rank(node: fx.Node) -> tuple[bool, int]:
        wider = any(
            user.target in _ADDITIONS and shapes[user] != shapes[node] for user in node.users
        )
        return not wider, graph.called(node).weight.numel()

    # Of two layers that meet in an addition the larger one goes last, it corrects the other, unless
    # its output is smaller than the sum.
    for node in sorted(itertools.chain(*nodes.values()), key=rank):
        _postpone(node)
    order = {node: k for k, node in enumerate(graph.nodes)}
    graph.module.graph.lint()
    graph.module.recompile()

    def called(path: str, node: fx.Node) -> Layer:
        return Layer(
            path,
            node,
            graph.called(node),
            norms.get(path, ""),
            _summand(node, order, shapes),
            shapes[node.all_input_nodes[0]][1:],
            tuple(n for k, n in enumerate(shapes[node]) if k != (axes[node] or 0)),
            axes[node],
        )

    found = []
    for path, several in nodes.items():
        first, *again = (called(path, node) for node in sorted(several, key=order.__getitem__))
        table = first.module.weight
        lookups = tuple(
            node
            for node in graph.nodes
            if isinstance(one := graph.called(node), nn.Embedding) and one.weight is table
        )
        found.append(replace(first, again=tuple(again), lookups=lookups))
    return sorted(found, key=lambda layer: order[layer.node])


def _postpone(node: fx.Node) -> None:
    """Move a call to just before its first user, so that a shortcut beside it is known by then."""
    users = set(node.users)
    follower = node.next
    while follower.op != "root":
        if follower in users:
            follower.prepend(node)
            return
        follower = follower.next


def _summand(
    node: fx.Node, order: Mapping[fx.Node, int], shapes: Mapping[fx.Node, tuple[int, ...]]
) -> fx.Node | None:
    """Return what a layer's output is added to, where that is all that happens to the output.

    The sum has the shape of the layer's output; the summand may be smaller and be repeated.
    """
    users = list(node.users)
    if len(users) != 1:
        return None
    add = users[0]
    if add.op not in ("call_function", "call_method") or add.target not in _ADDITIONS:
        return None
    others = [value for value in add.args if value is not node]
    if len(add.args) != 2 or add.kwargs or len(others) != 1 or shapes[add] != shapes[node]:
        return None
    other = others[0]
    if isinstance(other, fx.Node) and order[other] < order[node]:
        return other
    return None
