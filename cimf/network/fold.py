"""Batch norms folded into the layers before them, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from cimf.errors import CaptureError
from cimf.network.exported import MATCHED, NORMS
from cimf.network.graph import Graph


@torch.no_grad()
def fold_norms(graph: Graph, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[str, str]:
    """Fold every batch norm behind a layer into the layer; return its path by the layer's.

    A layer or norm that is called more than once stays as it is: it could not be written back. So
    does a norm behind a linear layer over tokens: its channels are the tokens.

    Parameters
    ----------
    graph : Graph
        Changed: the norms' calls are erased, the layers' weights replaced.
    shapes : mapping of fx.Node to tuple of int
        Of every tensor in the graph, samples first.

    Raises
    ------
    CaptureError
        A norm has no running statistics.
    """
    calls = Counter(id(graph.called(node)) for node in graph.nodes if node.op == "call_module")
    folded = {}
    for node in graph.nodes:
        layer, users = graph.called(node), list(node.users)
        if not isinstance(layer, MATCHED) or calls[id(layer)] > 1 or len(users) != 1:
            continue
        norm = graph.called(users[0])
        if not isinstance(norm, NORMS) or calls[id(norm)] > 1:
            continue
        if isinstance(layer, nn.Linear) and len(shapes[node]) != 2:
            continue
        if norm.running_var is None or norm.running_mean is None:
            raise CaptureError(
                f"{graph.where(users[0])} has no running statistics: its output depends on the "
                "batch. Use track_running_stats=True"
            )
        _fold(layer, norm, graph.dtype)
        folded[str(node.target)] = str(users[0].target)
        users[0].replace_all_uses_with(node)
        graph.module.graph.erase_node(users[0])
    graph.module.recompile()
    return folded


def _fold(layer: Any, norm: Any, dtype: torch.dtype) -> None:
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    shift = -norm.running_mean.double() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    weight, bias = layer.weight.double(), layer.bias
    if bias is not None:
        shift = shift + scale * bias
    shape = (-1, *[1] * (weight.ndim - 1))
    layer.weight = nn.Parameter((weight * scale.view(shape)).to(dtype), False)
    layer.bias = nn.Parameter(shift.to(dtype), False)


def unfold(layer: Any, norm: Any, weight: Tensor, bias: Tensor) -> None:
    """Write a folded layer, its weight in float64, back into a layer and its batch norm.

    The norm stays in place as the identity up to the layer's bias: variance and weight cancel, so
    that the zeros of the rows are zeros of the weights.
    """
    deviation = torch.sqrt(norm.running_var.double() + norm.eps).cpu()
    if layer.bias is not None:
        layer.bias.zero_()
    if norm.weight is not None:
        norm.weight.copy_(deviation)
        norm.bias.copy_(bias)
        norm.running_mean.zero_()
    else:
        weight = weight * deviation.view(-1, *[1] * (weight.ndim - 1))
        norm.running_mean.copy_(-bias.double() * deviation)
    layer.weight.copy_(weight)
