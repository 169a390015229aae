"""Row solvers against every peer, at equal certified accuracy, in one run and one process.

    CIMF_DATA=data python -m benchmarks.row_solvers              everything
    python -m benchmarks.row_solvers --problem digits --rows 4   a first look, no Fashion-MNIST

Every contestant gets the same rows; one thread; compilation and set-up outside the timer (reported
apart); the judge outside the timer. A point outside the ball is scaled into it before its gap is
taken, and its violation is reported. Results go to results/benchmark_rows.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl

from benchmarks.contestants import CONTESTANTS, TARGET, Contestant, Exact, quiet
from benchmarks.floor import floor_seconds
from benchmarks.plot import plot_rows
from benchmarks.problems import KAPPAS, PROBLEMS, RowProblems
from benchmarks.summary import report, table_rows
from cimf.judge import certify
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import out, print_table
from cimf.solve import solve_rows
from formulations.columns import shrink


class TooSlow(Exception):
    """A row exceeded its time."""


@contextmanager
def time_cap(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` after `seconds`; compiled code is interrupted when it returns."""

    def stop(*_: object) -> None:
        raise TooSlow

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def measure(
    contestant: Contestant, problem: RowProblems, kappa: np.ndarray, cap: float, budget: float
) -> tuple[list[float], list[np.ndarray | None]]:
    """Return seconds and coefficients per row: after `cap` seconds the best so far, or None.

    Rows that are not begun within `budget` seconds are left out.
    """
    seconds, coefs = [], []
    spent = 0.0
    for i in range(problem.gram.n_targets):
        contestant.tell(i, float(kappa[i]))
        contestant.best = None
        if spent > budget:
            break
        best, coef = np.inf, None
        repeats = 1
        while repeats:
            start = time.perf_counter()
            try:
                with time_cap(cap):
                    coef = quiet(contestant.solve, i, float(kappa[i]))
            except Exception as error:  # a peer may fail in its own way: no answer, time counted
                if not isinstance(error, TooSlow):
                    out.print(f"{contestant.name}, row {i}: {type(error).__name__}: {error}")
                coef = contestant.best
            elapsed = time.perf_counter() - start
            first = best == np.inf
            best, spent, repeats = min(best, elapsed), spent + elapsed, repeats - 1
            if first and elapsed < 0.05 and coef is not None:
                repeats = 4  # short rows: the best of five
        seconds.append(best)
        coefs.append(coef)
    return seconds, coefs


def judged(
    problem: RowProblems, kappa: np.ndarray, coefs: list[np.ndarray | None]
) -> dict[str, Any]:
    """Return worst gap, worst relative violation, and the rows that reached the accuracy."""
    n, done = problem.gram.n_features, len(coefs)
    raw = np.array([np.full(n, np.nan) if a is None else a for a in coefs])
    norm = np.abs(raw).sum(axis=1)
    violation = np.where(np.isfinite(norm), np.maximum(norm / kappa[:done] - 1.0, 0.0), np.nan)
    finite = np.isfinite(raw).all(axis=1)
    inside = np.where(finite[:, None], raw, np.nan)
    inside[finite] = shrink(raw[finite], np.ones(n), kappa[:done][finite])
    gap = certify(problem.gram.rows(slice(0, done)), inside, kappa[:done]).gap
    return {
        "worst_gap": float(gap.max()),
        "worst_violation": float(np.nanmax(violation, initial=0.0)),
        "reached_rows": int((gap <= TARGET).sum()),
        "reached": bool((gap <= TARGET).all() and done == problem.gram.n_targets),
    }


def compare(
    problem: RowProblems,
    regime: float | str,
    players: list[Contestant],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Run all contestants on one problem and one radius; one record each."""
    kappa = problem.radii(regime)
    ours = solve_rows(problem.gram, kappa, n_jobs=1)
    floor = floor_seconds(problem.gram, ours.coef, kappa)
    in_numpy = floor_seconds(problem.gram, ours.coef, kappa, compiled=False)
    records = []
    for player in players:
        if problem.gram.n_features > player.largest:
            continue
        seconds, coefs = measure(player, problem, kappa, options.cap, options.budget)
        time_of = np.array(seconds)
        records.append(
            {
                "problem": problem.name,
                "columns": problem.gram.n_features,
                "kappa": str(regime),
                "solver": player.name,
                "rows": len(seconds),
                "median_seconds": float(np.median(time_of)),
                "mean_seconds": float(time_of.mean()),
                **judged(problem, kappa, coefs),
                "floor_ratio_median": float(np.median(time_of / floor[: len(seconds)])),
                "floor_ratio_mean": float(time_of.mean() / floor[: len(seconds)].mean()),
                "numpy_floor_ratio_median": float(np.median(time_of / in_numpy[: len(seconds)])),
                "numpy_floor_ratio_mean": float(time_of.mean() / in_numpy[: len(seconds)].mean()),
                "nonzeros_median": float(np.median((ours.coef != 0).sum(axis=1))),
            }
        )
    best = min(
        (r["mean_seconds"] for r in records if r["reached"] and r["solver"] != Exact.name),
        default=np.nan,
    )
    for record in records:
        record["ratio_to_best_peer"] = record["mean_seconds"] / best
    return records


def first_call() -> float:
    """Return the seconds of the first solve of this process: compilation, or loading its cache."""
    start = time.perf_counter()
    problem = RowProblems.sample("warm-up", np.eye(3), np.ones((3, 1)), 1)
    solve_rows(problem.gram, 1.0, n_jobs=1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--kappa", nargs="+", choices=[str(k) for k in KAPPAS], default=None)
    parser.add_argument("--solver", nargs="+", default=None, help="substrings of solver names")
    parser.add_argument("--rows", type=int, default=12, help="rows per problem, evenly spread")
    parser.add_argument("--cap", type=float, default=20.0, help="seconds per row")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds per solver and radius")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_rows"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    regimes = [k for k in KAPPAS if options.kappa is None or str(k) in options.kappa]
    settings = {
        "problems": options.problem, "kappas": [str(k) for k in regimes], "rows": options.rows,
        "cap": options.cap, "budget": options.budget, "solvers": options.solver, "target": TARGET,
    }  # fmt: skip
    everyone = [make() for make in CONTESTANTS]
    wanted = [p for p in everyone if options.solver is None
              or any(word in p.name for word in options.solver)]  # fmt: skip
    players = [p for p in wanted if p.available()]
    if not players:
        parser.error(f"no installed solver has {' or '.join(options.solver)} in its name")
    folder = RunFolder.claim(options.out, settings, options.overwrite)
    missing = [f"{p.name} (package {p.package})" for p in wanted if not p.available()]
    compile_seconds = first_call()
    out.print(f"first call (compiled kernels loaded or compiled): {compile_seconds:.2f} s")
    for name in missing:
        out.print(f"not run, not installed: {name}")
    records: list[dict[str, Any]] = []
    with threadpoolctl.threadpool_limits(1):
        for name in options.problem:
            design, targets = PROBLEMS[name]()
            problem = RowProblems.sample(name, design, targets, options.rows)
            for player in players:
                if problem.gram.n_features > player.largest:
                    missing.append(f"{player.name} on {name} (N = {problem.gram.n_features})")
                    out.print(f"not run: {missing[-1]}")
                    continue
                player.prepare(problem)
                player.cap = options.cap
                with time_cap(300.0):
                    try:  # first calls compile
                        player.tell(0, 0.01)
                        quiet(player.solve, 0, 0.01)
                    except Exception as error:
                        out.print(f"{player.name}: {type(error).__name__}: {error}")
            for regime in regimes:
                found = compare(problem, regime, players, options)
                records += found
                folder.write("rows.csv", pd.DataFrame(records).to_csv(index=False))
                heading, cells = table_rows(found)
                title = f"{name}, N = {problem.gram.n_features}, kappa {regime}"
                print_table(heading[2:], [row[2:] for row in cells], title)
    frame = pd.DataFrame(records)
    folder.finish(
        {
            "rows.csv": frame.to_csv(index=False),
            "rows.md": report(records, missing),
        },
        {"rows.png": partial(plot_rows, frame)},
        first_call_seconds=compile_seconds,
        not_run=missing,
        threads_used=1,
        cpus=os.cpu_count(),
        peers={name: version(name) for name in ("celer", "skglm", "cvxcla") if find_spec(name)},
    )


if __name__ == "__main__":
    main()
