"""ResNet-20 at 60 to 90 % sparsity: the layered method against pruning baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import (
    Images,
    Levels,
    Methods,
    Overwrite,
    Tests,
    listed_levels,
    listed_methods,
)

if TYPE_CHECKING:
    from cimf.data.datasets import Dataset
    from cimf.data.networks import Pretrained
    from cimf.studies.case import Case


def cifar10(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/resnet20"),
    images: Images = 2000,
    tests: Tests = None,
    methods: Methods = None,
    levels: Levels = "0.6,0.75,0.8,0.9",
    overwrite: Overwrite = False,
) -> None:
    """ResNet-20 on CIFAR-10, all methods at the same non-zeros."""
    with one_line_errors():
        from cimf.data import corpora, networks

        _compare("ResNet-20, CIFAR-10", out, corpora.cifar10, networks.resnet20_cifar10,
                 images, tests, methods, levels, overwrite, keep=("linear",))  # fmt: skip


def cifar100(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/resnet20-cifar100"),
    images: Images = 2000,
    tests: Tests = None,
    methods: Methods = None,
    levels: Levels = "0.6,0.75,0.8,0.9",
    overwrite: Overwrite = False,
) -> None:
    """Wide-stem ResNet-20 on CIFAR-100, all methods at the same non-zeros."""
    with one_line_errors():
        from cimf.data import corpora, networks

        _compare("ResNet-20 variant, CIFAR-100", out, corpora.cifar100, networks.resnet20_cifar100,
                 images, tests, methods, levels, overwrite)  # fmt: skip


def task(
    images_of: Callable[[int, int | None], Dataset],
    network: Callable[[], Pretrained],
    images: int,
    tests: int | None,
) -> Case:
    """Return a trained network with its first calibration and test images."""
    import torch

    from cimf.studies.case import Case

    data, trained = images_of(images, tests), network()
    return Case(
        trained.network,
        trained.prepare(data.train_inputs),
        trained.prepare(data.test_inputs),
        torch.from_numpy(data.test_labels),
        data.describe(),
    )


def _compare(
    name: str,
    out: Path,
    images_of: Callable[[int, int | None], Dataset],
    network: Callable[[], Pretrained],
    images: int,
    tests: int | None,
    methods: str | None,
    levels: str,
    overwrite: bool,
    keep: Sequence[str] = (),
) -> None:
    from cimf.studies.compare import compare

    compare(
        f"{name}, {images:,} calibration images",
        out,
        {"network": name, "calibration": images, "tests": tests},
        lambda: task(images_of, network, images, tests),
        levels=listed_levels(levels),
        methods=listed_methods(methods),
        keep=keep,
        overwrite=overwrite,
    )
