"""Two networks in step, node by node: the teacher as it was, the student as it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional

from cimf.errors import CaptureError
from cimf.methods.layered.sensitivity import Counting
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
    counting: Counting | None = None,
) -> dict[str, float]:
    """Run teacher and student through the graph, solving every layer when its input is known.

    Parameters
    ----------
    batches : sequence of Tensor or Inputs
        Calibration inputs; the values of all batches at one node are held at a time.
    solve : (layer, statistics) -> (rows (r, N), bias (r,) or None), or None to leave the layer
        Called in topological order, at a layer's first call (or the first one of a table that is
        its weight), with the statistics of all its calls.
        The rows are those of the student from here on.
    how : Statistics
        Its positions are a grid with a random offset per batch.
    correct : bool
        Student's states as regressors (and subtracted summands), so that a layer corrects the
        errors before it; False: teacher's states.
    counting : mapping of fx.Node to sequence of Tensor, optional
        By call: the positions (b, ...) of every batch that take part in the statistics and in the
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
    calls = {call.node: call for layer in graph.layers for call in layer.calls}
    users = {
        node: layer
        for layer in graph.layers
        for node in (*(call.node for call in layer.calls), *layer.lookups)
    }
    solved: set[str] = set()
    teachers, students = ([network.lane(u) for u in batches] for _ in range(2))
    pairs = list(zip(teachers, students, strict=True))
    errors: dict[str, list[Moments]] = {layer.path: [] for layer in graph.layers}
    rows: dict[str, tuple[Tensor, Tensor | None]] = {}
    for node in network.walk(*teachers, followers=students):
        layer = users.get(node)
        if layer is not None and layer.path not in solved:
            statistics = PatchGram(layer, how.precision)
            for k, pair in enumerate(pairs):
                for one, x, goal in _targets(graph, layer, node, *pair, correct):
                    counts = counting.get(one.node)
                    for value in (x, goal):
                        _check_finite(one, value, counts, k, batches)
                    if counts is not None:
                        x, goal = x[counts[k]], goal[counts[k]]
                    statistics.update(x, goal, grid(one, goal, how.positions, rng))
            if layer.lookups:
                statistics.pull()
            found = solve(layer, statistics)
            solved.add(layer.path)
            if found is not None:
                rows[layer.path] = found
        if layer is not None and node not in calls:  # a table
            weight = layer.parameters(rows).get("weight", layer.module.weight)
            for _, student in pairs:
                student[node] = functional.embedding(student[node.all_input_nodes[0]], weight)
            continue
        if layer is None:
            for teacher, student in pairs:  # one value for both, as long as nothing was changed
                if all(teacher[n] is student[n] for n in node.all_input_nodes):
                    student[node] = teacher[node]
            continue
        call = calls[node]
        for teacher, student in pairs:
            same = layer.path not in rows and teacher[call.source] is student[call.source]
            student[node] = teacher[node] if same else call(student[call.source], rows)
        errors[layer.path].append(Moments.of(call, pairs, counting.get(node)))
    return {path: _mismatch(found) for path, found in errors.items()}


def _targets(
    graph: LayerGraph, layer: Layer, first: fx.Node, teacher: Lane, student: Lane, correct: bool
) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Yield every call of a layer, used first at a node, with what it reads and should return.

    The calls after the first are reached by running ahead, the student with this layer and those
    behind it as they are: what it reads then does not depend on rows that are not known yet.
    """
    lanes = teacher, student
    calls = {call.node: call for call in layer.calls}
    calls_behind = [node for node in calls if node is not first]
    if calls_behind:
        lanes = Lane(teacher.given), Lane(student.given)
        for ahead, lane in zip(lanes, (teacher, student), strict=True):
            ahead.update(lane)
    nodes = graph.traced.nodes
    for node in nodes[nodes.index(first) :] if calls_behind else [first]:
        if calls_behind:
            for ahead in lanes:
                if node not in ahead:
                    ahead[node] = graph.traced.evaluate(node, ahead)
        if node not in calls:
            continue
        one, goal = calls[node], lanes[0][node]
        # The sum with a shortcut is what is matched: what the student's other summand lacks is
        # added to the goal.
        if correct:
            before, after = (_summand(one, lane, goal.shape) for lane in lanes)
            goal = goal + before - after
        yield one, lanes[1 if correct else 0][one.source], goal
        if node is layer.calls[-1].node:
            return


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


@dataclass(frozen=True)
class Moments:
    """Sums over samples and positions of one call: of squares, and of values per channel.

    Attributes
    ----------
    error, energy : float
        Of the student's pre-activation less the teacher's, and of the teacher's, with what is
        added to it.
    total : (r,)
    count : int
    """

    error: float
    energy: float
    total: Tensor
    count: int

    @classmethod
    def of(
        cls, layer: Layer, pairs: Sequence[tuple[Lane, Lane]], counting: Sequence[Tensor] | None
    ) -> Moments:
        """Take them from the lanes that have run the call."""
        # float64 sums of float32 states, and one pass: the variance is the mean square less the
        # squared mean of each channel.
        error = energy = 0.0
        count, total = 0, torch.zeros((), dtype=torch.float64)
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
        return cls(error, energy, total, count)


def _mismatch(calls: Sequence[Moments]) -> float:
    """Return the student's mean squared error over the teacher's variance, sums included."""
    error = sum(one.error for one in calls)
    total, count = sum(one.total for one in calls), sum(one.count for one in calls)
    spread = sum(one.energy for one in calls) - float((torch.as_tensor(total) ** 2 / count).sum())
    return error / spread if spread > 0 else (0.0 if error == 0 else float("inf"))
