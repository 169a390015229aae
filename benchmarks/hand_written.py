"""`cimf.sweep` beside the loop that one would write in CVXPY: rows, and values of a parameter.

    python -m benchmarks.hand_written

Both problems have N columns, several rows and m > N samples: least squares with l1 and ridge, and
Huber with l1; the weight of l1 takes several values. By hand: one problem with parameters for the
target and the weight, compiled once, solved for every row and value by Clarabel; for least squares
also on the triangular factor of the data. Neither has a certificate; `cimf.sweep` has, by the same
solver at the same tolerance. All in one run, in turns, in one process but where two are named.
Needs an idle machine of two cores. Results go to results/benchmark_hand_written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import threadpoolctl
from numpy.typing import NDArray

import cimf
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import print_table
from cimf.studies.sweep_tables import markdown
from formulations import Relaxed
from formulations.losses import L1, ElasticNet

Array = NDArray[np.float64]

RIDGE = 1.0
TOL = 1e-8  # Clarabel's own, which the loop by hand has


def data(n_columns: int, n_rows: int, n_samples: int) -> tuple[Array, Array, Array]:
    """Return states X (rows, m), inputs U (N - rows, m) and targets Z (rows, m) of sparse rows."""
    rng = np.random.default_rng(0)
    design = np.maximum(rng.normal(size=(n_columns, n_samples)), 0.0)
    rows = rng.normal(size=(n_rows, n_columns)) * (rng.uniform(size=(n_rows, n_columns)) < 0.1)
    targets = rows @ design + 0.5 * rng.normal(size=(n_rows, n_samples))
    return design[:n_rows], design[n_rows:], targets


def by_hand(design: Array, targets: Array, values: Array, huber: bool) -> Callable[[], Array]:
    """Return the loop, whose result is the sums of the rows' objectives at every value."""

    def loop() -> Array:
        a, z = cp.Variable(design.shape[1]), cp.Parameter(design.shape[0])
        mu = cp.Parameter(nonneg=True)
        residual = design @ a - z
        fit = cp.sum(cp.huber(residual)) if huber else cp.sum_squares(residual)
        more = 0.0 if huber else 0.5 * RIDGE * cp.sum_squares(a)
        problem = cp.Problem(cp.Minimize(fit + mu * cp.norm1(a) + more))
        found = np.zeros(len(values))
        for k, mu.value in enumerate(values):
            for z.value in targets.T:
                found[k] += problem.solve(solver=cp.CLARABEL)
        return found

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--columns", type=int, default=200)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--values", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_hand_written"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("columns", "rows", "samples", "values")}
    folder = RunFolder.claim(options.out, {**sizes, "repeats": options.repeats}, options.overwrite)
    X, U, Z = data(options.columns, options.rows, options.samples)
    values = np.geomspace(1.0, 100.0, options.values)
    none, design = np.zeros((0, options.samples)), np.vstack([X, U]).T
    factor = np.asarray(np.linalg.qr(np.column_stack([design, Z.T]), mode="r"))
    factor = factor[: options.columns]
    mu, n = cp.Parameter(nonneg=True), options.columns
    squares = Relaxed(X, U, Z, none, kappa=None, loss=L1() * mu + ElasticNet(0.0, RIDGE))
    huber = Relaxed(X, U, Z, none, kappa=None, loss=L1() * mu, fit="huber")
    cells = []
    with threadpoolctl.threadpool_limits(1):
        cells += measured("l1 + ridge", {
            "by hand": by_hand(design, Z.T, values, False),
            "by hand, on the factor": by_hand(factor[:, :n], factor[:, n:], values, False),
            **swept(squares, mu, values),
        }, options.repeats)  # fmt: skip
        cells += measured("Huber + l1", {
            "by hand": by_hand(design, Z.T, values, True), **swept(huber, mu, values),
        }, options.repeats)  # fmt: skip
    heading = ["problem", "who", "s per value", "by hand", "largest gap"]
    for row in cells:
        row[2] = f"{float(row[2]) / options.values:.3g}"
    print_table(heading, cells, f"{sizes}")
    folder.finish({"hand_written.md": markdown(heading, cells)})


def swept(problem: Relaxed, mu: cp.Parameter, values: Array) -> dict[str, Callable[[], Any]]:
    """Return `cimf.sweep` in one process and in two."""

    def run(n_jobs: int) -> Any:
        return cimf.sweep(problem, mu, values, backend="clarabel", tol=TOL, n_jobs=n_jobs)

    return {"cimf.sweep": lambda: run(1), "cimf.sweep, two processes": lambda: run(2)}


def measured(name: str, contestants: dict[str, Callable[[], Any]], repeats: int) -> list[list[str]]:
    """Return the cells of one problem: the best of each in turns, beside the first."""
    times: dict[str, float] = dict.fromkeys(contestants, np.inf)
    gaps: dict[str, str] = dict.fromkeys(contestants, "-")
    for _ in range(repeats):
        for who, run in contestants.items():
            start = time.perf_counter()
            found = run()
            times[who] = min(times[who], time.perf_counter() - start)
            if not isinstance(found, np.ndarray):
                gaps[who] = f"{max(solution.raise_if_failed().gap for solution in found):.1e}"
    first = next(iter(times.values()))
    return [
        [name, who, repr(seconds), f"{seconds / first:.2f}", gaps[who]]
        for who, seconds in times.items()
    ]


if __name__ == "__main__":
    main()
