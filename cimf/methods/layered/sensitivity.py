"""How much the network's output depends on each row: what an error of a pre-activation costs.

To first order an error e_p in the pre-activations of one row, at positions p of one sample, moves
the output by J e. With errors uncorrelated over positions, the expected squared change of the
output is (sum_p ||J_p||^2) times the mean squared error of the row. ||J_p||^2 is estimated without
labels by random projections: E (v' J_p)^2 over vectors v of independent signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from cimf.errors import UnknownNameError
from cimf.network.layers import LayerGraph, evaluate_node, stages


def _logits(y: Tensor, generator: torch.Generator) -> Tensor:
    """Squared error of the output as it is."""
    signs = torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1
    return (signs * y).sum()


def _softmax(y: Tensor, generator: torch.Generator) -> Tensor:
    """Kullback-Leibler divergence of the softmax over the last axis: Fisher information.

    A class is drawn from the network's own softmax, so no label is used.
    """
    flat = torch.log_softmax(y, -1).reshape(-1, y.shape[-1])
    drawn = torch.multinomial(flat.detach().exp(), 1, generator=generator)
    return flat.gather(1, drawn).sum()


METRICS = {"output": _logits, "softmax": _softmax}


# Samples whose states are kept for one backward pass where all calibration samples take part.
_PIECE = 25


def output_sensitivity(
    graph: LayerGraph,
    batches: Iterable[Tensor],
    metric: str = "output",
    projections: int = 2,
    seed: int = 0,
) -> list[NDArray[np.float64]]:
    """Return the sensitivity of the output to every row of every layer.

    Parameters
    ----------
    metric : str
        A key of `METRICS`: "output" (squared error of the outputs) or "softmax" (Kullback-Leibler
        divergence of class probabilities).
    projections : int
        Random vectors per sample.

    Returns
    -------
    list of (r,)
        Per layer: mean over samples of sum_p ||J_p||^2. Multiplied by a row's mean squared error it
        predicts the mean squared change of the output.
    """
    total = [np.zeros(layer.n_rows) for layer in graph.layers]
    samples = 0
    for batch, squares in _squared_gradients(graph, batches, metric, projections, seed):
        for k, square in squares.items():
            total[k] += square.flatten(0, -2).sum(0, dtype=torch.float64).numpy()
        samples += len(batch)
    return [value / samples for value in total]


def positions_that_count(graph: LayerGraph, batches: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Return at which positions of every sample a linear layer's output can move the network's.

    Tokens that are padding, and in the last block all tokens that a classifier does not read, have
    a Jacobian of exactly zero: what the layer computes there is of no consequence.

    Returns
    -------
    dict of str to list of (b, positions...) bool
        By path, one entry per batch, for linear layers with positions (an input of three or more
        axes). Layers that never reach the output are left out, like all others.
    """
    linear = [
        k for k, layer in enumerate(graph.layers)
        if layer.channel_axis == -1 and len(layer.output_shape) > 1
    ]  # fmt: skip
    found: dict[int, list[Tensor]] = {k: [] for k in linear}
    for batch in batches if linear else ():
        pieces = [
            {k: squares[k].any(-1) for k in linear if k in squares}
            for _, squares in _squared_gradients(graph, batch.split(_PIECE), "output", 1, 0)
        ]
        for k in pieces[0]:
            found[k].append(torch.cat([piece[k] for piece in pieces]))
    return {
        graph.layers[k].path: counts
        for k, counts in found.items()
        if any(bool(count.any()) for count in counts)
    }


def _squared_gradients(
    graph: LayerGraph, batches: Iterable[Tensor], metric: str, projections: int, seed: int
) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
    """Yield every batch with (v' J_p)^2 by index of the layer, shape (b, positions..., r).

    Averaged over the random vectors v. Layers that do not reach the output are left out.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    generator = torch.Generator().manual_seed(seed)
    index = {layer.node: k for k, layer in enumerate(graph.layers)}
    parameters = [layer.module.weight for layer in graph.layers]
    for batch in batches:
        squares: dict[int, Tensor] = {}
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                values, output = _forward(graph, batch.clone(), index)
                for k in range(projections):
                    grads = torch.autograd.grad(
                        METRICS[metric](output, generator),
                        list(values.values()),
                        retain_graph=k + 1 < projections,
                        allow_unused=True,
                    )
                    for i, grad in zip(values, grads, strict=True):
                        if grad is not None:
                            square = grad.square() / projections
                            square = square.movedim(graph.layers[i].channel_axis, -1)
                            squares[i] = squares[i] + square if i in squares else square
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
        yield batch, squares


def _forward(
    graph: LayerGraph, batch: Tensor, index: dict[fx.Node, int]
) -> tuple[dict[int, Tensor], Tensor]:
    """Return the layers' outputs by index, and the network's output."""
    values: dict[int, Tensor] = {}
    env: dict[fx.Node, Any] = {}
    output: Any = None
    for node, dead, _ in stages(graph):
        env[node] = batch if node.op == "placeholder" else evaluate_node(graph.module, node, env)
        if node in index:
            values[index[node]] = env[node]
        output = env[node]
        for value in dead:
            del env[value]
    return values, output
