"""A network as the toolkit sees it: a float64 copy in eval mode, traced, its nonlinearities found.

Tracing is symbolic (torch.fx), so functional activations, residual additions and modules used twice
are seen like everything else, and control flow that depends on the data is refused. What lies
between the nonlinearities is not looked up in a list of layers: `cimf.network.probe` tests that it
is affine.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from cimf.errors import CaptureError, InputError, warn_outside
from cimf.network.activations import ACTIVATIONS, Activation, as_activation

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
_SHAPE_QUERIES = {"size", "dim", "numel", "shape", "dtype", "device", "ndim", "ndimension"}


class HookWarning(UserWarning):
    """The network has forward hooks, which capture does not run."""


@dataclass
class Network:
    """A traced network.

    Attributes
    ----------
    reference : nn.Module
        The float64 copy in eval mode, not traced: what Y is compared with.
    module : fx.GraphModule
        The same computation as a graph.
    cuts : dict of fx.Node to (str, Activation)
        The nonlinearities in order of execution: a unique name and what they apply.
    last_uses : dict of fx.Node to list of fx.Node
        Values that nothing needs after a node.
    """

    reference: nn.Module
    module: fx.GraphModule
    cuts: dict[fx.Node, tuple[str, Activation]]
    last_uses: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[fx.Node] = set()
        for node in reversed(self.module.graph.nodes):
            dead = [value for value in node.all_input_nodes if value not in seen]
            self.last_uses[node] = dead
            seen.update(dead)

    def where(self, node: fx.Node) -> str:
        """Return words that name a node: a layer's path and type, or a function and its owner."""
        if node.op == "call_module":
            kind = type(self.module.get_submodule(str(node.target))).__name__
            return f"layer {str(node.target)!r} ({kind})"
        owner = node.meta.get("owner", "")
        place = f"layer {owner!r}" if owner else "the network's own forward"
        return f"{_op_name(node)!r} in {place}"


def trace_network(
    net: nn.Module, activations: Mapping[type[nn.Module], Activation | str] | None = None
) -> Network:
    """Copy, convert and trace a network.

    Parameters
    ----------
    net : nn.Module
        Not modified: neither its mode, its parameters, its gradients nor its hooks.
    activations : mapping of module type to Activation or name, optional
        Modules of your own that apply one elementwise function.

    Raises
    ------
    InputError
        `net` is not an nn.Module.
    CaptureError
        It cannot be copied or traced, takes several inputs, or has NaN or infinite weights; the
        message names the layer.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    custom = {kind: as_activation(value) for kind, value in (activations or {}).items()}
    reference = float64_copy(net)
    for path, value in reference.named_parameters():
        if not torch.isfinite(value).all():
            raise CaptureError(
                f"the weights are damaged: {path!r} holds {int((~torch.isfinite(value)).sum())} "
                "NaN or infinite value(s)"
            )
    tracer = _Tracer(custom)
    try:
        graph = tracer.trace(reference)
    except Exception as error:
        place = f"layer {tracer.path!r}" if tracer.path else "the network's own forward"
        raise CaptureError(
            f"{place} ({tracer.kind}) cannot be traced: {error}. Its operations must not depend on "
            "values or shapes of the data (if, for, len, int() on tensors)"
        ) from error
    module = fx.GraphModule(reference, graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    required = [node for node in inputs if not node.args and not str(node.target).startswith("*")]
    if len(required or inputs[:1]) != 1:
        names = ", ".join(str(node.target) for node in required)
        raise CaptureError(
            f"the network takes {len(required)} inputs ({names}); exactly one tensor is supported"
        )
    return Network(reference, module, _find_cuts(module, (required or inputs)[0], custom))


def float64_copy(net: nn.Module) -> nn.Module:
    """Return a float64 copy on the CPU, in eval mode, without gradients and forward hooks.

    Raises
    ------
    CaptureError
        If the network cannot be copied or converted.
    """
    while isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(
        net, "_orig_mod"
    ):
        net = getattr(net, "_orig_mod", None) or net.module  # type: ignore[assignment]
    # A tensor that is not a leaf (a pruned or normalised weight) refuses deepcopy: copy its value.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in net.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        out = copy.deepcopy(net, memo).to("cpu", torch.float64).eval()
    except Exception as error:
        raise CaptureError(
            f"the network cannot be copied to float64 on the CPU: {error} (quantised networks are "
            "not supported; a lazy one must have been run once)"
        ) from error
    out.requires_grad_(False)
    hooked = []
    for path, module in out.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(module, name, value.detach().to("cpu", torch.float64))
        if module._forward_hooks:
            hooked.append(path or type(module).__name__)
            module._forward_hooks.clear()
    if hooked:
        warn_outside(
            f"forward hooks on {', '.join(hooked[:5])} are not run during capture; if they change "
            "the layer's output, the states are those without them",
            HookWarning,
        )
    return out


class _Tracer(fx.Tracer):
    """fx tracer that remembers which layer every operation belongs to."""

    def __init__(self, custom: Mapping[type[nn.Module], Activation]) -> None:
        super().__init__(param_shapes_constant=True)
        self.custom = custom
        self.path, self.kind = "", "top level"

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in self.custom or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before = self.path, self.kind
        self.path, self.kind = self.path_of_module(m), type(m).__name__
        out = super().call_module(m, forward, args, kwargs)
        self.path, self.kind = before  # left as it is on an exception: the place of the failure
        return out

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["owner"] = self.path
        return node


def _op_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _find_cuts(
    module: fx.GraphModule, source: fx.Node, custom: Mapping[type[nn.Module], Activation]
) -> dict[fx.Node, tuple[str, Activation]]:
    """Return the nodes that apply a known activation to something that depends on the input."""
    cuts: dict[fx.Node, tuple[str, Activation]] = {}
    used: dict[str, int] = {}
    depends = {source}
    for node in module.graph.nodes:
        shape_only = _op_name(node) in _SHAPE_QUERIES or (
            node.target is getattr and node.args[1] in _SHAPE_QUERIES
        )
        if shape_only or not depends.intersection(node.all_input_nodes):
            continue
        depends.add(node)
        if node.op == "call_module":
            found = _from_module(module.get_submodule(str(node.target)), custom)
            base = str(node.target)
        elif node.op in ("call_function", "call_method"):
            found = _from_call(node)
            owner = node.meta.get("owner", "")
            base = f"{owner}.{_op_name(node)}" if owner else _op_name(node)
        else:
            continue
        if found is not None:
            used[base] = used.get(base, 0) + 1
            cuts[node] = (base if used[base] == 1 else f"{base}#{used[base]}", found)
    return cuts


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
    op = _op_name(node).removesuffix("_")
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
