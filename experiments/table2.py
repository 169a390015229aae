"""Table 2 of the paper: structured methods that train beside one-shot methods and fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.gate_runs import Full
from experiments.options import Overwrite
from experiments.trained_networks import NETWORKS


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/table2"
    ),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """SSS, SPR, MLA and gates beside one-shot methods and fine-tuning, at the paper's sparsity."""
    with one_line_errors():
        from cimf.studies.trained_comparison import trained_comparison
        from cimf.train.augment import FlipsAndShifts

        for key in ("cifar10", "cifar100") if full else ("digits",):
            title, load = NETWORKS[key]
            options: dict[str, Any] = {"augment": FlipsAndShifts()} if full else {}
            samples = 2000 if full else None
            trained_comparison(
                f"Table 2, {title}", out / key, load, levels=(0.5, 0.9), options=options,
                calibration=samples, overwrite=overwrite,
            )  # fmt: skip
