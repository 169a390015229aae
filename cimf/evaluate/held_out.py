"""A sparse network beside the one it was made from, on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cimf.errors import InputError
from cimf.methods.base import Pruned
from cimf.methods.pruning_report import Evaluation
from cimf.methods.stacked.captured import class_labels, share_correct
from cimf.network.batches import as_batches, as_list, run
from cimf.network.copies import plain_copy
from cimf.network.layers import working_dtype


class HeldOut:
    """Test samples with the outputs of the network, taken before anything is solved.

    Parameters
    ----------
    net : nn.Module
        Run in eval mode where it is, in float64 if it has float64 parameters, else in float32.
    batches : iterable
        Input tensors, or (input, integer label) pairs, which give accuracies.

    Raises
    ------
    InputError
        As `as_batches` and `class_labels`; outputs that are not (samples, classes).
    """

    def __init__(self, net: nn.Module, batches: Any) -> None:
        given = as_list("test", batches)
        self.inputs = as_batches(given, working_dtype(net), "test")
        self.outputs = _outputs(net, self.inputs)
        if self.outputs.ndim != 2:
            raise InputError(
                f"the network returns {self.outputs.shape[1:]} per test sample; one vector of "
                "outputs per sample is needed"
            )
        self.labels = class_labels(given, self.outputs.shape[1], len(self.outputs))
        labelled = sum(isinstance(batch, tuple | list) for batch in given)
        self.notes = (
            ()
            if labelled in (0, len(given))
            else (f"only {labelled} of {len(given)} test batches have labels: no accuracy",)
        )

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
def _outputs(net: nn.Module, inputs: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return the outputs (m, ...) of a copy of the network in the inputs' floating-point type."""
    kind = next((u.dtype for u in inputs if u.is_floating_point()), torch.float32)
    runner = plain_copy(net, kind).eval()
    device = next(net.parameters()).device
    outputs = [run(runner, u.to(device), "test") for u in inputs]
    if not all(isinstance(y, Tensor) for y in outputs):
        raise InputError("the network must return one tensor with the samples first")
    return np.concatenate([y.cpu().double().numpy() for y in outputs])
