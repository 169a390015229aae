"""The MLP of the paper's Table 1 by the layered method: against baselines at equal non-zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.fashion import SIZES
from experiments.options import (
    Images,
    Levels,
    Methods,
    Overwrite,
    listed_levels,
    listed_methods,
)


def main(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/fashion-layered"),
    images: Images = 10_000,
    methods: Methods = None,
    levels: Levels = "0.6,0.75,0.8,0.9,0.95",
    seed: Annotated[int, typer.Option(help="Seed of initialisation and training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Fashion-MNIST, MLP 784-64-32-16-10, all methods at the same non-zeros."""
    with one_line_errors():
        import torch

        from cimf.data import datasets
        from cimf.studies.case import Case
        from cimf.studies.compare import compare
        from cimf.train.supervised import Schedule, trained_mlp

        schedule = Schedule(epochs=20, learning_rate=5e-3, batch_size=256)

        def load() -> Case:
            data = datasets.fashion_mnist()
            cache = datasets.cache_folder() / "networks"
            net = trained_mlp(SIZES, data, seed=seed, schedule=schedule, cache=cache)
            return Case(
                net,
                torch.from_numpy(data.train_inputs[:images]),
                torch.from_numpy(data.test_inputs),
                torch.from_numpy(data.test_labels),
                data.describe(),
            )

        compare(
            f"Fashion-MNIST, MLP {'-'.join(map(str, SIZES))}, {images:,} calibration images",
            out,
            {"network": SIZES, "calibration": images, "seed": seed},
            load,
            levels=listed_levels(levels),
            methods=listed_methods(methods),
            overwrite=overwrite,
        )
