"""Two networks in step, node by node: the teacher as it was, the student as it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cimf.errors import CaptureError
from cimf.methods.layered.statistics_options import Statistics
from cimf.network.batches import Batch
from cimf.network.graph import Lane
from cimf.network.layers import Layer, LayerGraph
from cimf.network.patches import PatchGram, grid


@torch.no_grad()
def propagate(
    graph: LayerGraph,
    batches: Sequence[Batch],
    solve: Callable[[Layer, PatchGram], tuple[Tensor, Tensor | None] | None],
    how: Statistics,
    *,
    correct: bool = True,
    counting: Mapping[str, Sequence[Tensor]] | None = None,
) -> dict[str, float]:
    """Run teacher and student through the graph, solving every layer when its input is known.

    Parameters
    ----------
    batches : sequence of Tensor or Inputs
        Calibration inputs; the values of all batches at one node are held at a time.
    solve : (layer, statistics) -> (rows (r, N), bias (r,) or None), or None to leave the layer
        Called in topological order. The rows are those of the student from here on.
    how : Statistics
        Its positions are a grid with a random offset per batch.
    correct : bool
        Student's states as regressors (and subtracted summands), so that a layer corrects the
        errors before it; False: teacher's states.
    counting : mapping of str to sequence of Tensor, optional
        By layer: the positions (b, ...) of every batch that take part in the statistics and in the
        mismatch, see `positions_that_count`. Default: all.

    Returns
    -------
    dict of str to float
        Per layer, by path: mean squared error of the student's pre-activation (with what is added
        to it) over the teacher's variance.

    Raises
    ------
    CaptureError
        NaN or infinity in front of or behind a layer, with the layer's path and the sample.
    """
    rng = np.random.default_rng(0)  # the same grids in every run, and for every method
    counting = counting or {}
    network = graph.traced
    layers = {layer.node: layer for layer in graph.layers}
    teachers, students = ([network.lane(u) for u in batches] for _ in range(2))
    pairs = list(zip(teachers, students, strict=True))
    mismatch: dict[str, float] = {}
    rows: dict[str, tuple[Tensor, Tensor | None]] = {}
    for node in network.walk(*teachers, followers=students):
        if node not in layers:
            for teacher, student in pairs:  # one value for both, as long as nothing was changed
                if all(teacher[n] is student[n] for n in node.all_input_nodes):
                    student[node] = teacher[node]
            continue
        layer = layers[node]
        statistics = PatchGram(layer, how.precision)
        for k, (teacher, student) in enumerate(pairs):
            goal = teacher[node]
            # The sum with a shortcut is what is matched: what the student's other summand lacks is
            # added to the goal.
            if correct:
                before, after = (_summand(layer, lane, goal.shape) for lane in (teacher, student))
                goal = goal + before - after
            x = (student if correct else teacher)[layer.source]
            for value in (x, goal):
                _check_finite(layer, value, counting.get(layer.path), k, batches)
            if layer.path in counting:
                x, goal = (value[counting[layer.path][k]] for value in (x, goal))
            statistics.update(x, goal, grid(layer, goal, how.positions, rng))
        found = solve(layer, statistics)
        if found is not None:
            rows[layer.path] = found
        for teacher, student in pairs:
            same = found is None and teacher[layer.source] is student[layer.source]
            student[node] = teacher[node] if same else layer(student[layer.source], rows)
        mismatch[layer.path] = _mismatch(layer, pairs, counting.get(layer.path))
    return mismatch


def _summand(layer: Layer, lane: Lane, shape: torch.Size) -> Tensor | float:
    """Return what is added to the layer's output (of this shape), or 0.

    A sum that repeats the layer's output along some axis (a value that is added to advantages)
    gives its entries several targets: there the layer has its own output as the target.
    """
    if layer.summand is None:
        return 0.0
    beside = torch.as_tensor(lane[layer.summand])
    return beside if torch.broadcast_shapes(shape, beside.shape) == shape else 0.0


def _check_finite(
    layer: Layer,
    value: Tensor,
    counting: Sequence[Tensor] | None,
    k: int,
    batches: Sequence[Batch],
) -> None:
    """Refuse NaN and infinity in batch k of a layer's input or target, where they would count."""
    bad = ~value.isfinite().all(layer.channel_axis)
    if counting is not None:
        bad &= counting[k]
    if bad.any():
        bad = bad.movedim(layer.sample_axis or 0, 0)  # several windows of one sample follow it
        first = int(bad.reshape(len(bad), -1).any(1).nonzero()[0]) * len(batches[k]) // len(bad)
        sample = sum(len(batch) for batch in batches[:k]) + first
        raise CaptureError(
            f"the input or output of layer {layer.path!r} holds NaN or infinity for calibration "
            f"sample {sample}: leave that sample out, or mend the network before the layer"
        )


def _mismatch(
    layer: Layer, pairs: Sequence[tuple[Lane, Lane]], counting: Sequence[Tensor] | None
) -> float:
    """Return the student's mean squared error over the teacher's variance, sums included."""
    # float64 sums of float32 states, and one pass: the variance is the mean square less the
    # squared mean of each channel.
    error = energy = count = 0.0
    total: Tensor | float = 0.0
    for k, (teacher, student) in enumerate(pairs):
        z = teacher[layer.node]
        e = student[layer.node] - z
        before, after = (_summand(layer, lane, z.shape) for lane in (teacher, student))
        e, z = e + after - before, z + before
        if counting is not None:
            e, z = e[counting[k]], z[counting[k]]
        error += float(e.square().sum(dtype=torch.float64))
        channels = z.movedim(layer.channel_axis, 0).flatten(1)
        energy += float(z.square().sum(dtype=torch.float64))
        total = total + channels.sum(1, dtype=torch.float64)
        count += channels.shape[1]
    spread = energy - float((torch.as_tensor(total).square() / count).sum())
    return error / spread if spread > 0 else (0.0 if error == 0 else float("inf"))
