"""How far the outputs of a network of layers can move when its inputs do, through its magnitudes.

Where the inputs move by at most u, entry by entry, every value of the network moves by at most what
the *magnitude network* makes of u: every weight by its absolute value, no biases and constants,
a batch norm by its absolute scale, an activation by its Lipschitz constant, differences as sums,
means and maxima over windows of the moves themselves. At the outputs that is S u, and

    T = 1' S u

is the total sensitivity. Without maxima T is linear in the magnitudes of one layer's weights while
the other layers stand, weight sharing included, with slopes dT / d|W| by automatic differentiation;
a maximum makes it convex and piecewise linear. S is that of `ImplicitModel.sensitivity`, but where
several paths without an activation join the same two entries (a shortcut beside the centre of a
kernel, layer upon layer): here they count one by one, and S is larger.
"""

from __future__ import annotations

import copy
import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.func import functional_call

from cimf.errors import CaptureError, InputError
from cimf.network.cut import asks_for_shape, find_cuts
from cimf.network.exported import MATCHED, NORMS
from cimf.network.graph import Graph, op_name
from cimf.network.layers import Layer, LayerGraph, Rows

Array = NDArray[np.float64]

# Increasing, and for each entry of the output the largest or a sum with coefficients >= 0 of
# entries of the input, without a constant: moves go through them as values do.
_DIMENSIONS = ("1d", "2d", "3d")
_MONOTONE = {
    *("chunk", "clone", "contiguous", "expand", "flatten", "getitem", "movedim", "permute"),
    *("reshape", "split", "squeeze", "swapaxes", "transpose", "unflatten", "unsqueeze", "view"),
    *("amax", "mean", "pixel_shuffle", "sum"),
    *(
        f"{kind}_pool{dimension}"
        for kind in ("avg", "max", "adaptive_avg", "adaptive_max")
        for dimension in _DIMENSIONS
    ),
}
# The same of several inputs, all of which must move.
_JOINING = {"cat", "concat", "maximum", "stack"}
_MONOTONE_MODULES = {
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.ZeroPad2d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
}
_SUMS = {"add", "iadd", "sub", "isub"}


class MagnitudeNetwork:
    """The magnitude network of a network, for one movement of the inputs.

    Parameters
    ----------
    graph : LayerGraph
    moves : Tensor
        u >= 0, of the shape of one sample.

    Raises
    ------
    CaptureError
        An operation has no known bound; the message names it.
    InputError
        No input moves.
    """

    def __init__(self, graph: LayerGraph, moves: Tensor) -> None:
        if not bool((moves > 0).any()):
            raise InputError("no input moves on the calibration samples: give more of them")
        self._layers, self._moves = graph.layers, moves.double()[None]
        traced = Graph(copy.deepcopy(graph.module).double().requires_grad_(False), torch.float64)
        _rewrite(traced)
        self._module = traced.module

    def total(self, rows: Rows | None = None) -> float:
        """Return T with other rows of some layers."""
        with torch.no_grad():
            return float(self._run(self._magnitudes(rows or {})))

    def outputs(self, rows: Rows | None = None) -> Array:
        """Return S u, by how much every output can move, flattened."""
        with torch.no_grad():
            found = functional_call(self._module, self._magnitudes(rows or {}), (self._moves,))
        return np.asarray(found.flatten().numpy())

    def slopes(self, layer: Layer, rows: Rows | None = None) -> Array:
        """Return dT / d|W| of a layer's rows, (r, N), at other rows of some layers."""
        magnitudes = self._magnitudes(rows or {})
        weight = magnitudes[f"{layer.node.target}.weight"].requires_grad_()
        with torch.inference_mode(False), torch.enable_grad():
            (slopes,) = torch.autograd.grad(self._run(magnitudes), weight, allow_unused=True)
        if slopes is None:
            return np.zeros((layer.n_rows, layer.n_columns))
        return np.asarray(slopes.flatten(1).numpy())

    def _run(self, magnitudes: dict[str, Tensor]) -> Tensor:
        total: Tensor = functional_call(self._module, magnitudes, (self._moves,)).sum()
        if not math.isfinite(float(total.detach())):
            raise CaptureError("the sensitivity of the network is beyond what float64 holds")
        return total

    def _magnitudes(self, rows: Rows) -> dict[str, Tensor]:
        """Return |W| and no bias of every layer, by the name of the parameter."""
        found = {}
        for layer in self._layers:
            weight = layer.parameters(rows).get("weight", layer.module.weight)
            found[f"{layer.node.target}.weight"] = weight.detach().double().abs()
            if layer.has_bias:
                found[f"{layer.node.target}.bias"] = torch.zeros(layer.n_rows, dtype=torch.float64)
        return found


@torch.no_grad()
def _rewrite(graph: Graph) -> None:
    """Make the graph of the magnitude network of that of a network, but for its weights."""
    cuts, moving = find_cuts(graph), {graph.source}
    for node in graph.nodes:
        if not moving.intersection(node.all_input_nodes) or asks_for_shape(node):
            continue
        moving.add(node)
        called, op = graph.called(node), _operation(node)
        if node in cuts:
            lipschitz = cuts[node][1].lipschitz
            if not math.isfinite(lipschitz):
                raise _unbounded(graph, node, f"{cuts[node][1]} has no Lipschitz constant")
            _become(node, operator.mul, node.all_input_nodes[0], lipschitz)
        elif isinstance(called, NORMS) and called.running_mean is not None:
            called.running_mean.zero_()
            if called.affine:
                called.weight.abs_()
                called.bias.zero_()
        elif op in _SUMS and len(node.args) == 2 and not node.kwargs:
            _become(node, operator.add, *(_still(node, a, moving) for a in node.args))
        elif op in ("mul", "imul", "truediv", "div") and _by_constant(node, moving, "mul" in op):
            scale = operator.mul if "mul" in op else operator.truediv
            _become(node, scale, *(_magnitude(node, a, moving) for a in node.args))
        elif op == "neg":
            _become(node, operator.mul, node.all_input_nodes[0], 1.0)
        elif not (
            node.op == "output"
            or isinstance(called, MATCHED)
            or (type(called) in _MONOTONE_MODULES and not getattr(called, "return_indices", False))
            or op in _MONOTONE
            or (op in _JOINING and moving.issuperset(node.all_input_nodes))
            or (op == "pad" and _pads_zeros(node))
        ):
            raise _unbounded(graph, node, "no bound of its slope is known")
    graph.module.graph.lint()
    graph.module.recompile()


def _unbounded(graph: Graph, node: fx.Node, why: str) -> CaptureError:
    return CaptureError(
        f"the sensitivity of the network has no bound at {graph.where(node)}: {why}. Layers, batch "
        "norms, sums, pooling, and elementwise activations have one"
    )


def _operation(node: fx.Node) -> str:
    """Return the name of a function of torch or Python, or of a tensor's method; else ''."""
    home = getattr(node.target, "__module__", None) or "torch"
    known = node.op == "call_method" or (
        node.op == "call_function" and home.partition(".")[0] in ("torch", "_operator")
    )
    return op_name(node).strip("_") if known else ""


def _become(node: fx.Node, function: Any, *args: Any) -> None:
    node.op, node.target = "call_function", function
    node.args, node.kwargs = args, {}


def _still(node: fx.Node, operand: Any, moving: set[fx.Node]) -> Any:
    """Return an operand of a sum as a move: a constant has none, but keeps its shape."""
    if operand in moving:
        return operand
    return _before(node, operator.mul, operand, 0.0) if isinstance(operand, fx.Node) else 0.0


def _magnitude(node: fx.Node, operand: Any, moving: set[fx.Node]) -> Any:
    if operand in moving:
        return operand
    return _before(node, abs, operand) if isinstance(operand, fx.Node) else abs(operand)


def _before(node: fx.Node, function: Any, *args: Any) -> fx.Node:
    with node.graph.inserting_before(node):
        return node.graph.call_function(function, args)


def _by_constant(node: fx.Node, moving: set[fx.Node], either: bool) -> bool:
    """Whether one operand moves and the other does not (of a quotient: the first moves)."""
    if len(node.args) != 2 or node.kwargs:
        return False
    first, second = (operand in moving for operand in node.args)
    return first != second and (first or either)


def _pads_zeros(node: fx.Node) -> bool:
    named = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False))
    named.update(node.kwargs)
    return named.get("mode", "constant") != "constant" or not named.get("value")
