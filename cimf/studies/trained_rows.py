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
    """Return the shares of multiply-adds that are left, and of output channels that are zero."""
    weights = layer_weights(network)
    left = total = empty = channels = 0
    for layer in graph.layers:
        rows = weights[layer.path].flatten(1)
        places = math.prod(layer.output_shape) // layer.n_rows
        left += int(rows.count_nonzero()) * places
        total += rows.numel() * places
        empty += int((rows == 0).all(1).sum())
        channels += len(rows)
    return {"multiply_adds": left / total, "zero_channels": empty / channels}
