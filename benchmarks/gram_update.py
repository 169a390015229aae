"""Rate of `Gram.update` beside this machine's own dgemm, in the same run.

    python -m benchmarks.gram_update

The product M'M of a batch (b, N) counts N^2 b flops: half of a general product, because it is
symmetric. Both rates are medians over alternating repetitions. The batch is float32, as a network
gives it; checking, conversion to float64 and the correlations with the targets are inside the
timer.
"""

import argparse
import os
import time

import numpy as np
import threadpoolctl

from cimf.statistics import Gram


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
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    pools = threadpoolctl.threadpool_info()
    threads = max(p["num_threads"] for p in pools if p["user_api"] == "blas")
    print(f"{os.cpu_count()} cores, {threads} BLAS threads, batch {options.batch} float32")
    print("columns   dgemm Gflop/s   update Gflop/s   ratio")
    for n in options.columns:
        dgemm, update = rates(n, options.batch, options.targets, options.repeats)
        print(f"{n:7d} {dgemm / 1e9:15.1f} {update / 1e9:16.1f} {update / dgemm:7.2f}")


if __name__ == "__main__":
    main()
