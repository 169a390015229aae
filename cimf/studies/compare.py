"""Methods side by side: sparse networks measured point by point on the same samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cimf.errors import CimfError, warn_outside
from cimf.evaluate.paired import packed
from cimf.methods.base import Pruned, Task
from cimf.methods.by_name import METHODS, prune_task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.statistics_options import Statistics
from cimf.runs.folder import UNFINISHED, RunFolder
from cimf.runs.terminal import out, print_table
from cimf.studies.case import Case, share
from cimf.studies.differences import differences, differences_text
from cimf.studies.line_figure import plot_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.studies.trained_rows import costs, trained_row

LEVELS = (0.6, 0.75, 0.8, 0.9)
OURS = "layered"
# Methods that need no labels, in the order of a table.
ONE_SHOT = tuple(name for name, method in METHODS.items() if not method.needs)
# Statistics of the one-shot methods in all experiments.
FAST: dict[str, Any] = {"positions": 128, "precision": torch.float32}


@dataclass(frozen=True)
class Point:
    """One sparse network of a table.

    Attributes
    ----------
    labels : Mapping
        Its columns in the table: what tells it from the other points.
    method : str
        A key of `cimf.METHODS`.
    sparsity : float
    options : Mapping
        Of the method.
    samples : int, optional
        The first so many calibration samples. Default: all.
    """

    labels: Mapping[str, Any]
    method: str
    sparsity: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None

    @property
    def name(self) -> str:
        """The labels in one line."""
        return ", ".join(f"{key} {value}" for key, value in self.labels.items())


def claim(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> RunFolder:
    """Claim a folder for points that are measured with `FAST`, which is part of the settings."""
    fast = {key: str(value) for key, value in FAST.items()}
    return RunFolder.claim(folder, {**settings, "options": fast}, overwrite)


def measure(
    run: RunFolder, case: Case, points: Sequence[Point], keep_going: bool = False
) -> list[dict[str, Any]]:
    """Return one row per point: its labels, accuracy, accounting and seconds.

    `agreement` is the share of test samples that get the class that the trained network gives them.

    Every point is kept on the disk as soon as it is measured. Points that see the same samples with
    the same options share their statistics if they follow each other; these are not in the seconds.

    With `keep_going` a point that fails is warned about and has no row.
    """
    out.print(f"dense {case.dense:.2%} on {len(case.labels):,} test samples")
    if there := sum(point.name in run.points for point in points):
        path = run.path / UNFINISHED
        out.print(f"{there} points are there from an interrupted run ({path})")
    shared: tuple[Any, Task] | None = None

    def work(point: Point, checkpoint: Path) -> dict[str, Any]:
        nonlocal shared
        options = dict(point.options)
        method = METHODS[point.method]
        labelled = "labels" in method.needs
        record = method.checked(point.method, point.sparsity, options)
        statistics = record.statistics if isinstance(record, Statistics) else None
        key = point.samples, statistics, labelled
        if shared is None or shared[0] != key:
            shared = None  # frees the statistics before the next ones are taken
            shared = key, case.task(point.samples, labelled)
            if statistics is not None and point.sparsity is not None:
                Calibration.of(shared[1], statistics).survey  # noqa: B018 - what the points share
        if labelled:
            options["checkpoint"] = checkpoint
        start = time.perf_counter()
        result = prune_task(shared[1], point.sparsity, point.method, **options)
        seconds = time.perf_counter() - start
        classes = case.classes(result.network)
        judged = {
            "accuracy": share(classes == case.labels),
            "agreement": share(classes == case.dense_classes),
            "right": packed(classes == case.labels),
        }
        found = {**judged, **_row(result), **costs(shared[1].graph, result.network)}
        found |= trained_row(result.report.training) if labelled else {}
        return {**found, "seconds": seconds}

    rows = []
    for k, point in enumerate(points, start=1):
        try:
            row = run.resumed(point.name, partial(work, point))
        except CimfError as error:
            if not keep_going:
                raise
            warn_outside(f"{point.name} failed: {error}")
            continue
        headline = f"{point.name}: {row['accuracy']:.2%} ({row['seconds']:.0f} s)"
        out.print(f"  {k}/{len(points)} {headline}")
        rows.append({**point.labels, **row, "report": f"{headline}\n{row['report']}"})
    return rows


def _row(result: Pruned) -> dict[str, Any]:
    report = result.report
    gaps = [layer.worst_gap for layer in report.layers if layer.solved]
    return {
        **{f"sparsity_{key}": number for key, number in report.sparsity.items()},
        "nonzero_weights": report.nonzeros["network_weights"][0],
        "emptied_rows": sum(len(layer.emptied) for layer in report.layers),
        "unread_channels": sum(layer.unread for layer in report.layers),
        "exchanges": sum(layer.exchanges for layer in report.layers),
        "solved_rows": sum(layer.solved for layer in report.layers),
        "certified_rows": sum(layer.certified for layer in report.layers),
        "worst_gap": max(gaps, default=None),
        "head_mismatch": report.layers[-1].mismatch if report.layers else None,
        "layers": [(layer.path, layer.sparsity) for layer in report.layers],
        "report": str(report),
    }


def percent(rows: Sequence[Mapping[str, Any]], **labels: Any) -> str:
    """Return the accuracy of the row with these labels, in percent, or a dash."""
    for row in rows:
        if all(row[key] == value for key, value in labels.items()):
            return f"{100 * row['accuracy']:.2f}"
    return "-"


def finish(
    run: RunFolder,
    case: Case,
    rows: Sequence[Mapping[str, Any]],
    text: str,
    figures: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write table.csv, table.md, layers.txt (every report), the figures and the manifest."""
    import pandas as pd

    long = ("layers", "report", "history", "right")
    table = [{key: value for key, value in row.items() if key not in long} for row in rows]
    run.finish(
        {
            "table.csv": pd.DataFrame(table).to_csv(index=False),
            "table.md": text,
            "layers.txt": "\n\n".join(row["report"] for row in rows) + "\n",
        },
        figures,
        data=case.data,
        dense_accuracy=case.dense,
        samples={"calibration": len(case.calibration), "test": len(case.labels)},
    )


def compare(
    name: str,
    folder: Path,
    settings: dict[str, Any],
    load: Callable[[], Case],
    *,
    levels: Sequence[float] = LEVELS,
    methods: Sequence[str] = ONE_SHOT,
    keep: Sequence[str] = (),
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Run methods at sparsity levels on the same calibration samples and write a results folder.

    Parameters
    ----------
    keep : sequence of str
        Layers that the baselines keep dense, where that is better for them: the head of 640
        weights on CIFAR-10 (0.2 % of all), not the one of 25,600 on CIFAR-100 (8 %).
    """
    settings = {**settings, "levels": levels, "methods": methods, "keep": keep}
    with claim(folder, settings, overwrite) as run:
        case = loaded(run, load)
        rows = measure(run, case, [
            Point(
                {"method": method, "target": level},
                method,
                level,
                FAST if method == OURS else {**FAST, "keep": tuple(keep)},
            )
            for level in levels
            for method in methods
        ])  # fmt: skip
        title = ["method", *(f"{level:.0%}" for level in levels)]
        table = [
            [method, *(percent(rows, method=method, target=level) for level in levels)]
            for method in methods
        ]
        print_table(title, table, title=name)
        apart = differences(rows, OURS, len(case.labels))
        if apart:
            print_table(title, apart, title=f"less {OURS}")
        head = f" The baselines keep {', '.join(keep)} dense." if keep else ""
        sources = "".join(f"- {key}: {METHODS[key].source}\n" for key in methods)
        finish(
            run,
            case,
            rows,
            f"# {name}\n\nTest accuracy in percent at equal sparsity of all convolution and linear "
            f"weights; dense {case.dense:.2%}.{head}\n\n{markdown(title, table)}\n"
            f"{differences_text(title, apart, OURS)}{sources}",
            _figures(name, methods, rows, case.dense),
        )
    return rows


def accuracy_lines(
    methods: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[list[float], list[float]]]:
    """Return sparsity and accuracy in percent, a line per method."""
    lines = {}
    for method in methods:
        points = [row for row in rows if row["method"] == method]
        lines[method] = (
            [100 * row["sparsity_network_weights"] for row in points],
            [100 * row["accuracy"] for row in points],
        )
    return lines


def _figures(
    name: str, methods: Sequence[str], rows: Sequence[Mapping[str, Any]], dense: float
) -> dict[str, Callable[[Path], None]]:
    """Return the figures of `compare`: all methods; the sparsity of every layer under ours."""
    figures: dict[str, Callable[[Path], None]] = {
        "accuracy.png": partial(
            plot_lines,
            title=name,
            lines=accuracy_lines(methods, rows),
            across="sparsity of all convolution and linear weights (%)",
            up="test accuracy (%), logarithmic in the error",
            dense=100 * dense,
            bold=[OURS],
        )
    }
    if OURS in methods:
        figures["layers.png"] = partial(
            plot_lines,
            title=f"{name}: {OURS}",
            lines={
                f"{row['target']:.0%} in all": (
                    [path for path, _ in row["layers"]],
                    [100 * share for _, share in row["layers"]],
                )
                for row in rows
                if row["method"] == OURS
            },
            across="layer, from input to output",
            up="sparsity of the layer (%)",
        )
    return figures
