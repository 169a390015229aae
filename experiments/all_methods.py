"""Accuracy against sparsity for every method, from the runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Overwrite

_SOURCES = ("resnet20", "table2/cifar10", "recovery/cifar10", "gates/cifar10")


def main(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Finished runs of one network. Default: those of ResNet-20 that are there."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/overview"),
    title: Annotated[str, typer.Option(help="Of the figure.")] = "ResNet-20, CIFAR-10",
    overwrite: Overwrite = False,
) -> None:
    """Accuracy against sparsity for every method, one shot and trained, from finished runs."""
    with one_line_errors():
        from cimf.runs.run_content import MANIFEST
        from cimf.studies.overview import overview

        known = [Path("results") / name for name in _SOURCES]
        sources = folders or [path for path in known if (path / MANIFEST).exists()] or known[:1]
        overview(title, out, sources, overwrite)
