"""Whole channels, neurons or tied groups of them: chosen by their effect, the rest refitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cimf.errors import InputError
from cimf.methods.base import Outcome, Task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.channel_choice import (
    Effects,
    Prices,
    Reader,
    Removal,
    Scores,
    magnitudes,
    remove_cheapest,
)
from cimf.methods.layered.prune_layers import LayeredOptions, prune_layers, solve_layers
from cimf.network.channel_flow import OUTPUT, ChannelFlow, TiedChannels, channel_flow
from cimf.network.copies import working_copy
from cimf.network.layers import Layer
from cimf.network.trace import trace


def prune_layered(task: Task, sparsity: float | None, options: LayeredOptions) -> Outcome:
    """Return the network with sparse rows, or without whole channels, as the structure says.

    Raises
    ------
    InputError, UnknownNameError, CaptureError
        As `prune_layers` and `prune_channels`.
    """
    if options.structure != "channels":
        return prune_layers(task, sparsity, options)
    assert sparsity is not None  # `Method.checked` refuses it
    return prune_channels(task, sparsity, options)


def prune_channels(task: Task, sparsity: float, options: LayeredOptions) -> Outcome:
    """Take out the channels of least effect, then refit what is left on the student's states.

    The effect of a channel is the increase of its readers' least-squares errors on the teacher's
    states, the readers' other columns refitted, in the units of the allocation: "output" (times
    sensitivity and measured scale, see `Survey`) or "error" (over the layer's variance).

    Raises
    ------
    InputError, UnknownNameError
        No channel can be taken out, the target is out of reach, an unknown path in `keep`.
    """
    calibration = Calibration.of(task, options.statistics)
    groups, flow = removable_groups(task, calibration, options.keep)
    layers = {layer.path: layer for layer in calibration.graph.layers}
    survey = calibration.survey
    rule = str(options.allocation)
    if rule == "output" and survey.blind:
        rule = "error"
    read = {path for group in groups for path in group.columns}
    readers = {}
    for k, path in enumerate(layers):
        if path not in read:
            continue
        curve = survey.curves[k]
        gram, price = curve.problems[0], np.full(layers[path].n_rows, 1.0 / survey.variance(k))
        if rule == "output":
            price = curve.sensitivity
            kept, predicted = _alone(layers[path], groups, Reader(gram, price), sparsity)
            price = price * survey.scale(k, kept, predicted / gram.n_samples)
        readers[path] = Reader(gram, price / gram.n_samples)
    outcome = remove_and_refit(
        calibration, groups, flow, Effects(layers, groups, readers), sparsity, options
    )
    warned = survey.notes if options.allocation == "output" else ()
    return replace(outcome, warnings=(*outcome.warnings, *warned))


def prune_channels_by_magnitude(
    task: Task, sparsity: float, options: LayeredOptions, by_layer: bool
) -> Outcome:
    """Take out the channels whose own weights are smallest: all the same share, or one threshold.

    Raises
    ------
    InputError, UnknownNameError
        As `prune_channels`.
    """
    calibration = Calibration.of(task, options.statistics)
    groups, flow = removable_groups(task, calibration, options.keep)
    layers = {layer.path: layer for layer in calibration.graph.layers}
    scores = Scores(magnitudes(layers, groups, by_layer))
    return remove_and_refit(calibration, groups, flow, scores, sparsity, options)


def removable_groups(
    task: Task, calibration: Calibration, keep: Sequence[str]
) -> tuple[list[TiedChannels], ChannelFlow]:
    """Return the groups of channels that may go, and all channels of the task's network.

    Raises
    ------
    InputError, UnknownNameError
        None may; an unknown path in `keep`.
    """
    graph = task.graph
    kept = {layer.path for layer in calibration.named(keep)}

    def follow() -> ChannelFlow:
        sample = task.inputs[0]
        reference = working_copy(graph.original, graph.dtype)
        return channel_flow(trace(reference, graph.dtype, sample), sample)

    flow = task.once("channel flow", follow)
    groups = [group for group in flow.groups if not kept & {*group.rows, *group.columns}]
    if not groups:
        reasons = "; ".join(f"{path}: {why}" for path, why in flow.held.items())
        raise InputError(f"no whole channel can be taken out ({reasons or 'all are kept'})")
    return groups, flow


def remove_and_refit(
    calibration: Calibration,
    groups: Sequence[TiedChannels],
    flow: ChannelFlow,
    prices: Prices,
    sparsity: float,
    options: LayeredOptions,
) -> Outcome:
    """Take out the cheapest channels to a target, and solve the rows on what is left.

    Raises
    ------
    InputError
        The target is out of reach.
    """
    layers = {layer.path: layer for layer in calibration.graph.layers}
    goal = round(sparsity * calibration.graph.n_weights)
    removal, count = remove_cheapest(layers, groups, prices, goal)
    outcome = solve_layers(calibration, [removal.kept(path) for path in layers], options)
    note = _note(removal, count, len(groups), flow)
    return replace(outcome, notes=(*outcome.notes, note))


def _note(removal: Removal, count: int, total: int, flow: ChannelFlow) -> str:
    rows = sum(int((~alive).sum()) for alive in removal.rows.values())
    held: dict[str, list[str]] = {}
    for path, why in flow.held.items():
        if why != OUTPUT:  # goes without saying
            held.setdefault(why, []).append(path)
    stay = "".join(f"; in {', '.join(paths)} some stay: {why}" for why, paths in held.items())
    return (
        f"{count} of {total} groups of tied channels are removed, {rows} output channels in all, "
        "with the columns that read them; the target is met as closely as whole groups allow"
        f"{stay}"
    )


def _alone(
    layer: Layer, groups: Sequence[TiedChannels], reader: Reader, share: float
) -> tuple[np.ndarray, float]:
    """Drop a share of the groups that one layer reads, cheapest first, at least one.

    Returns
    -------
    kept : (r, N') bool
    cost : float
        Predicted.
    """
    own = [
        TiedChannels({}, {layer.path: group.columns[layer.path]}, {})
        for group in groups
        if layer.path in group.columns
    ]
    effects = Effects({layer.path: layer}, own, {layer.path: reader})
    kept = np.ones((layer.n_rows, layer.n_columns + int(layer.has_bias)), bool)
    left, total = set(range(len(own))), 0.0
    for _ in range(max(1, round(share * len(own)))):
        costs = {k: effects.price(k, 1) for k in left}
        best = min(costs, key=costs.__getitem__)
        total += costs[best]
        kept[:, effects.blocks[layer.path][best]] = False
        effects.remove(best)
        left.remove(best)
    return kept, total
