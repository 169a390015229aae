"""The graph of a network with its linear maps as row problems.

A matched layer is a convolution or a linear module, with the batch norm behind it folded in. Its
rows are its output channels; its regressors are the patches of its input, with the network's own
weight sharing; its target is its output. Where the output is only added to something that is
known by then (a shortcut), the sum is the target and the other summand is the fixed part.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from cimf.errors import CaptureError, InputError
from cimf.network.trace import MATCHED, NORMS, trace

_ADDITIONS = {operator.add, torch.add, torch.ops.aten.add.Tensor, "add"}


@dataclass
class Layer:
    """One matched layer.

    Attributes
    ----------
    path : str
        Of the module in the network.
    node : fx.Node
        The call of the module in the folded graph.
    module : nn.Module
        The folded copy; its weight is what the rows replace.
    norm : str
        Path of the folded batch norm, or "".
    input_shape, output_shape : tuple of int
        Of one sample at the layer; () before `LayerGraph.measure` ran.
    summand : fx.Node or None
        What is added to the layer's output before anything else sees it, known when the layer runs.
    """

    path: str
    node: fx.Node
    module: Any
    norm: str = ""
    summand: fx.Node | None = None
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def source(self) -> fx.Node:
        """The node whose value the layer reads."""
        return self.node.all_input_nodes[0]

    @property
    def groups(self) -> int:
        """How many blocks of rows have a design of their own."""
        return int(getattr(self.module, "groups", 1))

    @property
    def has_bias(self) -> bool:
        """Whether the last column of the rows is a free bias."""
        return self.module.bias is not None

    @property
    def weight(self) -> Tensor:
        """The folded weight as rows, shape (r, N): one row per output channel, float64."""
        return self.module.weight.detach().double().flatten(1)

    @property
    def n_rows(self) -> int:
        """Output channels r."""
        return int(self.module.weight.shape[0])

    @property
    def n_columns(self) -> int:
        """Columns of a row without the bias: input channels of its group times kernel size."""
        return int(self.module.weight[0].numel())

    @property
    def n_weights(self) -> int:
        """Entries of the layer's weight."""
        return self.n_rows * self.n_columns

    @property
    def repeats(self) -> NDArray[np.int64]:
        """How often each column of a row occurs in the unrolled matrix (A, B, C, D), shape (N,).

        A convolution's weight acts at every output position whose patch reaches inside the image
        there; padding with anything but zeros reaches inside everywhere.
        """
        module = self.module
        if isinstance(module, nn.Linear):
            return np.full(self.n_columns, math.prod(self.output_shape[:-1]))
        total = np.ones(1, dtype=np.int64)
        before = module._reversed_padding_repeated_twice[::-1][1::2]  # left of each axis
        for axis, (size, stride, gap) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), start=1
        ):
            place = np.arange(self.output_shape[axis]) * stride - before[axis - 1]
            place = place + gap * np.arange(size)[:, None]
            inside = (place >= 0) & (place < self.input_shape[axis])
            if module.padding_mode != "zeros":
                inside[:] = True
            total = (total[:, None] * inside.sum(axis=1)).ravel()
        return np.tile(total, self.n_columns // len(total))

    @property
    def channel_axis(self) -> int:
        """Axis of the output that counts the rows; the others are samples and positions."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    def set_rows(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the folded weight by rows (r, N) and the bias by (r,)."""
        with torch.no_grad():
            self.module.weight.copy_(weight.reshape(self.module.weight.shape))
            if bias is not None:
                self.module.bias.copy_(bias)


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
    sample : Tensor, optional
        Input (b, ...) in `working_dtype`, for networks that cannot be traced symbolically, see
        `cimf.network.trace`.

    Attributes
    ----------
    module : fx.GraphModule
        The folded copy; running it gives the network's output.
    layers : list of Layer
        In the order in which they are solved.

    Raises
    ------
    InputError
        `net` is not an nn.Module, or fails on the sample.
    CaptureError
        It cannot be copied or traced, see `cimf.network.trace.trace`, uses a matched module twice,
        or has no layer. The message names the module's path.
    """

    def __init__(self, net: nn.Module, sample: Tensor | None = None) -> None:
        self.original = net
        self.dtype = dtype = working_dtype(net)
        try:
            root = copy.deepcopy(net).to("cpu", dtype).eval().requires_grad_(False)
        except Exception as error:
            raise CaptureError(f"the network cannot be copied to {dtype}: {error}") from error
        self.module = trace(root, sample)
        ranks = {} if sample is None else _ranks(self.module, sample[:2].clone())
        self.layers = self._find_layers(ranks)
        if not self.layers:
            raise CaptureError("the network has no convolution and no linear layer to match")

    @property
    def n_weights(self) -> int:
        """Entries of all matched weights, biases left out."""
        return sum(layer.n_weights for layer in self.layers)

    def measure(self, u: Tensor) -> Tensor:
        """Run the samples u (b, ...), note every layer's shapes, and return the output."""
        env: dict[fx.Node, Any] = {}
        output: Any = None
        for node, dead, layer in stages(self):
            env[node] = u if node.op == "placeholder" else evaluate_node(self.module, node, env)
            if layer is not None:
                layer.input_shape = tuple(env[layer.source].shape[1:])
                layer.output_shape = tuple(env[node].shape[1:])
            output = env[node]
            for value in dead:
                del env[value]
        return output

    def _find_layers(self, ranks: Mapping[fx.Node, int]) -> list[Layer]:
        graph = self.module.graph
        layers: dict[str, Layer] = {}
        calls = Counter(
            self.module.get_submodule(str(node.target))
            for node in graph.nodes
            if node.op == "call_module"
        )
        for node in list(graph.nodes):
            if node.op != "call_module":
                continue
            path = str(node.target)
            found: Any = self.module.get_submodule(path)
            if not isinstance(found, MATCHED):
                continue
            if path in layers:
                raise CaptureError(
                    f"layer {path!r} ({type(found).__name__}) is used more than once: its rows "
                    "have no single design"
                )
            layers[path] = Layer(path, node, found, self._fold(node, found, calls, ranks))
        # Of two layers that meet in an addition the larger one goes last: it corrects the other.
        for layer in sorted(layers.values(), key=lambda layer: layer.n_weights):
            _postpone(layer.node)
        order = {node: k for k, node in enumerate(graph.nodes)}
        ordered = sorted(layers.values(), key=lambda layer: order[layer.node])
        for layer in ordered:
            layer.summand = _summand(layer.node, order)
        graph.lint()
        self.module.recompile()
        return ordered

    def _fold(
        self,
        node: fx.Node,
        layer: Any,
        calls: Mapping[nn.Module, int],
        ranks: Mapping[fx.Node, int],
    ) -> str:
        """Fold the batch norm behind a layer into it; return its path, or "" if there is none.

        A norm that is called more than once stays as it is: `export` could not write it for all.
        So does one behind a linear layer over tokens: its channels are the tokens.
        """
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module":
            return ""
        path = str(users[0].target)
        norm: Any = self.module.get_submodule(path)
        if not isinstance(norm, NORMS) or calls[norm] > 1:
            return ""
        if isinstance(layer, nn.Linear) and ranks.get(node, 2) != 2:
            return ""
        if norm.running_var is None or norm.running_mean is None:
            raise CaptureError(
                f"layer {path!r} ({type(norm).__name__}) has no running statistics: its output "
                "depends on the batch. Use track_running_stats=True"
            )
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        shift = -norm.running_mean.double() * scale
        if norm.weight is not None:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        weight, bias = layer.weight.double(), layer.bias
        if bias is not None:
            shift = shift + scale * bias
        shape = (-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter((weight * scale.view(shape)).to(self.dtype), False)
        layer.bias = nn.Parameter(shift.to(self.dtype), False)
        users[0].replace_all_uses_with(node)
        self.module.graph.erase_node(users[0])
        return path

    def export(self) -> nn.Module:
        """Return a copy of the network that was given, with the layers' present rows as weights.

        A folded batch norm stays in place as the identity up to the layer's bias: variance and
        weight cancel, so the zeros of the rows are zeros of the weights. Class, dtype, device and
        mode are those of the network.
        """
        net = copy.deepcopy(self.original)
        with torch.no_grad():
            for layer in self.layers:
                target: Any = net.get_submodule(layer.path)
                weight, bias = layer.module.weight.double(), layer.module.bias
                if layer.norm:
                    norm: Any = net.get_submodule(layer.norm)
                    deviation = torch.sqrt(norm.running_var.double() + norm.eps).cpu()
                    if target.bias is not None:
                        target.bias.zero_()
                    if norm.weight is not None:
                        norm.weight.copy_(deviation)
                        norm.bias.copy_(bias)
                        norm.running_mean.zero_()
                    else:
                        weight = weight * deviation.view(-1, *[1] * (weight.ndim - 1))
                        norm.running_mean.copy_(-bias.double() * deviation)
                elif bias is not None:
                    target.bias.copy_(bias)
                target.weight.copy_(weight)
        return net


@torch.no_grad()
def _ranks(module: fx.GraphModule, u: Tensor) -> dict[fx.Node, int]:
    """Return the number of axes of every tensor in the graph, from a run on samples u (b, ...)."""
    env: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        env[node] = u if node.op == "placeholder" else evaluate_node(module, node, env)
    return {node: value.ndim for node, value in env.items() if isinstance(value, Tensor)}


def _postpone(node: fx.Node) -> None:
    """Move a call to just before its first user, so that a shortcut beside it is known by then."""
    users = set(node.users)
    follower = node.next
    while follower.op != "root":
        if follower in users:
            follower.prepend(node)
            return
        follower = follower.next


def _summand(node: fx.Node, order: dict[fx.Node, int]) -> fx.Node | None:
    """Return what a layer's output is added to, where that is all that happens to the output."""
    users = list(node.users)
    if len(users) != 1:
        return None
    add = users[0]
    if add.op not in ("call_function", "call_method") or add.target not in _ADDITIONS:
        return None
    others = [value for value in add.args if value is not node]
    if len(add.args) != 2 or add.kwargs or len(others) != 1:
        return None
    other = others[0]
    if isinstance(other, fx.Node) and order[other] < order[node]:
        return other
    return None


def stages(graph: LayerGraph) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...], Layer | None]]:
    """Yield every node in order, what may be forgotten after it, and its layer if it is matched."""
    nodes = list(graph.module.graph.nodes)
    by_node = {layer.node: layer for layer in graph.layers}
    last: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        needed = [value for value in node.all_input_nodes if value not in seen]
        last[node] = needed
        seen.update(needed)
    for node in nodes:
        yield node, tuple(last[node]), by_node.get(node)


def evaluate_node(module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """Return the value of a node from the values of its inputs."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda value: env[value])
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "get_attr":
        value: Any = module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value
    if node.op == "output":
        return args[0]
    raise CaptureError(f"the network takes several inputs ({node.target!r}); one is supported")
