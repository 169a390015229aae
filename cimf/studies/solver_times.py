"""Speed-up by warm starts and by part of the data, timed repeatedly: the paper's Table 3."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cimf.judge import Solution
from cimf.methods.base import Task
from cimf.runs.folder import RunFolder
from cimf.runs.numbers import shortest
from cimf.runs.terminal import log, out, print_table
from cimf.solve import solve_rows
from cimf.solve.bisection.algorithms import bisect_rows
from cimf.solve.conic.cvxpy_rows import solve_path_cvxpy
from cimf.studies.case import Case
from cimf.studies.line_figure import plot_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.studies.teacher_rows import Array, LayerRows, teacher_rows

# Table 3 of the paper: kappa -> column -> speed-up by (warm start, 20 % or 30 % of the data).
PAPER_TABLE_3 = {
    0.1: {"CIFAR-100": (2.2, 9.1), "20News": (1.5, 8.7)},
    0.5: {"CIFAR-100": (2.0, 7.8), "20News": (1.6, 8.4)},
    0.99: {"CIFAR-100": (1.7, 7.5), "20News": (1.7, 7.4)},
}
PAPER_SHARES = {"CIFAR-100": 0.2, "20News": 0.3}


@dataclass(frozen=True)
class TimesPlan:
    """What is timed.

    Attributes
    ----------
    calibration : int
        The first so many samples are all the data.
    shares : tuple of float
        Parts of it: the first so many of these.
    kappas : tuple of float
    repeats : int
    rows : int, optional
        The first so many rows of every layer stand for all of it. Default: all are solved.
    budget : str
        As `cimf.methods.layered.supports.Convex`.
    """

    calibration: int
    repeats: int
    rows: int | None = None
    shares: tuple[float, ...] = tuple(PAPER_SHARES.values())
    kappas: tuple[float, ...] = tuple(PAPER_TABLE_3)
    budget: str = "relative"


class Run(NamedTuple):
    """What a solver did for the rows of one layer."""

    solution: Solution
    iterations: int


def _bisection(warm_start: str) -> Callable[[LayerRows, Array], Run]:
    def run(rows: LayerRows, radii: Array) -> Run:
        found = bisect_rows(rows.gram, radii, weights=rows.weights, warm_start=warm_start)
        return Run(found.solution, int(found.inner.sum()))

    return run


def _exact(rows: LayerRows, radii: Array) -> Run:
    found = solve_rows(rows.gram, radii, weights=rows.weights, method="exact", n_jobs=1)
    return Run(found, int(found.iterations.sum()))


def _cvxpy(rows: LayerRows, radii: Array) -> Run:
    (found,) = solve_path_cvxpy(rows.gram, [radii], weights=rows.weights)
    return Run(found, int(found.iterations.sum()))


COLD = "bisection, no warm start"
SOLVERS: dict[str, Callable[[LayerRows, Array], Run]] = {
    COLD: _bisection("none"),
    "bisection, warm within a row": _bisection("steps"),
    "bisection, warm (Algorithm 2)": _bisection("rows"),
    "exact path": _exact,
    "CVXPY": _cvxpy,
}


def solver_times(
    name: str, folder: Path, load: Callable[[], Case], plan: TimesPlan, overwrite: bool = False
) -> pd.DataFrame:
    """Time every solver on the literal rows of every layer, on all the data and on parts of it.

    One row after another on one thread, compiled code compiled before. Writes times.csv (a row per
    run, with its worst certificate), table.md (medians and quartiles over the repeats) and a
    figure.

    Raises
    ------
    CertificateError
        A solver returned a row without a valid certificate.
    """
    with RunFolder.claim(folder, {"network": name, **asdict(plan)}, overwrite) as run:
        case = loaded(run, load)
        shares = (1.0, *plan.shares)
        data = {share: _problems(case, plan, share) for share in shares}
        for solve in SOLVERS.values():  # compiles
            rows = data[shares[-1]][1][-1].first(1)
            solve(rows, rows.radii(plan.budget, plan.kappas[0]))
        measured: list[dict[str, Any]] = []
        for repeat in range(plan.repeats):
            statistics = {
                share: run.once(f"statistics of {share:g}, repeat {repeat}",
                                partial(_statistics, data[share][0]))
                for share in shares
            }  # fmt: skip
            for kappa in plan.kappas:
                for solver in SOLVERS:
                    for share in shares:  # side by side: the load of a machine changes
                        label = {"solver": solver, "kappa": kappa, "share": share,
                                 "repeat": repeat}  # fmt: skip
                        work = partial(_timed, data[share][1], solver, kappa, plan)
                        found = run.once(", ".join(map(str, label.values())), work)
                        measured.append({**label, **statistics[share], **found})
            log(f"repeat {repeat + 1} of {plan.repeats} done")
        table = pd.DataFrame(measured)
        speed = _speed_ups(table, plan.shares)
        heading, cells = _cells(table, speed, plan)
        few = [k for k, title in enumerate(heading) if "data, iterations" not in title]
        print_table([heading[k] for k in few], [[line[k] for k in few] for line in cells],
                    title=name, left=2)  # fmt: skip
        legend = "".join(f"- {line}\n" for line in (*_paper(plan), *_LEGEND))
        run.finish(
            {
                "times.csv": table.to_csv(index=False),
                "table.csv": speed.to_csv(index=False),
                "table.md": f"# {name}\n\n{markdown(heading, cells)}\n{legend}",
            },
            {"table.png": partial(_draw, name, speed)},
            data=case.data,
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


def _problems(case: Case, plan: TimesPlan, share: float) -> tuple[Task, list[LayerRows]]:
    """Return a share of the data and its row problems."""
    samples = len(case.calibration[: plan.calibration])
    task = case.task(round(share * samples), labelled=False)
    return task, teacher_rows(task)


def _statistics(task: Task) -> dict[str, float]:
    """Return how long the samples take: the network's states and their second moments."""
    start = time.perf_counter()
    teacher_rows(task)
    return {"statistics": time.perf_counter() - start}


def _timed(
    problems: Sequence[LayerRows], solver: str, kappa: float, plan: TimesPlan
) -> dict[str, Any]:
    """Return what a solver needs for all rows; its certificates are not in the seconds."""
    seconds, iterations, gaps, timed = 0.0, 0.0, [], 0
    for every in problems:
        rows = every.first(plan.rows)
        radii = rows.radii(plan.budget, kappa)
        start = time.perf_counter()
        found = SOLVERS[solver](rows, radii)
        needed = time.perf_counter() - start - found.solution.seconds["certify"]
        times = len(every.own) / len(rows.own)
        seconds, iterations = seconds + times * needed, iterations + times * found.iterations
        timed += len(rows.own)
        found.solution.raise_if_failed()
        gaps.append(found.solution.certificate.worst_gap)
    return {
        "solve": seconds, "iterations": iterations, "rows": sum(len(p.own) for p in problems),
        "timed_rows": timed, "worst_gap": max(gaps),
    }  # fmt: skip


def _speed_ups(table: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
    """Return quartiles over the repeats of ratios of runs in the same repeat.

    "warm start" is against the bisection without one, on all the data; a share is against the same
    solver on all the data, with the statistics and without.
    """
    table = table.assign(total=table["statistics"] + table["solve"])
    found = []

    def add(what: str, by: str, before: pd.DataFrame, after: pd.DataFrame) -> None:
        key = ["repeat", "kappa"]
        both = before.merge(after, on=key, suffixes=("_before", "_after"))
        ratio = both[f"{by}_before"] / both[f"{by}_after"]
        for kappa, part in ratio.groupby(both["kappa"]):
            low, middle, high = np.quantile(part, (0.25, 0.5, 0.75))
            solver = after["solver"].iloc[0]
            found.append({"solver": solver, "kappa": kappa, "what": what, "by": by,
                          "median": middle, "lower": low, "upper": high})  # fmt: skip

    def runs(solver: str, share: float) -> pd.DataFrame:
        return table[(table["solver"] == solver) & (table["share"] == share)]

    for solver in SOLVERS:
        add("warm start", "solve", runs(COLD, 1.0), runs(solver, 1.0))
        if solver.startswith("bisection"):  # in the same units
            add("warm start", "iterations", runs(COLD, 1.0), runs(solver, 1.0))
        for share in shares:
            for by in ("total", "solve", "iterations"):
                add(f"{share:.0%} of the data", by, runs(solver, 1.0), runs(solver, share))
    return pd.DataFrame(found)


def _cells(
    table: pd.DataFrame, speed: pd.DataFrame, plan: TimesPlan
) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells, a line per solver and kappa."""
    parts = [f"{part:.0%} of the data" for part in plan.shares]
    columns = [("warm start", "solve", "against cold, time"),
               ("warm start", "iterations", "against cold, iterations")]  # fmt: skip
    for part in parts:
        columns += [(part, "total", f"{part}, time"), (part, "iterations", f"{part}, iterations")]
    heading = ["solver", "kappa", "ms per row", "iterations per row", *(c[2] for c in columns)]
    heading += ["worst gap"]
    keys = [speed[name] for name in ("solver", "kappa", "what", "by")]
    spreads = [speed[name] for name in ("lower", "median", "upper")]
    ratios = dict(zip(zip(*keys, strict=True), zip(*spreads, strict=True), strict=True))
    cells = []
    every = table[table["share"] == 1.0]
    for solver, kappa in product(SOLVERS, plan.kappas):
        runs = every[(every["solver"] == solver) & (every["kappa"] == kappa)]
        each = 1000 * runs["solve"] / runs["rows"]
        line = [solver, shortest(kappa), _spread(*np.quantile(each, (0.25, 0.5, 0.75)))]
        line += [f"{(runs['iterations'] / runs['rows']).median():,.1f}"]
        for what, by, _ in columns:
            key = (solver, kappa, what, by)
            line.append(_spread(*ratios[key]) if key in ratios else "-")
        cells.append([*line, f"{runs['worst_gap'].max():.0e}"])
    return heading, cells


def _spread(low: float, middle: float, high: float) -> str:
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _paper(plan: TimesPlan) -> list[str]:
    """Return the paper's Table 3 in words, at the kappas that are there."""
    lines = []
    for column, part in PAPER_SHARES.items():
        values = ", ".join(
            f"{PAPER_TABLE_3[kappa][column][0]} and {PAPER_TABLE_3[kappa][column][1]} at kappa "
            f"{shortest(kappa)}"
            for kappa in plan.kappas
            if kappa in PAPER_TABLE_3
        )
        lines.append(
            f"the paper's speed-ups (Table 3, {column}) by warm start and by {part:.0%} of the "
            f"data: {values}; the caption says computational speed up, the text that efficiency is "
            "measured in iterations"
        )
    return lines


_LEGEND = (
    "median [quartiles] over the repeats, ratios within a repeat; one thread, one row at a "
    "time; where not all rows of a layer were timed (times.csv), its first ones stand for it",
    "against cold: time of the rows over that of the bisection without warm start; iterations: "
    "passes of coordinate descent (bisection), breakpoints (exact path), those of the interior "
    "point method (CVXPY)",
    "of the data: time of the samples' states and second moments and of the rows, all the data "
    "over the part. The rows see the samples through their moments alone, so that the rows "
    "themselves are no faster; a solver on the samples, as the paper's, has the number of samples "
    "in every iteration",
)


def _draw(name: str, speed: pd.DataFrame, path: Path) -> None:
    """Draw the speed-ups in time against kappa, a line per solver and reason."""
    shown = speed[speed["by"].isin(["solve", "total"])]
    shown = shown[(shown["what"] != "warm start") | shown["solver"].str.startswith("bisection")]
    shown = shown[(shown["by"] == "total") | (shown["what"] == "warm start")]
    lines: Mapping[str, tuple[list[float], list[float]]] = {
        f"{solver}: {what}": (part["kappa"].tolist(), part["median"].tolist())
        for (solver, what), part in shown[shown["solver"] != COLD].groupby(
            ["solver", "what"], sort=False
        )
    }
    plot_lines(path, name, lines, across="kappa", up="speed-up in wall-clock time, median")
