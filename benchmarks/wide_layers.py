"""Wide layers: the layered method's rows beside SparseGPT, ALPS and exact OBS, in one run.

    python -m benchmarks.wide_layers            128 to 2,048 columns and rows
    python -m benchmarks.wide_layers --quick    128 and 256, a first look

One layer of correlated ReLU inputs, every contestant at the same non-zeros per row, from the same
damped statistics. Error: squared error of the layer's outputs over their variance, each contestant
with its own coefficients. Seconds of the processor, which other jobs on the machine do not count
into; the contestants take turns, and the best of the repetitions counts. Results go to
results/wide_layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl

from cimf.methods.baselines.alps import alps
from cimf.methods.baselines.sparsegpt import sparsegpt
from cimf.methods.layered import elimination
from cimf.methods.layered.conjugate_gradients import fitted
from cimf.methods.layered.elimination import Matrix, losses
from cimf.methods.layered.supports import cheaper, obs
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import print_table
from cimf.statistics import Gram
from cimf.studies.sweep_tables import markdown

SPARSITIES = (0.5, 0.7, 0.9)
DAMPING = 1e-4
# Coefficients, and the rule that chose their supports.
Found = tuple[Matrix, str]


def layer(n: int, seed: int = 0) -> tuple[Gram, Matrix]:
    """Return statistics and rows of a layer with n inputs and outputs and a bias, 4 n samples.

    Inputs: n factors with variances 1/k, mixed, noise of half their scale, ReLU.
    """
    rng = np.random.default_rng(seed)
    scale = np.arange(1, n + 1) ** -0.5
    factors = rng.standard_normal((4 * n, n)) * (scale / np.sqrt(np.square(scale).sum()))
    inputs = factors @ rng.standard_normal((n, n)) + 0.5 * rng.standard_normal((4 * n, n))
    design = np.column_stack([np.maximum(inputs, 0.0), np.ones(4 * n)])
    rows = np.column_stack([rng.standard_normal((n, n)) / np.sqrt(n), 0.1 * rng.standard_normal(n)])
    return Gram.from_arrays(design, design @ rows.T), rows


def by_sparsegpt(gram: Gram, rows: Matrix, counts: np.ndarray) -> Found:
    """Return SparseGPT's rows, by its own damping."""
    coef = sparsegpt(gram, rows, counts, 1, 1).coef
    assert coef is not None
    return coef, "sparsegpt"


def by_alps(gram: Gram, rows: Matrix, counts: np.ndarray) -> Found:
    """Return ALPS's rows."""
    coef = alps(gram, rows, counts, 1, 1).coef
    assert coef is not None
    return coef, "alps"


def by_obs(gram: Gram, rows: Matrix, counts: np.ndarray) -> Found:
    """Return exact elimination, refitted."""
    mask = obs(gram, rows, counts, 1, 1).mask
    return elimination.polished(gram, mask, 1)[0], "obs"


def by_layered(gram: Gram, rows: Matrix, counts: np.ndarray) -> Found:
    """Return what the layered method makes of the rows."""
    choice = cheaper(gram, rows, counts, 1, 1)
    if choice.rule == "admm":
        return fitted(gram, choice.mask, 1, 1)[0], choice.rule
    mask, _ = elimination.swapped(gram, choice.mask, 1, n_jobs=1)
    return elimination.polished(gram, mask, 1)[0], choice.rule


CONTESTANTS: dict[str, Callable[[Gram, Matrix, np.ndarray], Found]] = {
    "SparseGPT": by_sparsegpt,
    "ALPS": by_alps,
    "OBS": by_obs,
    "layered": by_layered,
}


def compare(n: int, sparsity: float, repeats: int, exact: int) -> list[dict[str, Any]]:
    """Return one record per contestant; OBS only up to `exact` columns."""
    gram, rows = layer(n)
    damped = elimination.damped(gram, rows, DAMPING, 1)
    counts = np.full(n, round((1.0 - sparsity) * n))
    variance = (gram.target_sq - np.square(gram.corr[:, -1]) / gram.n_samples).sum()
    records: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for name, contestant in CONTESTANTS.items():
            if name == "OBS" and n > exact:
                continue
            start, wall = time.process_time(), time.perf_counter()
            coef, rule = contestant(damped, rows, counts)
            seconds, wall = time.process_time() - start, time.perf_counter() - wall
            assert (np.count_nonzero(coef[:, :n], axis=1) <= counts).all()
            best = records.get(name, {"seconds": np.inf, "wall_seconds": np.inf})
            records[name] = {
                "columns": n,
                "sparsity": sparsity,
                "method": name,
                "support": rule,
                "error": float(losses(gram, coef).sum() / variance),
                "seconds": min(seconds, best["seconds"]),
                "wall_seconds": min(wall, best["wall_seconds"]),
            }
    return list(records.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--columns", type=int, nargs="+", default=[128, 256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--exact", type=int, default=256, help="columns up to which OBS runs")
    parser.add_argument("--quick", action="store_true", help="128 and 256 columns, one repetition")
    parser.add_argument("--out", type=Path, default=Path("results/wide_layers"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    if options.quick:
        options.columns, options.repeats = [128, 256], 1
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "overwrite")}
    folder = RunFolder.claim(options.out, settings, options.overwrite)
    heading = ["columns", "zeros", "method", "support", "error", "seconds", "of ALPS"]
    records: list[dict[str, Any]] = []
    cells: list[list[str]] = []
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        compare(32, 0.5, 1, 32)  # the first call compiles
        gram, rows = layer(128)
        by_layered(gram, rows, np.full(128, 12))
        for n in options.columns:
            for sparsity in SPARSITIES:
                found = compare(n, sparsity, options.repeats, options.exact)
                records += found
                folder.write("rows.csv", pd.DataFrame(records).to_csv(index=False))
                peer = next(r["seconds"] for r in found if r["method"] == "ALPS")
                new = [[
                    f"{n:,}", f"{sparsity:.0%}", r["method"], r["support"], f"{r['error']:.4f}",
                    f"{r['seconds']:.3g}", f"{r['seconds'] / peer:.2f}",
                ] for r in found]  # fmt: skip
                cells += new
                print_table(heading, new, f"{n:,} columns and rows, {sparsity:.0%} zeros")
    folder.finish(
        {
            "rows.csv": pd.DataFrame(records).to_csv(index=False),
            "rows.md": markdown(heading, cells),
        },
        threads_used=1,
    )


if __name__ == "__main__":
    main()
