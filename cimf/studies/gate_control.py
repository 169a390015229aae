"""Whether a density target holds: gates under a constraint beside gates under a penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cimf.methods.by_name import prune_task
from cimf.methods.gates.prune_gates import bisect_penalty
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import out, print_table
from cimf.studies.case import Case
from cimf.studies.compare import Point, claim, finish, measure
from cimf.studies.line_figure import plot_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.studies.trained_rows import as_report
from cimf.studies.training_figure import plot_training

CONSTRAINTS = ("model", "layer")
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
# Density by which a run may miss its target.
WITHIN = 0.005


@dataclass(frozen=True)
class Control:
    """What is run.

    Attributes
    ----------
    densities : sequence of float
        Targets.
    seeds : sequence of int
    options : mapping
        Of the method "gates".
    searched : sequence of float
        Densities for which a penalty is searched as well, by a training run per try.
    samples : int, optional
        The first so many training samples. Default: all.
    """

    densities: Sequence[float]
    seeds: Sequence[int]
    options: Mapping[str, Any]
    searched: Sequence[float]
    samples: int | None = None


def gate_control(
    name: str, folder: Path, load: Callable[[], Case], control: Control, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Run every target by both constraints, a grid of penalties, and the bisection per target.

    Writes table.csv (every run), table.md, layers.txt, density.png and the manifest. Runs are kept
    as they end: the same call continues.
    """
    settings = {
        "network": name, "densities": control.densities, "seeds": control.seeds,
        "searched": control.searched, "samples": control.samples,
        "gates": {key: str(value) for key, value in control.options.items()},
    }  # fmt: skip
    with claim(folder, settings, overwrite) as run:
        case = loaded(run, load)
        rows = measure(run, case, [
            Point(
                {"constraint": constraint, "target": target, "seed": seed},
                "gates",
                1.0 - target,
                {**control.options, "constraint": constraint, "seed": seed},
                control.samples,
            )
            for constraint in CONSTRAINTS
            for target in control.densities
            for seed in control.seeds
        ])  # fmt: skip
        penalised = measure(run, case, [
            Point({"constraint": f"penalty {penalty:g}"}, "gates", None,
                  {**control.options, "penalty": penalty}, control.samples)
            for penalty in PENALTIES
        ])  # fmt: skip
        searches = {target: _search(run, case, target, control) for target in control.searched}
        tables = _tables(rows, penalised, searches, control)
        for title, heading, lines in tables:
            print_table(heading, lines, title=f"{name}: {title}")
        missed = sum(not row["met"] for row in _met(rows))
        text = "\n".join(f"## {title}\n\n{markdown(heading, lines)}"
                         for title, heading, lines in tables)  # fmt: skip
        finish(
            run, case, [*_met(rows), *penalised],
            f"# {name}: control of the density\n\nDense accuracy {case.dense:.2%}. "
            f"{len(rows) - missed} of {len(rows)} runs end within {WITHIN:.1%} of their target by "
            "the medians of their gates, before the cut that makes it exact; a run whose "
            "constraint is slack may end below, and gates are opened again.\n\n"
            f"{text}",
            {"density.png": partial(_draw, name=name, rows=rows, penalised=penalised)},
        )  # fmt: skip
    return rows


def _met(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**row, "met": abs(row["median_density"] - row["target"]) <= WITHIN + 1e-9} for row in rows
    ]


def _search(run: RunFolder, case: Case, target: float, control: Control) -> list[Any]:
    """Return the runs of a bisection over the penalty that ends within a point of the target."""
    task = case.task(control.samples, labelled=True)

    def density_at(penalty: float) -> float:
        result = prune_task(task, None, "gates", **{**control.options, "penalty": penalty})
        weights, total = result.report.matched
        return weights / total

    found: list[Any] = run.once(
        f"bisection to {target}", lambda: bisect_penalty(density_at, target, tolerance=0.01)
    )
    out.print(f"  bisection to density {target:.0%}: {len(found)} runs")
    return found


def _tables(
    rows: Sequence[Mapping[str, Any]],
    penalised: Sequence[Mapping[str, Any]],
    searches: Mapping[float, Sequence[Any]],
    control: Control,
) -> list[tuple[str, list[str], list[list[str]]]]:
    lines = []
    for constraint in CONSTRAINTS:
        for target in control.densities:
            some = [r for r in rows if r["constraint"] == constraint and r["target"] == target]
            densities = [r["median_density"] for r in some]
            accuracies = [100 * r["accuracy"] for r in some]
            worst = max(densities, key=lambda value: abs(value - target))
            mean = sum(accuracies) / len(accuracies)
            spread = max(accuracies) - min(accuracies)
            lines.append([
                constraint, f"{target:.0%}", f"{100 * worst:.2f}", f"{mean:.2f}", f"{spread:.2f}"
            ])  # fmt: skip
    constrained = ["constraint", "target", "worst density %", "accuracy %", "spread"]
    grid = [
        [f"{p:g}", f"{100 * r['median_density']:.2f}", f"{100 * r['accuracy']:.2f}"]
        for p, r in zip(PENALTIES, penalised, strict=True)
    ]
    runs = [
        [f"{target:.0%}", str(len(found)), f"{found[-1][0]:.3g}", f"{100 * found[-1][1]:.2f}"]
        for target, found in searches.items()
    ]
    return [
        ("one run per target", constrained, lines),
        ("a penalty in its place", ["penalty", "density %", "accuracy %"], grid),
        (
            "bisection over the penalty to within a point",
            ["target", "runs", "penalty", "density %"],
            runs,
        ),
    ]


def _draw(
    path: Path,
    *,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    penalised: Sequence[Mapping[str, Any]],
) -> None:
    lines: dict[str, tuple[list[Any], list[float]]] = {
        f"constraint: {constraint}": (
            [100 * row["median_density"] for row in rows if row["constraint"] == constraint],
            [100 * row["accuracy"] for row in rows if row["constraint"] == constraint],
        )
        for constraint in CONSTRAINTS
    }
    lines["penalty"] = (
        [100 * row["median_density"] for row in penalised],
        [100 * row["accuracy"] for row in penalised],
    )
    plot_lines(path, name, lines, across="density by the medians (%)", up="test accuracy (%)")


VARIANTS: dict[str, dict[str, Any]] = {
    "medians, restarts": {},
    "medians, no restarts": {"restarts": False},
    "expected density, restarts": {"measure": "expected"},
    "expected density, no restarts": {"measure": "expected", "restarts": False},
}
"""Of the multipliers: what they go by, and whether they forget."""


def gate_dynamics(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    target: float,
    options: Mapping[str, Any],
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Run one target with and without dual restarts; write every epoch and a figure."""
    import pandas as pd

    settings = {"network": name, "target": target,
                "gates": {key: str(value) for key, value in options.items()}}  # fmt: skip
    with claim(folder, settings, overwrite) as run:
        case = loaded(run, load)
        rows = measure(run, case, [
            Point({"variant": variant}, "gates", 1.0 - target, {**options, **change})
            for variant, change in VARIANTS.items()
        ])  # fmt: skip
        reports = {row["variant"]: as_report(row["history"], len(case.calibration)) for row in rows}
        heading = ["variant", "density % by the medians", "expected %", "accuracy %"]
        table = [
            [row["variant"], f"{100 * row['median_density']:.2f}", f"{100 * row['density']:.2f}",
             f"{100 * row['accuracy']:.2f}"]
            for row in rows
        ]  # fmt: skip
        print_table(heading, table, title=f"{name}, target {target:.0%}")
        epochs = pd.concat(
            [report.table().assign(variant=variant) for variant, report in reports.items()]
        )
        run.write("epochs.csv", epochs.to_csv(index=False))
        draw = partial(plot_training, title=f"{name}, target {target:.0%}", runs=reports,
                       target=target)  # fmt: skip
        finish(
            run, case, rows,
            f"# {name}: dynamics of the gates\n\nTarget density {target:.0%}, dense accuracy "
            f"{case.dense:.2%}. Densities before the cut that makes them exact.\n\n"
            f"{markdown(heading, table)}",
            {"dynamics.png": draw},
        )  # fmt: skip
    return rows
