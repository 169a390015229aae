"""Rate of `Gram.update` beside this machine's own dgemm, in the same run.

    python -m benchmarks.gram_update

The product M'M of a batch (b, N) counts N^2 b flops: half of a general product, because it is
symmetric. Both rates are medians over alternating repetitions. The batch is float32, as a network
gives it; checking, conversion to float64 and the correlations with the targets are inside the
timer. Results go to results/benchmark_gram.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import threadpoolctl

from cimf.runs.folder import RunFolder
from cimf.runs.terminal import print_table
from cimf.statistics import Gram
from cimf.studies.sweep_tables import markdown


def rates(n_columns: int, n_batch: int, n_targets: int, repeats: int) -> tuple[float, float]:
    """Return the median rates (flop/s) of dgemm and of Gram.update."""
    rng = np.random.default_rng(0)
    design = rng.standard_normal((n_batch, n_columns), dtype=np.float32)
    targets = rng.standard_normal((n_batch, n_targets), dtype=np.float32)
    left, right = rng.standard_normal((2, n_columns, n_columns))
    gram = Gram(n_columns, n_targets).update(design, targets)
    seconds = np.empty((repeats, 2))
    for row in seconds:
        start = time.perf_counter()
        left @ right
        row[0] = time.perf_counter() - start
        start = time.perf_counter()
        gram.update(design, targets)
        row[1] = time.perf_counter() - start
    dgemm, update = np.median(seconds, axis=0)
    flops = n_columns**2 * n_batch + 2 * n_columns * n_targets * n_batch
    return 2 * n_columns**3 / dgemm, flops / update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--targets", type=int, default=100)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_gram"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "overwrite")}
    folder = RunFolder.claim(options.out, settings, options.overwrite)
    heading = ["threads", "columns", "dgemm Gflop/s", "update Gflop/s", "ratio"]
    cells = []
    for threads in options.threads:
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            for n in options.columns:
                dgemm, update = rates(n, options.batch, options.targets, options.repeats)
                cells.append([
                    str(threads), f"{n:,}", f"{dgemm / 1e9:.1f}", f"{update / 1e9:.1f}",
                    f"{update / dgemm:.2f}",
                ])  # fmt: skip
    print_table(heading, cells, f"batches of {options.batch:,} float32 samples")
    folder.finish({"gram.md": markdown(heading, cells)})


if __name__ == "__main__":
    main()
