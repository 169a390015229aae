"""How much the network's output depends on each row: what an error of a pre-activation costs.

To first order an error e_p in the pre-activations of one row, at positions p of one sample, moves
the output by J e. With errors uncorrelated over positions, the expected squared change of the
output is (sum_p ||J_p||^2) times the mean squared error of the row. ||J_p||^2 is the sum of
(v' J_p)^2 over the unit vectors v of the output where it has few entries; else it is estimated by
vectors of independent normal numbers, E (v' J_p)^2. (Random signs would do on average, but outputs
that move against each other, z and -z or p and 1 - p, then cancel in half of the samples.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from cimf.errors import UnknownNameError
from cimf.network.batches import Batch
from cimf.network.layers import LayerGraph


def _output(y: Tensor) -> Tensor:
    """Squared error of the output as it is."""
    return y


def _softmax(y: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softmax over the last axis: Fisher information.

    With J the Jacobian of the logarithms, sum_k p_k ||J_k||^2: the expectation over a class drawn
    from the network's own softmax, so no label is used.
    """
    logarithm = torch.log_softmax(y, -1)
    return (logarithm.detach() / 2).exp() * logarithm


# By name: f(y) such that the divergence of outputs y is, to first order, the squared change of f.
METRICS: dict[str, Callable[[Tensor], Tensor]] = {"output": _output, "softmax": _softmax}


# By the call of a layer, one entry per batch: which positions take part in its statistics.
Counting = Mapping[fx.Node, Sequence[Tensor]]

# Samples whose states are kept for one backward pass where all calibration samples take part.
_PIECE = 25


def output_sensitivity(
    graph: LayerGraph,
    batches: Sequence[Batch],
    metric: str = "output",
    projections: int = 10,
    seed: int = 0,
) -> list[NDArray[np.float64]]:
    """Return the sensitivity of the output to every row of every layer, sample by sample.

    Parameters
    ----------
    metric : str
        A key of `METRICS`: "output" (squared error of the outputs) or "softmax" (Kullback-Leibler
        divergence of class probabilities).
    projections : int
        Vectors per sample, hence backward passes. Up to so many outputs the result is exact.

    Returns
    -------
    list of (n, r)
        Per layer: sum_p ||J_p||^2. The mean over the samples, multiplied by a row's mean squared
        error, predicts the mean squared change of the output. Zeros where there is no gradient.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    ends = np.cumsum([0, *(len(batch) for batch in batches)])
    found = [np.zeros((ends[-1], layer.n_rows)) for layer in graph.layers]
    generator = torch.Generator().manual_seed(seed)
    for batch, start in zip(batches, ends[:-1], strict=True):
        part = slice(start, start + len(batch))

        def add(k: int, _: fx.Node, gradient: Tensor, part: slice = part) -> None:
            # float64 first: squares of gradients below 1e-23 are zero in float32.
            # Windows of one sample may stand in the leading axis (Swin): samples are the slowest.
            squares = (
                gradient.double().square().reshape(part.stop - part.start, -1, len(found[k].T))
            )
            found[k][part] += squares.sum(1).numpy()

        _visit_gradients(graph, batch, METRICS[metric], projections, generator, add)
    return found


def positions_that_count(graph: LayerGraph, batches: Sequence[Batch]) -> Counting:
    """Return at which positions of every sample a linear layer's output can move the network's.

    Tokens that are padding, and in the last block all tokens that a classifier does not read, have
    a Jacobian of exactly zero: what the layer computes there is of no consequence. A sample without
    any other position says nothing (its output may be saturated) and counts as a whole.

    Returns
    -------
    dict of fx.Node to list of bool
        By call, one entry per batch, shaped as the output without its channels, for linear layers
        with positions (an input of three or more axes). Layers that never reach the output are left
        out, like all others, and those whose samples alternate.
    """
    linear = {
        call.node: call for layer in graph.layers for call in layer.calls
        if call.channel_axis == -1 and len(call.output_shape) > 1
        and call.sample_axis is not None
    }  # fmt: skip
    found: dict[fx.Node, list[Tensor]] = {node: [] for node in linear}
    pieces: dict[fx.Node, list[Tensor]] = {}

    def add(k: int, node: fx.Node, gradient: Tensor) -> None:
        if node in found:
            moves = (gradient != 0).any(-1)
            moves[~moves.flatten(1).any(1)] = True
            pieces.setdefault(node, []).append(moves)

    generator = torch.Generator().manual_seed(0)
    for batch in batches if linear else ():
        pieces.clear()
        for piece in batch.split(_PIECE):
            _visit_gradients(graph, piece, _output, 1, generator, add)
        for node, parts in pieces.items():
            found[node].append(torch.cat(parts).movedim(0, linear[node].sample_axis or 0))
    return {node: counts for node, counts in found.items() if counts}


def _visit_gradients(
    graph: LayerGraph,
    batch: Batch,
    metric: Callable[[Tensor], Tensor],
    projections: int,
    generator: torch.Generator,
    visit: Callable[[int, fx.Node, Tensor], None],
) -> None:
    """Call visit(k, node, v' J_p of this call of layer k, (b, positions..., r)) for every vector v.

    The squares sum up to ||J_p||^2, in expectation where the output has more than `projections`
    entries. Layers that do not reach the output are not visited; none is where the output has no
    gradient (class labels).
    """
    calls = {call.node: (k, call) for k, layer in enumerate(graph.layers) for call in layer.calls}
    parameters = [layer.module.weight for layer in graph.layers]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            values, output = _forward(graph, batch.clone(), calls)
            if not output.requires_grad:
                return
            moved = metric(output).reshape(len(batch), -1)
        size = moved.shape[1]
        for j in range(min(size, projections)):
            if size <= projections:
                v = torch.zeros_like(moved)
                v[:, j] = 1.0
            else:
                v = torch.randn(moved.shape, generator=generator, dtype=moved.dtype)
                v /= projections**0.5
            grads = torch.autograd.grad(
                moved, list(values.values()), v, retain_graph=True, allow_unused=True
            )
            for node, grad in zip(values, grads, strict=True):
                if grad is not None:
                    k, call = calls[node]
                    axes = call.sample_axis or 0, call.channel_axis
                    visit(k, node, grad.movedim(axes, (0, -1)))
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _forward(
    graph: LayerGraph, batch: Batch, calls: Collection[fx.Node]
) -> tuple[dict[fx.Node, Tensor], Tensor]:
    """Return the outputs of the layers' calls, and the network's output."""
    values: dict[fx.Node, Tensor] = {}
    lane = graph.traced.lane(batch)
    output: Any = None
    for node in graph.traced.walk(lane):
        if node in calls:
            values[node] = lane[node]
        output = lane[node]
    return values, output
