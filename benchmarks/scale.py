"""Many columns: stream the statistics, solve every row, report time and peak memory.

    python -m benchmarks.scale                      16,000 columns, 2,000 rows, 1 % of them non-zero

The design is drawn in batches (0.5^|i - j| correlated columns) and only ever seen by `Gram.update`;
each target is a combination of 1 % of the columns plus noise, and kappa is 0.9 times the l1 norm of
the combination. Results go to results/benchmark_scale.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems import correlated
from benchmarks.row_solvers import first_call
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import print_table, progress_bar
from cimf.solve import solve_rows
from cimf.statistics import Gram
from cimf.studies.sweep_tables import markdown

_BATCH = 2000


def batches(
    truth: NDArray[np.float64], samples: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield design (b, N) and targets (b, r) for coefficients `truth` (r, N)."""
    rng = np.random.default_rng(1)
    for start in range(0, samples, _BATCH):
        size = min(_BATCH, samples - start)
        design = correlated(rng, size, truth.shape[1], 0.5)
        yield design, design @ truth.T + rng.standard_normal((size, len(truth)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--columns", type=int, default=16_000)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument(
        "--density", type=float, default=0.01, help="share of non-zeros in the truth"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="threads")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_scale"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    settings = {
        key: value for key, value in vars(options).items() if key not in ("out", "overwrite")
    }
    folder = RunFolder.claim(options.out, settings, options.overwrite)

    rng = np.random.default_rng(0)
    truth = np.zeros((options.rows, options.columns))
    size = max(1, round(options.density * options.columns))
    for row in truth:
        row[rng.choice(options.columns, size, replace=False)] = rng.standard_normal(size)
    kappa = 0.9 * np.abs(truth).sum(axis=1)

    compile_seconds = first_call()
    start = time.perf_counter()
    gram = Gram(options.columns, options.rows)
    with progress_bar("samples", options.samples) as progress:
        for design, targets in batches(truth, options.samples):
            gram.update(design, targets)
            progress(gram.n_samples)
    streamed = time.perf_counter() - start
    del truth, design, targets
    start = time.perf_counter()
    with progress_bar("rows", options.rows) as progress:
        solution = solve_rows(gram, kappa, n_jobs=options.jobs, progress=progress)
    solved = time.perf_counter() - start
    solution.raise_if_failed()
    record = {
        "columns": options.columns,
        "rows": options.rows,
        "threads": options.jobs,
        "draw and stream s": streamed,
        "solve s": solved,
        "ms per row": 1e3 * solved / options.rows,
        "non-zeros, share": float(np.mean(solution.coef != 0)),
        "worst gap": float(solution.gap.max()),
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    cells = [[f"{v:.3g}" if isinstance(v, float) else f"{v:,}" for v in record.values()]]
    print_table(list(record), cells, "one design, many rows")
    folder.finish(
        {"scale.md": markdown(list(record), cells)},
        measured=record,
        first_call_seconds=compile_seconds,
    )


if __name__ == "__main__":
    main()
