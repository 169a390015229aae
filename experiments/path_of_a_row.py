"""The solution path of one row of a network's implicit model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Overwrite
from experiments.trained_networks import NETWORKS


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/row-path"
    ),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """One row from kappa 0 on: coefficients, multiplier, misfit, every point certified."""
    with one_line_errors():
        from cimf.studies.row_path import row_path

        key = "fashion-mlp" if full else "digits"
        title, load = NETWORKS[key]
        row_path(title, out / key, load, 101, 10_000 if full else None, overwrite)
