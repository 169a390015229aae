"""Linear layers as torch CSR matrices against dense ones: latency, and where CSR begins to win.

    python -m benchmarks.csr_latency

Square float32 layers with zeros at random places, sizes, batches and densities as below, dense and
sparse called in turn on a fixed number of threads; the median of each. The break-even density of a
size and a batch is where the two are equally fast. Results go to results/csr_latency.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from cimf.network.export import break_even, linear_latency
from cimf.runs.companions import save_figure
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import out, print_table
from cimf.studies.sweep_tables import markdown

SIZES = (256, 512, 1024, 2048, 4096)
BATCHES = (1, 32, 256)
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
BREAK_EVEN = (
    f"Density below which CSR wins (none: not at {100 * min(DENSITIES):g} % either; all: at "
    f"{100 * max(DENSITIES):g} % as well)"
)


def measure(sizes: list[int], seconds: float) -> pd.DataFrame:
    """Return one row per size, batch and density: seconds of both layers and their ratio."""
    records = []
    for size in sizes:
        for batch in BATCHES:
            latency = linear_latency(size, size, DENSITIES, batch, seconds)
            where = break_even(latency)
            out.print(f"{size} x {size}, batch {batch}: break-even density {_percent(where)}")
            records += [
                {
                    "size": size,
                    "batch": batch,
                    "density": density,
                    "dense_seconds": dense,
                    "sparse_seconds": sparse,
                    "speedup": dense / sparse,
                    "break_even": where,
                }
                for density, (dense, sparse) in latency.items()
            ]
    return pd.DataFrame(records)


def _percent(density: float) -> str:
    if density != density:
        return "none"
    return "all" if density == 1.0 else f"{100 * density:.2g} %"


def break_even_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells: the break-even density of every size and batch."""
    where = table.drop_duplicates(["size", "batch"]).pivot(
        index="size", columns="batch", values="break_even"
    )
    heading = ["size", *(f"batch {batch}" for batch in where.columns)]
    return heading, [[str(size), *map(_percent, row)] for size, row in zip(
        where.index, where.to_numpy(), strict=True)]  # fmt: skip


def latency_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells: dense milliseconds, then CSR milliseconds at every density."""
    heading = ["size", "batch", "dense", *(f"CSR {100 * d:g} %" for d in DENSITIES)]
    cells = []
    for (size, batch), part in table.groupby(["size", "batch"]):
        times = [part["dense_seconds"].median(), *part["sparse_seconds"]]
        cells.append([str(size), str(batch), *(f"{1e3 * value:.3g}" for value in times)])
    return heading, cells


def plot(table: pd.DataFrame, path: Path, title: str) -> None:
    """Write a PNG: dense over CSR time against density, one panel per batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.8), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(BATCHES), sharey=True)
    for panel, batch in zip(panels, BATCHES, strict=True):
        for k, (size, part) in enumerate(table[table["batch"] == batch].groupby("size")):
            panel.plot(100 * part["density"], part["speedup"], marker="os^Dv"[k % 5],
                       markersize=4, color=f"C{k}", label=f"{size} x {size}")  # fmt: skip
        panel.axhline(1.0, color="0.3", linewidth=1.0)
        panel.set(xscale="log", yscale="log", xlabel="density (%)")
        panel.set_title(f"batch {batch}", fontsize=10, loc="left")
        panel.grid(color="0.92", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("dense time / CSR time (above 1: CSR wins)")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.5, help="per size, batch and density")
    parser.add_argument("--out", type=Path, default=Path("results/csr_latency"))
    parser.add_argument("--overwrite", action="store_true", help="replace another run in --out")
    options = parser.parse_args()
    settings = {
        "sizes": options.size, "batches": BATCHES, "densities": DENSITIES, "dtype": "float32",
        "threads": options.threads, "seconds": options.seconds,
    }  # fmt: skip
    folder = RunFolder.claim(options.out, settings, options.overwrite)
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()[0]
    table = measure(options.size, options.seconds)
    even, latency = break_even_cells(table), latency_cells(table)
    words = "one thread" if options.threads == 1 else f"{options.threads} threads"
    title = f"torch CSR against dense linear layers, float32, {words}"
    print_table(*even, title=BREAK_EVEN)
    folder.finish(
        {
            "latency.csv": table.to_csv(index=False),
            "latency.md": (
                f"# {title}\n\n{BREAK_EVEN}:\n\n{markdown(*even)}\n"
                f"Milliseconds per call (median):\n\n{markdown(*latency)}"
            ),
        },
        {"latency.png": partial(plot, table, title=title)},
        load={"before": load_before, "after": os.getloadavg()[0]},
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )


if __name__ == "__main__":
    main()
