"""All rows of a problem through the front door, certificates included.

    CIMF_DATA=data python -m benchmarks.sweep

Reports the six radii of a sweep in one pass against the largest radius alone, two threads against
one, and the method `torch` on the CPU against `exact`. Needs an idle machine of two cores. Results
go to results/benchmark_sweep.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import threadpoolctl

from benchmarks.problems import PROBLEMS, RowProblems
from benchmarks.row_solvers import first_call
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import print_table
from cimf.solve import solve_path, solve_rows
from cimf.studies.sweep_tables import markdown

# The radii of the paper's Table 1.
SWEEP = (0.005, 0.01, 0.05, 0.1, 0.5, 0.99)


def best_of(repeats: int, function: Callable[[], Any]) -> float:
    """Return the smallest wall clock of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(problem: RowProblems, repeats: int) -> list[str]:
    """Return the cells of one problem."""
    gram = problem.gram
    path = best_of(repeats, lambda: solve_path(gram, SWEEP, n_jobs=1))
    alone = best_of(repeats, lambda: solve_rows(gram, SWEEP[-1], n_jobs=1))
    one = best_of(repeats, lambda: solve_rows(gram, 5.0, n_jobs=1))
    two = best_of(repeats, lambda: solve_rows(gram, 5.0, n_jobs=2))
    batched = best_of(1, lambda: solve_rows(gram, SWEEP[-1], method="torch", n_jobs=1))
    return [
        problem.name, f"{gram.n_features:,}", str(gram.n_targets), f"{alone:.3g}", f"{path:.3g}",
        f"{path / alone:.2f}", f"{one:.3g}", f"{two:.3g}", f"{one / two:.2f}",
        f"{batched / alone:.3g}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_sweep"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    settings = {"problems": options.problem, "repeats": options.repeats, "kappas": SWEEP}
    folder = RunFolder.claim(options.out, settings, options.overwrite)
    compile_seconds = first_call()
    heading = [
        "problem", "columns", "rows", "kappa 0.99 s", "six kappas s", "ratio", "kappa 5 s",
        "two threads s", "speed-up", "torch / exact",
    ]  # fmt: skip
    with threadpoolctl.threadpool_limits(1):
        cells = []
        for name in options.problem:
            design, targets = PROBLEMS[name]()
            every = RowProblems.sample(name, design, targets, targets.shape[1])
            cells.append(measure(every, options.repeats))
    print_table(
        heading, cells, "all rows, with their certificates; one thread but for the speed-up"
    )
    folder.finish({"sweep.md": markdown(heading, cells)}, first_call_seconds=compile_seconds)


if __name__ == "__main__":
    main()
