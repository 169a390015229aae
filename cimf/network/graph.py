"""A traced network as a graph, and the one way in which its nodes are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from cimf.errors import CaptureError
from cimf.network.batches import Batch, tensors_of

_CASTS = (
    torch.Tensor.float,
    torch.Tensor.half,
    torch.Tensor.bfloat16,
    torch.Tensor.to,
    torch.Tensor.type,
)


class KeepPrecision(TorchFunctionMode):
    """Leaves out casts of tensors in `dtype` to less, which would round them (``x.float()``)."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _CASTS and args[0].dtype == self.dtype and out.is_floating_point():
            return args[0] if out.dtype.itemsize < self.dtype.itemsize else out
        return out


class Lane(dict[fx.Node, Any]):
    """The values of a graph's nodes in one evaluation, as long as they are needed.

    Attributes
    ----------
    given : mapping of fx.Node to value
        What is not computed but taken: the input, and nonlinearities' outputs where the network is
        cut open.
    """

    def __init__(self, given: Mapping[fx.Node, Any]) -> None:
        super().__init__()
        self.given = given


@dataclass(frozen=True)
class Graph:
    """A network as a flat graph in which nothing is changed in place.

    Attributes
    ----------
    module : fx.GraphModule
    dtype : torch.dtype
        Of its weights.
    """

    module: fx.GraphModule
    dtype: torch.dtype

    @property
    def nodes(self) -> list[fx.Node]:
        """In order of execution."""
        return list(self.module.graph.nodes)

    @property
    def sources(self) -> list[fx.Node]:
        """The network's inputs, in the order in which they are given."""
        return [node for node in self.nodes if node.op == "placeholder"]

    @property
    def source(self) -> fx.Node:
        """The input of a network with one."""
        return self.sources[0]

    def lane(self, u: Batch) -> Lane:
        """Return a lane for inputs (b, ...)."""
        return Lane(dict(zip(self.sources, tensors_of(u), strict=True)))

    def __call__(self, u: Batch) -> Any:
        """Return the output for inputs (b, ...)."""
        return self.module(*tensors_of(u))

    def called(self, node: fx.Node) -> Any:
        """Return the module that a node calls, or None."""
        if node.op != "call_module":
            return None
        return self.module.get_submodule(str(node.target))

    def where(self, node: fx.Node) -> str:
        """Return words that name a node: a layer's path and type, or a function and its owner."""
        if node.op == "call_module":
            return f"layer {str(node.target)!r} ({type(self.called(node)).__name__})"
        owner = node.meta.get("owner", "")
        place = f"layer {owner!r}" if owner else "the network's own forward"
        return f"{op_name(node)!r} in {place}"

    def steps(self) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
        """Yield every node in order, and the values that nothing needs after it."""
        last: dict[fx.Node, tuple[fx.Node, ...]] = {}
        seen: set[fx.Node] = set()
        for node in reversed(self.nodes):
            last[node] = tuple(value for value in node.all_input_nodes if value not in seen)
            seen.update(last[node])
        yield from ((node, last[node]) for node in self.nodes)

    def evaluate(self, node: fx.Node, lane: Lane) -> Any:
        """Return the value of a node from the values of its inputs.

        Raises
        ------
        CaptureError
            It fails; the message names the layer.
        """
        if node in lane.given:
            return lane.given[node]
        try:
            with KeepPrecision(self.dtype):
                return _value(self.module, node, lane)
        except Exception as error:
            samples = len(lane.given[self.source])
            kind = str(self.dtype).removeprefix("torch.")
            raise CaptureError(
                f"{self.where(node)} failed on {samples} {kind} samples: {error}"
            ) from error

    def walk(self, *lanes: Lane, followers: Sequence[Lane] = ()) -> Iterator[fx.Node]:
        """Evaluate the lanes in step; yield every node once all of them have its value.

        Parameters
        ----------
        followers : sequence of Lane
            Take the step after the node was yielded, where they were not given its value there.
        """
        for node, dead in self.steps():
            for lane in lanes:
                lane[node] = self.evaluate(node, lane)
            yield node
            for lane in followers:
                if node not in lane:
                    lane[node] = self.evaluate(node, lane)
            for lane in (*lanes, *followers):
                for value in dead:
                    del lane[value]

    @torch.no_grad()
    def shapes(self, u: Batch) -> dict[fx.Node, tuple[int, ...]]:
        """Return the shape of every tensor where the input is u (b, ...)."""
        lane = self.lane(u)
        found = ((node, lane[node]) for node in self.walk(lane))
        return {node: tuple(value.shape) for node, value in found if isinstance(value, Tensor)}


def as_output(value: Any, n_samples: int) -> Tensor:
    """Return a network's output as one tensor (samples, ...).

    Several (a tuple, a dict, an output of the transformers library) become one (samples, features),
    in their order. What is no floating-point number (class labels beside logits) is left out there.

    Raises
    ------
    CaptureError
        A tensor without the samples in its first dimension, something else than tensors, none.
    """
    leaves = [leaf for leaf in tree_leaves(value) if leaf is not None]
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.shape[:1] == (n_samples,):
            continue
        kind = (
            f"tensor of shape {tuple(leaf.shape)}"
            if isinstance(leaf, Tensor)
            else type(leaf).__name__
        )
        within = "" if leaf is value else f" in a {type(value).__name__}"
        raise CaptureError(
            f"the network returns a {kind}{within} for {n_samples} samples; tensors with the "
            "samples in their first dimension are needed. Wrap the network in a module that "
            "returns those (of the transformers library, switch a cache off: "
            "model.config.use_cache = False)"
        )
    if len(leaves) == 1:
        return leaves[0]
    leaves = [leaf for leaf in leaves if leaf.is_floating_point()]
    if not leaves:
        raise CaptureError(
            f"the network returns a {type(value).__name__} without a tensor of floating-point "
            "numbers; at least one is needed"
        )
    return torch.cat([leaf.flatten(1) for leaf in leaves], 1)


def op_name(node: fx.Node) -> str:
    """Return the name of a node's function or method."""
    target: Any = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(target, "__name__", target))


def _value(module: nn.Module, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
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
    return args[0]
