"""A traced network with its nonlinearities found, and run cut open at them.

What lies between the nonlinearities is not looked up in a list of layers: `cimf.network.probe`
tests that it is affine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from cimf.errors import CaptureError
from cimf.network.activations import ACTIVATIONS, Activation, as_activation
from cimf.network.copies import check_hooks, plain_copy, working_copy
from cimf.network.graph import Graph, Lane, as_output, op_name
from cimf.network.trace import refuse_several_inputs, trace

# Modules by type; their attributes have the names of the family's parameters.
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ELU: "elu",
    nn.CELU: "celu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.LogSigmoid: "logsigmoid",
    nn.Hardtanh: "hardtanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Softshrink: "softshrink",
}
# Functions and tensor methods, without the trailing underscore of an in-place one. Parameters
# follow the input in the order of the family.
_FUNCTIONS: dict[str, str] = {
    **{name: name for name in ACTIVATIONS if name != "identity"},
    "log_sigmoid": "logsigmoid",
    "absolute": "abs",
    "arctan": "atan",
    "special_expit": "sigmoid",
    "special_erf": "erf",
}
_CLAMPS: dict[str, tuple[str, ...]] = {
    "clamp": ("min", "max"),
    "clip": ("min", "max"),
    "clamp_min": ("min",),
    "clamp_max": ("max",),
}
# Values that depend on the shape or type of a tensor only.
_SHAPE_QUERIES = {
    "size",
    "sym_size",
    "dim",
    "numel",
    "shape",
    "dtype",
    "device",
    "ndim",
    "ndimension",
}


@dataclass(frozen=True)
class Network:
    """A traced network.

    Attributes
    ----------
    reference : nn.Module
        The float64 copy in eval mode, not traced: what Y is compared with.
    graph : Graph
        The same computation.
    cuts : dict of fx.Node to (str, Activation)
        The nonlinearities in order of execution: a unique name and what they apply.
    """

    reference: nn.Module
    graph: Graph
    cuts: dict[fx.Node, tuple[str, Activation]]

    def lane(self, u: Tensor, states: Sequence[Tensor] | None = None) -> Lane:
        """Return a lane for inputs u (k, ...), cut open at `states` where they are given.

        Parameters
        ----------
        states : sequence of Tensor (k, ...), optional
            Values that replace the output of each nonlinearity, in order of execution.
        """
        given = {} if states is None else dict(zip(self.cuts, states, strict=True))
        return Lane({self.graph.source: u, **given})


class Opened(NamedTuple):
    """Input and output of every nonlinearity in order of execution, (k, ...), and the output."""

    n_samples: int
    z: list[Tensor]
    x: list[Tensor]
    output: object

    @property
    def y(self) -> Tensor:
        """The output (k, ...); raises `CaptureError` if it is not one tensor of that form."""
        if not isinstance(self.output, Tensor):
            raise CaptureError(
                f"the network returns a {type(self.output).__name__.removeprefix('immutable_')} "
                f"for {self.n_samples} samples; an implicit model has one output: wrap the network "
                "in a module that returns one tensor"
            )
        return as_output(self.output, self.n_samples)


@torch.no_grad()
def run(network: Network, u: Tensor, states: Sequence[Tensor] | None = None) -> Opened:
    """Run a network on float64 inputs u (k, ...), cut open at `states` where they are given.

    Raises
    ------
    CaptureError
        A layer fails, or the samples are not in the first dimension of a state.
    """
    lane = network.lane(u, states)
    z, x = [], []
    for node in network.graph.walk(lane):
        if node in network.cuts:
            before = lane[node.all_input_nodes[0]]
            if before.shape[:1] != u.shape[:1]:
                raise CaptureError(
                    f"{network.graph.where(node)} acts on a tensor of shape {tuple(before.shape)} "
                    f"for {len(u)} samples: the samples must be in the first dimension"
                )
            z.append(before)
            x.append(lane[node])
        out = lane[node]
    return Opened(len(u), z, x, out)


def trace_network(
    net: nn.Module,
    activations: Mapping[type[nn.Module], Activation | str] | None = None,
    sample: Tensor | None = None,
) -> Network:
    """Copy, convert and trace a network.

    Parameters
    ----------
    net : nn.Module
        Not modified: neither its mode, its parameters, its gradients nor its hooks.
    activations : mapping of module type to Activation or name, optional
        Modules of your own that apply one elementwise function.
    sample : Tensor, optional
        float64 inputs (b, ...), for forward passes that cannot be traced symbolically, and to see
        that forward hooks change nothing.

    Raises
    ------
    InputError
        `net` is not an nn.Module.
    CaptureError
        It cannot be copied or traced, see `plain_copy` and `trace`; the message names the layer.
    """
    custom = {kind: as_activation(value) for kind, value in (activations or {}).items()}
    plain = plain_copy(net, "cpu", torch.float64)
    refuse_several_inputs(plain)
    reference = working_copy(plain, torch.float64)
    graph = trace(reference, torch.float64, sample, custom)
    if sample is not None:
        check_hooks(plain, reference, sample)
    # With its hooks: one that acts on few samples only shows where all are captured.
    hooked = working_copy(plain, torch.float64, hooks=True)
    return Network(hooked, graph, find_cuts(graph, custom))


def find_cuts(
    graph: Graph, custom: Mapping[type[nn.Module], Activation] | None = None
) -> dict[fx.Node, tuple[str, Activation]]:
    """Return the nodes that apply a known activation to something that depends on the input."""
    cuts: dict[fx.Node, tuple[str, Activation]] = {}
    used: dict[str, int] = {}
    depends = {graph.source}
    for node in graph.nodes:
        if asks_for_shape(node) or not depends.intersection(node.all_input_nodes):
            continue
        depends.add(node)
        if node.op == "call_module":
            found = _from_module(graph.called(node), custom or {})
            base = str(node.target)
        elif node.op in ("call_function", "call_method"):
            found = _from_call(node)
            owner = node.meta.get("owner", "")
            base = f"{owner}.{op_name(node)}" if owner else op_name(node)
        else:
            continue
        if found is not None:
            used[base] = used.get(base, 0) + 1
            cuts[node] = (base if used[base] == 1 else f"{base}#{used[base]}", found)
    return cuts


def asks_for_shape(node: fx.Node) -> bool:
    """Whether a node's value depends on the shape or type of a tensor only."""
    return op_name(node) in _SHAPE_QUERIES or (
        node.target is getattr and node.args[1] in _SHAPE_QUERIES
    )


def _from_module(
    module: nn.Module, custom: Mapping[type[nn.Module], Activation]
) -> Activation | None:
    """Return what a leaf module applies elementwise, or None."""
    if type(module) in custom:
        return custom[type(module)]
    if isinstance(module, nn.PReLU) and module.weight.numel() == 1:
        return as_activation("leaky_relu", negative_slope=float(module.weight))
    if isinstance(module, nn.RReLU):  # in eval mode
        return as_activation("leaky_relu", negative_slope=(module.lower + module.upper) / 2)
    if isinstance(module, nn.Threshold) and module.threshold == module.value == 0:
        return as_activation("relu")
    for kind in type(module).__mro__:
        if kind in _MODULES and type(module).forward is kind.forward:
            name = _MODULES[kind]
            keys = [key for key, _ in ACTIVATIONS[name].params]
            return as_activation(name, **{key: getattr(module, key) for key in keys})
    return None


def _from_call(node: fx.Node) -> Activation | None:
    """Return what a function or method call of torch applies elementwise, or None."""
    home = getattr(node.target, "__module__", None) or "torch"
    if node.op == "call_function" and home.partition(".")[0] not in ("torch", "_operator"):
        return None
    op = op_name(node).removesuffix("_")
    extra = node.args[1:]
    named = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
    if op in _CLAMPS:
        bounds = {**dict(zip(_CLAMPS[op], extra, strict=False)), **named}
        low, high = (bounds.pop(key, None) for key in ("min", "max"))
        if bounds or not all(isinstance(value, int | float | None) for value in (low, high)):
            return None
        if high is None and low == 0:
            return as_activation("relu")
        low = -float("inf") if low is None else low
        return as_activation(
            "hardtanh", min_val=low, max_val=float("inf") if high is None else high
        )
    if op == "threshold" and tuple(extra[:2]) == (0, 0):
        return as_activation("relu")
    if op not in _FUNCTIONS:
        return None
    name = _FUNCTIONS[op]
    keys = [key for key, _ in ACTIVATIONS[name].params]
    params = {**dict(zip(keys, extra, strict=False)), **named}
    if set(params) - set(keys) or not all(
        isinstance(v, int | float | str) for v in params.values()
    ):
        return None
    return as_activation(name, **params)
