"""The paper's Table 1 on Fashion-MNIST: MLP 784-64-32-16-10, 10,000 calibration images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors

SIZES = (784, 64, 32, 16, 10)
CALIBRATION = 10_000
CONFIGURATIONS = (("full", True), ("causal", True), ("full", False), ("causal", False))


def main(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/fashion"),
    seed: Annotated[int, typer.Option(help="Seed of initialisation and training.")] = 0,
    n_jobs: Annotated[int | None, typer.Option(help="Processes or threads for the rows.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another run in --out.")
    ] = False,
) -> None:
    """Sweep kappa for two row designs, with and without rescaled states."""
    with one_line_errors():
        from cimf.data import datasets
        from cimf.methods.stacked.captured import Reference
        from cimf.methods.stacked.sparsify import PathOptions
        from cimf.studies.kappa_sweep import run_sweep
        from cimf.train.supervised import Schedule, batches, trained_mlp

        data = datasets.fashion_mnist()
        schedule = Schedule(epochs=20, learning_rate=5e-3, batch_size=256)

        def network() -> Reference:
            cache = datasets.cache_folder() / "networks"
            net = trained_mlp(SIZES, data, seed=seed, schedule=schedule, cache=cache)
            return Reference.capture(
                net,
                batches(data.train_inputs[:CALIBRATION], data.train_labels[:CALIBRATION]),
                batches(data.test_inputs, data.test_labels),
            )

        run_sweep(
            f"Fashion-MNIST, MLP {'-'.join(map(str, SIZES))}, {CALIBRATION:,} calibration images",
            out,
            {
                "network": {"sizes": SIZES, **asdict(schedule)},
                "calibration": CALIBRATION,
                "seed": seed,
            },
            network,
            configurations=CONFIGURATIONS,
            overwrite=overwrite,
            paper=True,
            dataset=data,
            options=PathOptions(n_jobs=n_jobs),
        )
