"""The figure of a sweep: accuracy against sparsity, between the dense network and the control."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from cimf.files import atomic_path

# Okabe and Ito's palette: distinguishable with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D")

# Sparsities in percent that may be labelled, the ones to keep first; close ones give way.
_TICKS = (0, 50, 80, 90, 95, 98, 99, -100, -300, -900, 99.5, 99.9, 65, 30, -50, 85, 93, 97, 99.8)


def plot_sweep(table: pd.DataFrame, path: str | Path, title: str) -> None:
    """Write a PNG of the models of a sweep, atomically.

    Across: sparsity against the network's weights, on a logarithmic axis of the weights that are
    left, so that a model left of 0 % has more weights than the network. Up: test accuracy, or the
    relative output error where there are no labels.

    Parameters
    ----------
    table
        As `cimf.tables.tidy`.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    labelled = bool(table["accuracy"].notna().all())
    figure = Figure(figsize=(7.2, 4.5), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for k, ((design, rescale), part) in enumerate(table.groupby(["design", "rescale"], sort=False)):
        part = part[part["nonzero_weights"] > 0]
        kept = 1.0 - part["sparsity_network_weights"].to_numpy(float)
        value = (100 * part["accuracy"] if labelled else part["output_error"]).to_numpy(float)
        axes.plot(
            kept,
            value,
            marker=_MARKERS[k % 4],
            color=_COLOURS[k % 4],
            markerfacecolor=_COLOURS[k % 4] if k == 0 else "white",
            label=f"{design}, {'rescaled' if rescale else 'states as captured'}",
            markersize=6 if k == 0 else 4,
            linewidth=1.6,
            linestyle="-" if k == 0 else "--",
        )
        if k == 0:
            for x, y, kappa in zip(kept, value, part["kappa"], strict=True):
                axes.annotate(f"κ {kappa:g}", (x, y), (-6, -9), textcoords="offset points",
                              ha="right", fontsize=7, color="0.25")  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.12)
    axes.invert_xaxis()
    if labelled:
        for key, name, style in (
            ("dense_accuracy", "dense network", "-"),
            ("control_accuracy", "control, a linear map from the input alone", ":"),
        ):
            level = 100 * float(table[key].iloc[0])
            axes.axhline(level, color="0.35", linestyle=style, linewidth=1.0, zorder=0)
            axes.annotate(
                f"{name}: {level:.1f} %",
                (0.995, level),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="0.25",
            )
    _label_sparsity(axes)
    axes.set_xlabel("sparsity against the network's weights (%)")
    axes.set_ylabel("test accuracy (%)" if labelled else "relative output error")
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _label_sparsity(axes: Any) -> None:
    """Label the axis of the weights that are left in sparsity, at least 6 % of its width apart."""
    low, high = sorted(axes.get_xlim())
    width = math.log(high / low)
    chosen: list[float] = []
    for sparsity in _TICKS:
        place = 1.0 - sparsity / 100.0
        if low <= place <= high and all(
            abs(math.log(place / other)) > 0.06 * width for other in chosen
        ):
            chosen.append(place)
    axes.set_xticks(chosen, [f"{100.0 * (1.0 - place):.4g}" for place in chosen])
    axes.set_xticks([], minor=True)
