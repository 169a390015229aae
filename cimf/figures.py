"""The figure of a sweep: accuracy against sparsity, between the dense network and the control."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cimf.files import atomic_path

# Okabe and Ito's palette: distinguishable with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D")
_SPARSITY_TICKS = (-10.0, -3.0, -1.0, 0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def plot_sweep(table: pd.DataFrame, path: str | Path, title: str) -> None:
    """Write a PNG of the models of a sweep, atomically.

    Horizontally the weights that are left, as a fraction of the network's own and on a logarithmic
    axis that is labelled in sparsity; a model right of 0 % has fewer weights than the network.
    Vertically test accuracy, or the relative output error where there are no labels.

    Parameters
    ----------
    table
        As `cimf.tables.tidy`.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    labelled = table["accuracy"].notna().all()
    figure = Figure(figsize=(7.0, 4.4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    groups = list(table.groupby(["design", "rescale"], sort=False))
    for k, ((design, rescale), part) in enumerate(groups):
        part = part[part["nonzero_weights"] > 0]
        kept = 1.0 - part["sparsity_network_weights"].to_numpy(float)
        value = 100 * part["accuracy"] if labelled else part["output_error"]
        label = str(design) + (", rescaled" if rescale else ", as captured")
        colour, marker = _COLOURS[k % 4], _MARKERS[k % 4]
        axes.plot(
            kept, value, marker=marker, color=colour, label=label, markersize=5, linewidth=1.5
        )
        if k == 0:
            for x, y, kappa in zip(kept, value, part["kappa"], strict=True):
                axes.annotate(
                    f"κ = {kappa:g}",
                    (x, y),
                    textcoords="offset points",
                    xytext=(0, 8),
                    ha="center",
                    fontsize=8,
                    color=colour,
                )
    axes.set_xscale("log")
    axes.invert_xaxis()
    if labelled:
        for key, name, style in (
            ("dense_accuracy", "dense network", "-"),
            ("control_accuracy", "control: linear map from the input alone", "--"),
        ):
            level = 100 * float(table[key].iloc[0])
            axes.axhline(level, color="0.35", linestyle=style, linewidth=1.0, zorder=0)
            axes.annotate(
                f"{name}, {level:.1f} %",
                (0.01, level),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(0, 3),
                fontsize=8,
                color="0.25",
            )
        axes.set_ylabel("test accuracy (%)")
    else:
        axes.set_ylabel("relative output error")
    left, right = sorted(axes.get_xlim())
    ticks = [s for s in _SPARSITY_TICKS if left <= 1.0 - s <= right]
    axes.set_xticks([1.0 - s for s in ticks], [f"{100 * s:g}" for s in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("sparsity against the network's weights (%)")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8, loc="best")
    axes.set_title(title, fontsize=10, loc="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
