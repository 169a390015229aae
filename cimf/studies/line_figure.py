"""Line figures of the experiments with layered networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cimf.runs.companions import save_figure
from cimf.studies.sweep_figure import line_style

# Percentages that a logarithmic axis of the error labels.
_TICKS = (0, 30, 50, 70, 80, 85, 90, 95, 98, 99)


Lines = Mapping[str, tuple[Sequence[Any], Sequence[float]]]


def plot_lines(path: Path, title: str, lines: Lines, **options: Any) -> None:
    """Write a figure of named lines, atomically; parameters as `draw_lines`."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(8.0, 4.5), dpi=160, layout="constrained")
    draw_lines(figure.add_subplot(), title, lines, **options)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_lines(
    axes: Any,
    title: str,
    lines: Lines,
    *,
    across: str,
    up: str,
    dense: float | None = None,
    bold: Sequence[str] = (),
    logarithmic: bool = False,
) -> None:
    """Draw named lines.

    Parameters
    ----------
    lines : name -> (values across, values up)
        Values across may be names.
    across, up : str
        What the axes show.
    dense : float, optional
        Accuracy of the dense network in percent: a horizontal line. The axis up is logarithmic in
        the error, 100 less the value.
    bold : sequence of str
        Lines that are drawn first, and so broadest; see `cimf.studies.sweep_figure.line_style`.
    logarithmic : bool
        The axis across, labelled at the values that are there.
    """
    for k, name in enumerate(sorted(lines, key=lambda name: name not in bold)):
        axes.plot(*lines[name], label=name, **line_style(k, len(lines)))
    if dense is not None:
        axes.axhline(dense, color="0.35", linewidth=1.0, zorder=0, label="dense network")
        axes.set_yscale("function", functions=(_from_error, lambda v: 100.0 - np.exp(-v)))
        low, high = axes.get_ylim()
        high = min(high, 50.0 + dense / 2)  # half the error of the dense network is room enough
        axes.set_ylim(low, high)
        axes.set_yticks([tick for tick in _TICKS if low <= tick <= high])
    places = list(dict.fromkeys(place for x, _ in lines.values() for place in x))
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(places, labels=[f"{place:,}" for place in places])
        axes.set_xticks([], minor=True)
    if any(isinstance(place, str) for place in places):
        axes.tick_params(axis="x", rotation=90, labelsize=7)
    elif all(float(place).is_integer() for place in places) and not logarithmic:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(up)
    frame(axes, title, across)


def frame(axes: Any, title: str, across: str) -> None:
    """Give axes their title, the name of what is across, and a light grid."""
    axes.set_xlabel(across)
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")


def _from_error(percent: Any) -> Any:
    return -np.log(np.maximum(100.0 - percent, 1e-2))
