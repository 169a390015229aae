"""A sparse network beside the one it was made from, on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cimf.methods.base import Pruned
from cimf.methods.pruning_report import Evaluation
from cimf.methods.stacked.captured import class_labels, share_correct
from cimf.network.batches import Batch, as_batches, as_list, run, tensors_of
from cimf.network.copies import plain_copy
from cimf.network.graph import as_output
from cimf.network.layers import working_dtype


class HeldOut:
    """Test samples with the outputs of the network, taken before anything is solved.

    Parameters
    ----------
    net : nn.Module
        Run in eval mode where it is, in float64 if it has float64 parameters, else in float32.
    batches : iterable
        Inputs, or (input, integer label) pairs, which give accuracies where the network returns one
        vector of outputs per sample.

    Raises
    ------
    InputError
        As `as_batches` and `class_labels`.
    """

    def __init__(self, net: nn.Module, batches: Any) -> None:
        given = as_list("test", batches)
        self.inputs = as_batches(given, working_dtype(net), "test")
        self.outputs = _outputs(net, self.inputs)
        labelled = sum(
            isinstance(batch, tuple | list) and len(batch) > 1 and batch[1] is not None
            for batch in given
        )
        self.labels: NDArray[np.int64] | None = None
        self.notes: tuple[str, ...] = ()
        if 0 < labelled < len(given):
            text = f"only {labelled} of {len(given)} test batches have labels: no accuracy"
            self.notes = (text,)
        elif labelled and self.outputs.ndim != 2:
            text = f"outputs are {self.outputs.shape[1:]} per test sample, no vector: no accuracy"
            self.notes = (text,)
        elif labelled:
            self.labels = class_labels(given, self.outputs.shape[1], len(self.outputs))

    def evaluated(self, result: Pruned) -> Pruned:
        """Return the result with an `Evaluation` in its report."""
        outputs = _outputs(result.network, self.inputs)
        error = np.linalg.norm(outputs - self.outputs) / (np.linalg.norm(self.outputs) or 1.0)
        accuracy, dense_accuracy = (
            None if self.labels is None else share_correct(values.T, self.labels)
            for values in (outputs, self.outputs)
        )
        found = Evaluation(len(outputs), float(error), accuracy, dense_accuracy)
        notes = (*result.report.notes, *self.notes)
        return replace(result, report=replace(result.report, evaluation=found, notes=notes))


@torch.no_grad()
def _outputs(net: nn.Module, inputs: Sequence[Batch]) -> NDArray[np.float64]:
    """Return the outputs (m, ...) of a copy of the network in the inputs' floating-point type."""
    every = [u for batch in inputs for u in tensors_of(batch)]
    kind = next((u.dtype for u in every if u.is_floating_point()), torch.float32)
    runner = plain_copy(net, kind).eval()
    device = next(net.parameters()).device
    outputs = [as_output(run(runner, u.to(device), "test"), len(u)) for u in inputs]
    return np.concatenate([y.cpu().double().numpy() for y in outputs])
