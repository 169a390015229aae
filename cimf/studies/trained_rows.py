"""What a table says about methods that train, beside what it says about all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from cimf.methods.pruning_report import layer_weights
from cimf.network.layers import LayerGraph
from cimf.train.training_report import Epoch, TrainingReport


def trained_row(stages: Sequence[TrainingReport]) -> dict[str, Any]:
    """Return epochs, what the first stage measured at its end, and its history.

    Per-layer measures stay in the history.
    """
    first = stages[0]
    measures = {
        key.replace(" ", "_"): value
        for key, value in first.epochs[-1].measures.items()
        if " of " not in key
    }
    history = [asdict(epoch) for epoch in first.epochs]
    return {"epochs": sum(len(stage.epochs) for stage in stages), **measures, "history": history}


def as_report(history: Sequence[dict[str, Any]], samples: int) -> TrainingReport:
    """Return the report of a history that was read from a file, for `plot_training`."""
    return TrainingReport(tuple(Epoch(**epoch) for epoch in history), samples, True, "", {})


def costs(graph: LayerGraph, network: nn.Module) -> dict[str, float]:
    """Return the share of multiply-adds that is left, and that of structures that are zero.

    Structures are the output channels and the input channels of every matched layer.
    """
    weights = layer_weights(network)
    left = total = empty = structures = 0
    for layer in graph.layers:
        weight = weights[layer.path] != 0
        places = math.prod(layer.output_shape) // layer.n_rows
        left += int(weight.sum()) * places
        total += weight.numel() * places
        for used in (weight.flatten(1).any(1), weight.transpose(0, 1).flatten(1).any(1)):
            empty += int((~used).sum())
            structures += len(used)
    return {"multiply_adds": left / total, "zero_structures": empty / structures}
