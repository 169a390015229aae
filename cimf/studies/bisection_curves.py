"""Test performance while the paper's Algorithm 2 bisects: its Figures 2 and 3."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cimf.methods.base import Task
from cimf.runs.folder import RunFolder
from cimf.runs.numbers import shortest
from cimf.runs.terminal import log, out, print_table
from cimf.solve.bisection.algorithms import EPSILON, Trace, bisect_rows
from cimf.studies.case import Case, share
from cimf.studies.line_figure import plot_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.studies.teacher_rows import Array, LayerRows, network_of, teacher_rows

# Accuracy that differs by less from that of the solution counts as reached.
SETTLED = 0.005


@dataclass(frozen=True)
class CurvePlan:
    """Which bisections are followed.

    Attributes
    ----------
    calibration : int
        The first so many samples.
    kappas : tuple of float
    warm_starts : tuple of str
        As `bisect_rows`; "rows" is Algorithm 2.
    budget : str
        As `cimf.methods.layered.supports.Convex`.
    epsilon : float
        Length of the interval of lam that ends a bisection, over its first length.
    tests : int, optional
        The first so many test samples; default: all.
    """

    calibration: int
    kappas: tuple[float, ...]
    warm_starts: tuple[str, ...] = ("rows",)
    budget: str = "relative"
    epsilon: float = EPSILON
    tests: int | None = None


_WORDS = {"rows": "warm start", "steps": "warm start within a row", "none": "no warm start"}


def bisection_curves(
    name: str, folder: Path, load: Callable[[], Case], plan: CurvePlan, overwrite: bool = False
) -> pd.DataFrame:
    """Follow the bisection of all rows at once, iteration by iteration, on the test samples.

    At iteration t every row has the solution of its t-th Q(lam), or its last one; the last layer is
    the network's own, its least squares on these states. Writes curves.csv, curves.md, figures
    against iterations and, with several warm starts, against inner iterations.

    Raises
    ------
    CertificateError
        A row whose bisection did not end in a certified solution.
    """
    with RunFolder.claim(folder, {"network": name, **asdict(plan)}, overwrite) as run:
        case = loaded(run, load).with_tests(plan.tests)
        task = case.task(plan.calibration, labelled=False)
        problems: list[LayerRows] = []
        ends = []
        for kappa in plan.kappas:
            for warm_start in plan.warm_starts:
                key = f"kappa {shortest(kappa)}, {_WORDS[warm_start]}"

                def work(kappa: float = kappa, warm_start: str = warm_start) -> dict[str, Any]:
                    problems[:] = problems or teacher_rows(task)
                    return _followed(case, task, problems, plan, kappa, warm_start)

                end = {"kappa": kappa, "warm_start": warm_start, **run.once(key, work)}
                ends.append(end)
                log(f"{key}: {end['accuracy']:.2%} after {len(end['curve'])} iterations")
        table = pd.DataFrame([
            {"kappa": end["kappa"], "warm_start": end["warm_start"], **step}
            for end in ends
            for step in end["curve"]
        ])  # fmt: skip
        heading, cells = _cells(ends)
        print_table(heading, cells, title=name, left=2)
        run.finish(
            {
                "curves.csv": table.to_csv(index=False),
                "curves.md": f"# {name}\n\n{markdown(heading, cells)}\n{_legend(case, plan)}",
            },
            _figures(name, table, plan, case.dense),
            data=case.data,
            dense_accuracy=case.dense,
            seconds={f"{e['kappa']:g}, {e['warm_start']}": e["seconds"] for e in ends},
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


def _followed(
    case: Case,
    task: Task,
    problems: Sequence[LayerRows],
    plan: CurvePlan,
    kappa: float,
    warm_start: str,
) -> dict[str, Any]:
    """Return the curve of one bisection, and where it ends."""
    start = time.perf_counter()
    found = [
        bisect_rows(
            rows.gram, rows.radii(plan.budget, kappa), weights=rows.weights, epsilon=plan.epsilon,
            warm_start=warm_start, trace=True,
        )
        for rows in problems
    ]  # fmt: skip
    seconds = time.perf_counter() - start
    for one in found:
        one.solution.raise_if_failed()
    traces = [one.trace for one in found if one.trace is not None]

    def judged(coef: Sequence[Array]) -> dict[str, Any]:
        right = case.classes(network_of(task, problems, coef)) == case.labels
        kept = (int(np.count_nonzero(a * p.weights)) for a, p in zip(coef, problems, strict=True))
        return {"accuracy": share(right), "nonzero_weights": sum(kept)}

    curve: list[dict[str, Any]] = []
    for t in range(max(int(one.steps.max(initial=0)) for one in found)):
        coef = [_iterate(trace, len(rows.own), t)
                for trace, rows in zip(traces, problems, strict=True)]  # fmt: skip
        passes = sum(int(trace.inner[trace.step <= t].sum()) for trace in traces)
        curve.append({"iteration": t + 1, "passes": passes, **judged(coef)})
    end = judged([one.solution.coef for one in found])
    return {
        "curve": curve, **end, "seconds": seconds, "rows": sum(len(p.own) for p in problems),
        "worst_gap": max(one.solution.certificate.worst_gap for one in found),
        "handed_over": sum(int((one.solution.method == "exact").sum()) for one in found),
    }  # fmt: skip


def _iterate(trace: Trace, n_rows: int, t: int) -> Array:
    """Return the solution of step t of every row, its last one where it has ended, (r, N').

    A row without a step (its ball holds zero alone) is zero.
    """
    first = np.searchsorted(trace.row, np.arange(n_rows + 1))
    at = np.minimum(first[:-1] + t, first[1:] - 1)
    coef = np.zeros((n_rows, trace.coef.shape[1]))
    there = first[1:] > first[:-1]
    coef[there] = trace.coef[at[there]].toarray()
    return coef


def _cells(ends: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells, a line per bisection."""
    heading = ["kappa", "start", "accuracy %", "iterations", "settled at", "inner iterations",
               "settled at", "handed over", "worst gap"]  # fmt: skip
    cells = []
    for end in ends:
        settled = _settled(end)
        cells.append([
            shortest(end["kappa"]), _WORDS[end["warm_start"]], f"{100 * end['accuracy']:.2f}",
            str(len(end["curve"])), f"{settled['iteration']}" if settled else "-",
            f"{end['curve'][-1]['passes']:,}" if end["curve"] else "0",
            f"{settled['passes']:,}" if settled else "-",
            f"{end['handed_over']} of {end['rows']}", f"{end['worst_gap']:.0e}",
        ])  # fmt: skip
    return heading, cells


def _settled(end: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the first step from which on the accuracy is that of the solution."""
    settled = None
    for step in reversed(end["curve"]):
        if abs(step["accuracy"] - end["accuracy"]) > SETTLED:
            break
        settled = step
    return settled


def _legend(case: Case, plan: CurvePlan) -> str:
    own = " times the l1 norm of the network's own row" if plan.budget == "relative" else ""
    lines = [
        f"dense network {case.dense:.2%}; the literal problem per layer on the states of the "
        f"network, the l1 norm of every row at most kappa{own}",
        "accuracy: of the certified solution, which the exact segment step computes from the last "
        f"iteration; settled: from there on within {100 * SETTLED:g} points of it",
        f"iterations: of the bisection, to {plan.epsilon:g} of the first interval of lam; inner: "
        "passes of coordinate descent over the columns, over all rows",
        "handed over: rows that the exact method ended, as those with an inactive ball",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _figures(
    name: str, table: pd.DataFrame, plan: CurvePlan, dense: float
) -> dict[str, Callable[[Path], None]]:
    """Return the figures by name: against iterations, and inner ones where starts differ."""
    across = {"iteration": "iteration of the bisection"}
    if len(plan.warm_starts) > 1:
        across["passes"] = "inner iterations over all rows"
    parts = {
        f"kappa {shortest(kappa)}" + (f", {_WORDS[warm]}" if "passes" in across else ""): table[
            (table["kappa"] == kappa) & (table["warm_start"] == warm)
        ]
        for kappa in plan.kappas
        for warm in plan.warm_starts
    }
    return {
        f"{key}.png": partial(
            plot_lines,
            title=name,
            lines={
                label: (part[key].tolist(), (100 * part["accuracy"]).tolist())
                for label, part in parts.items()
            },
            across=axis,
            up="test accuracy (%), logarithmic in the error",
            dense=100 * dense,
        )
        for key, axis in across.items()
    }
