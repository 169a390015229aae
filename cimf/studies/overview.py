"""One figure of finished runs: accuracy against sparsity for every method, one shot and trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cimf.errors import RunError
from cimf.runs.companions import save_figure
from cimf.runs.folder import RunFolder
from cimf.runs.run_content import RunContent, Table, as_number
from cimf.runs.terminal import print_table
from cimf.studies.compare import OURS
from cimf.studies.line_figure import draw_lines
from cimf.studies.sweep_tables import markdown

_ACROSS = "sparsity_network_weights"
# Kinds of points, each a panel: never in one column.
KINDS = ("one shot", "trained")


def overview(
    name: str, folder: Path, sources: Sequence[Path], overwrite: bool = False
) -> list[dict[str, Any]]:
    """Write table and figure of every point of the finished runs of one network.

    Parameters
    ----------
    sources : sequence of Path
        Run folders whose table has `accuracy` and `sparsity_network_weights`, and tells methods
        apart by `method`, or constraints of the gates by `constraint`.

    Raises
    ------
    RunError
        A folder holds no such run, or runs differ in their dense network or test samples.
    """
    runs = [RunContent.read(source) for source in sources]
    dense = _dense(runs)
    rows = [row for run in runs for row in _rows(run)]
    settings = {"sources": {str(run.path): run.record["fingerprint"] for run in runs}}
    with RunFolder.claim(folder, settings, overwrite) as claimed:
        heading = ["method", "zero weights %", "accuracy %", "epochs", "run"]
        text = f"# {name}\n\nTest accuracy of the dense network {dense:.2%}.\n"
        for kind in KINDS:
            lines = [
                [row["method"], f"{100 * row[_ACROSS]:.2f}", f"{100 * row['accuracy']:.2f}",
                 f"{row['epochs']:g}", row["run"]]
                for row in sorted(rows, key=lambda row: (row[_ACROSS], -row["accuracy"]))
                if row["kind"] == kind
            ]  # fmt: skip
            print_table(heading[:4], [line[:4] for line in lines], title=f"{name}: {kind}")
            text += f"\n## {kind.capitalize()}\n\n{markdown(heading, lines)}"
        import pandas as pd

        claimed.finish(
            {"table.csv": pd.DataFrame(rows).to_csv(index=False), "table.md": text},
            {"accuracy.png": partial(_draw, name=name, rows=rows, dense=dense)},
            dense_accuracy=dense,
            commands={str(run.path): run.record["command"] for run in runs},
        )
    return rows


def _dense(runs: Sequence[RunContent]) -> float:
    """Return the accuracy of the network that all runs begin with.

    Raises
    ------
    RunError
        They do not begin with the same, or are not judged on as many samples.
    """
    found: dict[str, tuple[Any, Any]] = {
        str(run.path): (run.record.get("dense_accuracy"), run.record.get("samples", {}).get("test"))
        for run in runs
    }
    (accuracy, samples), *others = set(found.values())
    if others or accuracy is None or samples is None:
        parts = "; ".join(f"{path}: {a} on {n} samples" for path, (a, n) in found.items())
        raise RunError(
            f"runs of one dense network on the same test samples are needed, got {parts}"
        )
    return float(accuracy)


def _rows(run: RunContent) -> list[dict[str, Any]]:
    """Return the points of a run, tidy.

    Raises
    ------
    RunError
        It has no table of points.
    """
    for table in run.tables():
        label = next((c for c in ("method", "constraint") if c in table.heading), None)
        if label and {"accuracy", _ACROSS} <= set(table.heading):
            return [_row(run, table, label, k) for k in range(len(table.rows))]
    raise RunError(f"{run.path} has no table with a method, accuracy and {_ACROSS}")


def _row(run: RunContent, table: Table, label: str, k: int) -> dict[str, Any]:
    cells = dict(zip(table.heading, table.rows[k], strict=True))
    method = cells[label]
    if label == "constraint":
        method = f"gates, {'penalty' if method.startswith('penalty') else f'{method}-wise'}"
    epochs = as_number(cells.get("epochs", "")) or 0.0
    measured = {key: float(cells[key]) for key in (_ACROSS, "accuracy")}
    kind = KINDS[epochs > 0]
    return {
        "method": method, "kind": kind, **measured, "epochs": epochs, "run": str(run.path)
    }  # fmt: skip


def _draw(path: Path, *, name: str, rows: Sequence[Mapping[str, Any]], dense: float) -> None:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(10.0, 6.0), dpi=160, layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for row in sorted(rows, key=lambda row: row[_ACROSS]):
            if row["kind"] == kind:
                epochs = f", {row['epochs']:g} epochs" if row["epochs"] else ""
                across, up = lines.setdefault(row["method"] + epochs, ([], []))
                across.append(100 * row[_ACROSS])
                up.append(100 * row["accuracy"])
        draw_lines(
            axes, f"{name}: {kind}", lines, across="zero weights (%)",
            up="test accuracy (%), logarithmic in the error", dense=100 * dense, bold=[OURS],
        )  # fmt: skip
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2}
        axes.legend(frameon=False, fontsize=7, **below)
    save_figure(figure, path)
