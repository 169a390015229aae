"""How much the network's output depends on each row: what an error of a pre-activation costs.

To first order an error e_p in the pre-activations of one row, at positions p of one sample, moves
the output by J e. With errors uncorrelated over positions, the expected squared change of the
output is (sum_p ||J_p||^2) times the mean squared error of the row. ||J_p||^2 is estimated without
labels by random projections: E (v' J_p)^2 over vectors v of independent signs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from cimf.errors import UnknownNameError
from cimf.layered.graph import LayerGraph, evaluate_node, stages


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


@torch.enable_grad()
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
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    generator = torch.Generator().manual_seed(seed)
    total = [np.zeros(layer.n_rows) for layer in graph.layers]
    index = {layer.node: k for k, layer in enumerate(graph.layers)}
    samples = 0
    parameters = [layer.module.weight for layer in graph.layers]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for batch in batches:
            values: dict[int, Tensor] = {}
            env: dict[fx.Node, Any] = {}
            for node, dead, _ in stages(graph):
                env[node] = (
                    batch if node.op == "placeholder" else evaluate_node(graph.module, node, env)
                )
                if node in index:
                    values[index[node]] = env[node]
                output = env[node]
                for value in dead:
                    del env[value]
            order = sorted(values)
            for k in range(projections):
                grads = torch.autograd.grad(
                    METRICS[metric](output, generator),
                    [values[i] for i in order],
                    retain_graph=k + 1 < projections,
                    allow_unused=True,
                )
                for i, grad in zip(order, grads, strict=True):
                    if grad is not None:
                        channel = (
                            1 if grad.ndim > 2 and hasattr(graph.layers[i].module, "stride") else -1
                        )
                        squares = grad.square().movedim(channel, 0).flatten(1)
                        total[i] += squares.sum(1, dtype=torch.float64).numpy()
            samples += batch.shape[0]
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
    return [value / (samples * projections) for value in total]
