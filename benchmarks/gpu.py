"""The batched method on a GPU against the exact method on two CPU threads, same certificates.

    python -m benchmarks.gpu                        N = 4,096 columns, 4,096 rows

The design has 0.5^|i - j| correlated columns; each target is a combination of 2 % of them plus
noise, and kappa is 0.9 times the l1 norm of the combination. Prints a table; needs a CUDA device.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.problems import correlated
from cimf.runs.terminal import out, print_table
from cimf.solve import solve_rows
from cimf.statistics import Gram


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: method 'torch' would run on the CPU")
    rng = np.random.default_rng(0)
    n, r = options.columns, options.rows
    design = correlated(rng, 2 * n, n, 0.5)
    truth = rng.standard_normal((r, n)) * (rng.random((r, n)) < 0.02)
    gram = Gram.from_arrays(design, design @ truth.T + rng.standard_normal((2 * n, r)))
    kappa = 0.9 * np.abs(truth).sum(axis=1)

    cells = []
    best: dict[str, float] = {}
    for method, jobs in (("exact", 2), ("torch", None)):
        for _ in range(options.repeats):
            start = time.perf_counter()
            solution = solve_rows(gram, kappa, method=method, n_jobs=jobs)
            seconds = time.perf_counter() - start
            best[method] = min(best.get(method, np.inf), seconds)
        own = float(np.mean(solution.method == method))
        cells.append([
            method, f"{best[method]:.2f}", f"{best['exact'] / best[method]:.1f}",
            f"{solution.gap.max():.1e}", f"{(solution.status == 'optimal').mean():.2%}",
            f"{own:.2%}",
        ])  # fmt: skip
    out.print(torch.cuda.get_device_name())
    heading = ["method", "seconds", "times exact", "worst gap", "certified", "rows by the method"]
    print_table(heading, cells, f"{r:,} rows, N = {n:,}; exact: two CPU threads")


if __name__ == "__main__":
    main()
