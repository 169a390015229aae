"""The figure of a sweep: accuracy against sparsity, between the dense network and the control."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cimf.methods.stacked.captured import units_in_words
from cimf.runs.companions import save_figure
from cimf.runs.numbers import shortest

# Okabe and Ito's palette: distinguishable with any colour vision.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999",
)  # fmt: skip
_MARKERS = "os^DvPX*"
_DASHES = ("-", "--", "-.", ":")

# Percentages that an axis may label, the ones to keep first; close ones give way.
_TICKS = (
    0,
    50,
    80,
    90,
    95,
    98,
    99,
    -100,
    -300,
    -900,
    99.5,
    99.9,
    70,
    30,
    -50,
    85,
    60,
    93,
    97,
    96,
    99.8,
)


def line_style(k: int, count: int) -> dict[str, Any]:
    """Return the style of line k of `count`: it leaves those below visible where they coincide.

    Every line is thinner than the one below it, dashed otherwise, and its markers are hollow and
    smaller.
    """
    above = k / max(count - 1, 1)
    return {
        "color": _COLOURS[k % 8],
        "marker": _MARKERS[k % 8],
        "markersize": 9.0 - 5.0 * above,
        "markerfacecolor": "none",
        "linestyle": _DASHES[k % 4],
        "linewidth": 3.0 - 2.0 * above,
        "zorder": 2.0 + above,
    }


def plot_sweep(table: pd.DataFrame, path: str | Path, title: str) -> None:
    """Write a figure of the models of a sweep, atomically; parameters as `draw_sweep`."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(7.2, 4.5), dpi=160, layout="constrained")
    draw_sweep(figure.add_subplot(), table, title)
    save_figure(figure, Path(path))


def draw_sweep(axes: Any, table: pd.DataFrame, title: str) -> None:
    """Draw the models of a sweep.

    Across: sparsity against the network's weights; left of 0 % a model has more weights than the
    network. Up: test accuracy, or the relative output error where there are no labels. Sparsity
    and accuracy stand on logarithmic axes of what is missing to 100 %.

    Parameters
    ----------
    table
        One row per model, as `cimf.methods.stacked.model_report.Report.row`.
    """
    labelled = bool(table["accuracy"].notna().all())
    groups = list(table.groupby(["design", "rescale"], sort=False))
    for k, ((design, rescale), part) in enumerate(groups):
        part = part[part["nonzero_weights"] > 0]
        kept = 1.0 - part["sparsity_network_weights"].to_numpy(float)
        value = (_missing(part["accuracy"]) if labelled else part["output_error"]).to_numpy(float)
        axes.plot(
            kept,
            value,
            label=f"{design}, states {units_in_words(rescale)}",
            **line_style(k, len(groups)),
        )
        if k == 0:
            named = _apart(kept, 0.04)
            for x, y, kappa in zip(kept, value, part["kappa"], strict=True):
                if x in named:
                    axes.annotate(
                        f"κ {shortest(kappa)}",
                        (x, y),
                        (5, 5),
                        textcoords="offset points",
                        fontsize=7,
                        color="0.25",
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3},
                    )
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.12)
    axes.invert_xaxis()
    _label_missing(axes.xaxis)
    if labelled:
        for key, name, style, offset in (
            ("dense_accuracy", "dense network", "-", 3),
            ("control_accuracy", "control: linear map from the input alone", ":", -10),
        ):
            level = table[key].iloc[:1]
            axes.axhline(_missing(level)[0], color="0.35", linestyle=style, linewidth=1.0, zorder=0)
            axes.annotate(
                f"{name}, {100 * level[0]:.1f} %",
                (0.995 if offset > 0 else 0.005, _missing(level)[0]),
                (0, offset),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right" if offset > 0 else "left",
                fontsize=8,
                color="0.25",
            )
        axes.set_yscale("log")
        axes.invert_yaxis()
        _label_missing(axes.yaxis)
    axes.set_xlabel("sparsity against the network's weights (%), logarithmic in the weights kept")
    axes.set_ylabel(
        "test accuracy (%), logarithmic in the error" if labelled else "relative output error"
    )
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left" if labelled else "upper left")
    axes.set_title(title, fontsize=10, loc="left")


def _missing(fraction: pd.Series) -> pd.Series:
    """Return what is missing to 1, at least 1e-4 so that it has a place on a logarithmic axis."""
    return (1.0 - fraction.astype(float)).clip(lower=1e-4)


def _apart(places: Iterable[float], fraction: float, limits: Sequence[float] = ()) -> list[float]:
    """Return the places at least `fraction` of a logarithmic axis apart, the first ones first."""
    places = list(places)
    low, high = limits or (min(places, default=1.0), max(places, default=1.0))
    chosen: list[float] = []
    for place in places:
        near = (abs(math.log(place / other)) < fraction * math.log(high / low) for other in chosen)
        if low <= place <= high and not any(near):
            chosen.append(place)
    return chosen


def _label_missing(axis: Any) -> None:
    """Label a logarithmic axis of what is missing to 1 by percentages."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    chosen = _apart((1.0 - percent / 100.0 for percent in _TICKS), 0.06, (low, high))
    if len(chosen) < 3:  # a short piece between them: round numbers of its own
        percents = MaxNLocator(5).tick_values(100.0 * (1.0 - high), 100.0 * (1.0 - low))
        places = (1.0 - percent / 100.0 for percent in np.asarray(percents))
        chosen = [place for place in places if low <= place <= high]
    axis.set_ticks(chosen, labels=[f"{100.0 * (1.0 - place):.4g}" for place in chosen])
    axis.set_ticks([], minor=True)
