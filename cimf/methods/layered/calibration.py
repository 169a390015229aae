"""What the one-shot methods know of a network before they choose: its graph, states, loss curves.

Taken once per task and choice of statistics, and shared by methods and target sparsities.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cimf.errors import CaptureError, InputError, UnknownNameError
from cimf.methods.base import Task
from cimf.methods.layered.allocation import Counts
from cimf.methods.layered.sensitivity import positions_that_count
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.survey import Survey
from cimf.network.batches import Batch, run
from cimf.network.copies import difference
from cimf.network.graph import as_output
from cimf.network.layers import Layer, Rows

# Samples on which the traced and the returned network are compared with what they should be, and
# the largest difference relative to the largest output; with weights in half precision so many
# times the rounding error of one weight.
_COMPARED = 8
_SAME = 1e-3
_ROUNDINGS = 30
# Samples on which the loss curves for the budgets are taken; the rows are solved on all samples.
_SURVEYED = 1000


AnyBatch = TypeVar("AnyBatch", Tensor, Batch)


class Calibration:
    """A task's graph, checked, and its loss curves; made by `Calibration.of`.

    Raises
    ------
    CaptureError
        The traced network differs from the network itself; its output is no finite tensor.
    """

    def __init__(self, task: Task, statistics: Statistics) -> None:
        self.graph, self.inputs, self.statistics = task.graph, task.inputs, statistics
        if statistics.metric == "softmax" and self.graph.several:
            raise InputError(
                'metric "softmax" is for networks that return one tensor of logits, this one '
                'returns several: take "output"'
            )
        halves = sorted({str(p.dtype)[6:] for p in task.net.parameters() if p.dtype.itemsize == 2})
        self.notes = tuple(
            f"weights were {kind}: states computed in float32, the sparse weights rounded to it"
            for kind in halves
        )
        self.notes += tuple(
            f"the weight of {layer.path} is the table of an embedding as well: its rows are fitted "
            "to both uses, and its zeros are zeros of the embedding"
            for layer in self.graph.layers
            if layer.lookups
        )
        self.counting = positions_that_count(self.graph, self.inputs)

    @classmethod
    def of(cls, task: Task, statistics: Statistics) -> Calibration:
        """Return the calibration of a task, the same one for the same statistics."""
        return task.once(statistics, lambda: cls(task, statistics))

    @cached_property
    def survey(self) -> Survey:
        """Loss curves on the teacher's states, taken at the first use."""
        few = first_batches(self.inputs, _SURVEYED)
        return Survey.take(self.graph, few, self.statistics, self.counting)

    @torch.no_grad()
    def check_export(self, network: nn.Module, rows: Rows) -> None:
        """Compare the network that is returned with the graph with its rows, on a few samples.

        Raises
        ------
        CaptureError
            They differ.
        """
        expected = self.graph.run(self.inputs[0][:_COMPARED], rows)
        finite = bool(expected.isfinite().all())  # where it is not, two wrong ones look alike
        error = difference(self._run(network), expected) if finite else float("inf")
        coarsest = max(
            torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point()
        )
        if not error <= max(_SAME, _ROUNDINGS * coarsest):
            raise CaptureError(
                f"the sparse network differs from its own rows by {error:.1e}: the network reads a "
                "weight or a batch norm in more than one place, or its precision is too low"
            )

    def _run(self, net: nn.Module) -> Tensor:
        """Return the output of a copy of a network on the samples that are compared."""
        net = copy.deepcopy(net).to("cpu", self.graph.dtype).eval()
        few = self.inputs[0][:_COMPARED]
        return as_output(run(net, few, "calibration"), len(few))

    def counts(self, sparsity: float, allocation: str, keep: Sequence[str]) -> Counts:
        """Return how many weights every row keeps at a target sparsity.

        Raises
        ------
        InputError
            A path in `keep` is unknown, or the layers in `keep` alone have more weights than the
            target leaves.
        """
        graph = self.graph
        left = self.left(sparsity, keep)
        if allocation == "uniform":
            return Survey(graph, [], self.inputs[0]).allocate("uniform", left, keep)
        return self.survey.allocate(allocation, left, keep)

    def left(self, sparsity: float, keep: Sequence[str]) -> int:
        """Return how many weights of all layers a target sparsity leaves.

        Raises
        ------
        InputError
            As `counts`.
        """
        total = self.graph.n_weights
        left = round((1.0 - sparsity) * total)
        dense = sum(layer.n_weights for layer in self.named(keep))
        if left < dense:
            raise InputError(
                f"a sparsity of {sparsity:.1%} leaves {left:,} of {total:,} weights, but the "
                f"layers kept dense ({', '.join(keep)}) have {dense:,}: at most "
                f"{1.0 - dense / total:.1%} can be reached"
            )
        return left

    def named(self, paths: Sequence[str]) -> list[Layer]:
        """Return the layers with these paths, each once, in the order in which they are solved.

        Raises
        ------
        InputError, UnknownNameError
            Not a sequence of paths of matched layers.
        """
        known = {layer.path: layer for layer in self.graph.layers}
        if isinstance(paths, str) or not isinstance(paths, Iterable):
            raise InputError(f"keep must be a sequence of layers' paths, got {paths!r}")
        for path in paths:
            if path not in known:
                raise UnknownNameError("layer", path, known)
        return [layer for path, layer in known.items() if path in paths]


def first_batches(batches: Sequence[AnyBatch], samples: int) -> list[AnyBatch]:
    """Return the first batches that hold at least so many samples, or all."""
    before = np.cumsum([0, *(len(batch) for batch in batches[:-1])])
    return [batch for batch, seen in zip(batches, before, strict=True) if seen < samples]
