"""Figure of a training run: what was measured, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cimf.runs.companions import save_figure
from cimf.studies.sweep_figure import line_style
from cimf.train.training_report import TrainingReport

# Panels from the top; each shows the columns that begin with its name.
_PANELS = (("loss",), ("density", "median density", "multiply-adds"), ("multiplier",))


def plot_training(
    path: Path, title: str, runs: Mapping[str, TrainingReport], target: float | None = None
) -> None:
    """Write a PNG, atomically: loss, densities and multipliers over the epochs.

    Parameters
    ----------
    runs : name -> TrainingReport
        Drawn in the same panels. Panels without a measure are left out.
    target : float, optional
        Density that the runs were to meet: a horizontal line.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    tables = {name: report.table() for name, report in runs.items()}
    names = {str(column) for table in tables.values() for column in table}
    panels = [panel for panel in _PANELS if any(_shown(name, panel) for name in names)]
    figure = Figure(figsize=(8.0, 2.4 * len(panels) + 0.6), dpi=160, layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, panels, strict=True):
        lines = [
            (f"{name}: {column}" if len(runs) > 1 else column, table["epoch"], table[column])
            for name, table in tables.items()
            for column in map(str, table)
            if _shown(column, panel)
        ]
        for k, (label, epochs, values) in enumerate(lines):
            axes.plot(epochs, values, label=label, **line_style(k, len(lines)))
        if target is not None and panel[0] == "density":
            axes.axhline(target, color="0.35", linewidth=1.0, zorder=0, label="target")
        axes.set_ylabel(panel[0])
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, ncols=2)
    grid[-1].set_xlabel("epoch")
    grid[0].set_title(title, fontsize=10, loc="left")
    save_figure(figure, path)


def _shown(column: str, panel: tuple[str, ...]) -> bool:
    return column.startswith(panel)
