"""Line figures of the experiments with layered networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cimf.files import atomic_path

_MARKERS = "osD^vPX*"


def plot_lines(
    path: Path,
    title: str,
    lines: Mapping[str, tuple[Sequence[Any], Sequence[float]]],
    *,
    across: str,
    up: str,
    level: float | None = None,
    bold: Sequence[str] = (),
    logarithmic: bool = False,
) -> None:
    """Write a PNG of named lines, atomically.

    Parameters
    ----------
    lines : name -> (values across, values up)
        Values across may be names.
    across, up : str
        What the axes show.
    level : float, optional
        A horizontal line: the dense network.
    bold : sequence of str
        Lines that are drawn solid; the others are dashed. Empty: all solid.
    logarithmic : bool
        The axis across, labelled at the values that are there.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(7.2, 4.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for k, (name, (x, y)) in enumerate(lines.items()):
        solid = name in bold or not bold
        axes.plot(
            x, y, marker=_MARKERS[k % 8], markersize=5, label=name,
            linewidth=2.0 if solid else 1.2, linestyle="-" if solid else "--",
        )  # fmt: skip
    if level is not None:
        axes.axhline(level, color="0.35", linewidth=1.0, zorder=0)
    places = list(dict.fromkeys(place for x, _ in lines.values() for place in x))
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(places, labels=[f"{place:,}" for place in places])
        axes.set_xticks([], minor=True)
    if any(isinstance(place, str) for place in places):
        axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
