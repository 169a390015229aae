"""Tables and figure of accuracy at equal non-zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cimf.runs.companions import save_figure
from cimf.studies.line_figure import draw_lines

LEGEND = (
    "A cell: percent of the test samples (non-zeros), of the largest model that an objective "
    "reached with at most so many. Non-zeros: of A, B, C, D without the bias, constant states "
    "folded into it; (C, D) are least squares and not sparse, but for the sensitivity, whose D may "
    "use the inputs of the implicit teacher. The ball, l1 and sensitivity have exact row solvers; "
    "the others are cone programs. Perspective is l1 up to weights of 0.01 and quadratic beyond: "
    "where hardly a weight is larger, the l1 norm. Methods of cimf.prune (marked) give a sparse "
    "network, not an implicit model. worst gap: the largest relative gap of a row of the models in "
    "the line; none failed its certificate. s: seconds per model here, the median. Units: rows "
    "solved for states as captured, one unit per state (Theorem 8), or per layer; state error: the "
    "worst layer's."
)


def count_cells(
    table: pd.DataFrame, counts: Sequence[int], pruned: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells: a line per objective, its accuracy at every count."""
    counts = sorted(counts)
    heading = ["objective", *(f"{count:,}" for count in counts), "certified", "worst gap", "s"]
    cells = []
    for name, part in table.groupby("objective", sort=False):
        line = [f"{name} (network)" if name in pruned else str(name)]
        for count in counts:
            within = part[part["nonzeros"] <= count].sort_values("nonzeros").to_dict("records")
            line.append(
                f"{100 * within[-1]['accuracy']:.1f} ({within[-1]['nonzeros']:,})"
                if within
                else "-"
            )
        rows, gap = int(part["rows"].sum()), part["worst_gap"].max()
        certified = f"{int(part['certified'].sum()):,} of {rows:,}" if rows else "no rows"
        line += [certified, "" if np.isnan(gap) else f"{gap:.0e}"]
        cells.append([*line, f"{part['seconds'].median():.2g}"])
    return heading, cells


def unit_cells(units: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells: a line per objective, ball and units."""
    heading = ["objective, kappa", "units", "accuracy", "non-zeros", "state error", "worst gap"]
    rows = sorted(
        units,
        key=lambda row: (not row["objective"].startswith("plain"), -row["kappa"]),
    )
    return heading, [
        [f"{row['objective']}, kappa {row['kappa']:g}", row["units"],
         f"{100 * row['accuracy']:.1f}", f"{row['nonzeros']:,}", f"{row['state_error']:.3f}",
         f"{row['worst_gap']:.0e}"]
        for row in rows
    ]  # fmt: skip


def draw_curves(name: str, table: pd.DataFrame, dense: Mapping[str, float], path: Path) -> None:
    """Draw accuracy against non-zeros, both teachers side by side."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(12.0, 5.0), dpi=160, layout="constrained")
    sides = figure.subplots(1, len(dense), squeeze=False)[0]
    for axes, (kind, own) in zip(sides, dense.items(), strict=True):
        shown = (table["teacher"] == kind) & (table["nonzeros"] > 0)  # the axis has no place for 0
        part = table[shown].sort_values("nonzeros")
        lines = {
            str(objective): (list(curve["nonzeros"]), [100 * share for share in curve["accuracy"]])
            for objective, curve in part.groupby("objective", sort=False)
        }
        order = [label for label in table["objective"].unique() if label in lines]
        draw_lines(
            axes, f"{name}: {kind} teacher", {label: lines[label] for label in order},
            across="non-zeros (logarithmic)", up="accuracy, percent", dense=100 * own,
        )  # fmt: skip
        axes.set_xscale("log")
    figure.legend(*sides[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(figure, path)
