"""The figure of the benchmark: time per row against kappa, one panel per problem."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cimf.runs.companions import save_figure

# Okabe and Ito's palette, then greys: distinguishable with any colour vision.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
            "#777777", "#BBBBBB")  # fmt: skip


def plot_rows(table: pd.DataFrame, path: str | Path) -> None:
    """Write a PNG: mean milliseconds per row; filled markers reached gap 1e-9 in every row."""
    from matplotlib.figure import Figure

    problems = list(table["problem"].unique())
    solvers = list(table["solver"].unique())
    kappas = list(table["kappa"].unique())
    figure = Figure(figsize=(3.6 * len(problems) + 3.0, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(problems), sharey=True, squeeze=False)[0]
    for panel, problem in zip(panels, problems, strict=True):
        part = table[table["problem"] == problem]
        for k, solver in enumerate(solvers):
            mine = part[part["solver"] == solver].set_index("kappa").reindex(kappas)
            x, y = range(len(kappas)), 1e3 * mine["mean_seconds"]
            colour, width = _COLOURS[k % len(_COLOURS)], 2.4 if k == 0 else 1.2
            panel.plot(x, y, color=colour, linewidth=width, label=solver, zorder=3 if k == 0 else 2)
            reached = mine["reached"].fillna(False).astype(bool).to_numpy()
            for place, value, full in zip(x, y, reached, strict=True):
                panel.plot(place, value, "o", color=colour, markersize=5,
                           markerfacecolor=colour if full else "white")  # fmt: skip
        panel.set_yscale("log")
        panel.set_xticks(range(len(kappas)), kappas)
        panel.set_xlabel("κ")
        panel.set_title(f"{problem}, N = {part['columns'].iloc[0]:,}", fontsize=10, loc="left")
        panel.grid(color="0.92", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean time per row (ms), filled: gap 1e-9 in every row")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, Path(path))
