"""Two networks in step, node by node: the teacher as it was, the student as it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from cimf.errors import CaptureError
from cimf.network.layers import Layer, LayerGraph, evaluate_node, stages
from cimf.network.patches import PatchGram, grid

Values = list[Any]


@torch.no_grad()
def propagate(
    graph: LayerGraph,
    batches: Sequence[Tensor],
    solve: Callable[[Layer, PatchGram], tuple[Tensor, Tensor | None] | None],
    *,
    correct: bool = True,
    positions: int | None = None,
    precision: torch.dtype = torch.float64,
    counting: Mapping[str, Sequence[Tensor]] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Run teacher and student through the graph, solving every layer when its input is known.

    Parameters
    ----------
    batches : sequence of Tensor
        Calibration inputs; the values of all batches at one node are held at a time.
    solve : (layer, statistics) -> (rows (r, N), bias (r,) or None), or None to leave the layer
        Called in topological order. The rows are those of the student from here on.
    correct : bool
        Student's states as regressors (and subtracted summands), so that a layer corrects the
        errors before it; False: teacher's states.
    positions : int, optional
        About so many output positions per sample enter the statistics (a grid with a random
        offset per batch). Default: all.
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
    rng = np.random.default_rng(seed)
    counting = counting or {}
    teacher: dict[fx.Node, Values] = {}
    student: dict[fx.Node, Values] = {}
    mismatch: dict[str, float] = {}
    rows: dict[str, tuple[Tensor, Tensor | None]] = {}
    for node, dead, layer in stages(graph):
        if node.op == "placeholder":
            teacher[node] = student[node] = list(batches)
        elif layer is None:
            teacher[node] = _evaluate(graph, node, teacher, len(batches))
            same = all(teacher[n] is student[n] for n in node.all_input_nodes)
            student[node] = teacher[node] if same else _evaluate(graph, node, student, len(batches))
        else:
            teacher[node] = _evaluate(graph, node, teacher, len(batches))
            statistics = PatchGram(layer, precision)
            source = student if correct else teacher
            for k, x in enumerate(source[layer.source]):
                goal = teacher[node][k]
                if correct:
                    before, after = (
                        _summand(layer, env, k, goal.shape) for env in (teacher, student)
                    )
                    goal = goal + before - after
                for value in (x, goal):
                    _check_finite(layer, value, counting.get(layer.path), k, batches)
                if layer.path in counting:
                    x, goal = (value[counting[layer.path][k]] for value in (x, goal))
                statistics.update(x, goal, grid(layer, goal, positions, rng))
            found = solve(layer, statistics)
            if found is not None:
                rows[layer.path] = found
            same = found is None and teacher[layer.source] is student[layer.source]
            student[node] = (
                teacher[node] if same else [layer(x, rows) for x in student[layer.source]]
            )
            mismatch[layer.path] = _mismatch(layer, teacher, student, counting.get(layer.path))
        for value in dead:
            del teacher[value], student[value]
    return mismatch


def _evaluate(graph: LayerGraph, node: fx.Node, env: dict[fx.Node, Values], count: int) -> Values:
    """Return a node's value for each of `count` batches; constants are the same for all."""
    return [
        evaluate_node(graph.module, node, {n: env[n][k] for n in node.all_input_nodes})
        for k in range(count)
    ]


def _summand(layer: Layer, env: dict[fx.Node, Values], k: int, shape: torch.Size) -> Tensor | float:
    """Return what is added to the layer's output (of this shape) in batch k, or 0.

    A sum that repeats the layer's output along some axis (a value that is added to advantages)
    gives its entries several targets: there the layer has its own output as the target.
    """
    if layer.summand is None:
        return 0.0
    beside = torch.as_tensor(env[layer.summand][k])
    return beside if torch.broadcast_shapes(shape, beside.shape) == shape else 0.0


def _check_finite(
    layer: Layer,
    value: Tensor,
    counting: Sequence[Tensor] | None,
    k: int,
    batches: Sequence[Tensor],
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
    layer: Layer,
    teacher: dict[fx.Node, Values],
    student: dict[fx.Node, Values],
    counting: Sequence[Tensor] | None,
) -> float:
    error = energy = count = 0.0
    total: Tensor | float = 0.0
    for k, z in enumerate(teacher[layer.node]):
        e = student[layer.node][k] - z
        before, after = (_summand(layer, env, k, z.shape) for env in (teacher, student))
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
