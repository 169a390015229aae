"""Table 1 of the paper: accuracy and sparsity for every kappa, and what each step is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, KeepGoing, Networks, Overwrite
from experiments.trained_networks import chosen_networks

# Calibration samples, the columns of the paper's table that stand beside, and test samples (all but
# where a cell spends more time on them than on its rows); by network.
_PLANS: dict[str, tuple[int, tuple[str, ...], int | None]] = {
    "digits": (1_000, ("CIFAR-100", "20News"), None),
    "fashion-mlp": (10_000, ("CIFAR-100", "20News"), None),
    "cifar10": (1_000, ("CIFAR-100",), 5_000),
    "cifar100": (1_000, ("CIFAR-100",), 5_000),
    "newsgroups": (1_000, ("20News",), None),
}
_QUICK, _FULL = ("digits",), ("fashion-mlp", "cifar10")


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/table1"
    ),
    full: Full = False,
    network: Networks = None,
    keep_going: KeepGoing = False,
    overwrite: Overwrite = False,
) -> None:
    """Table 1: accuracy and sparsity by kappa; literal, with error correction, with polish."""
    with one_line_errors():
        from cimf.studies.kappa_steps import KappaPlan, kappa_steps

        for key, title, load in chosen_networks(network, _FULL if full else _QUICK, _PLANS):
            plan = KappaPlan(*_PLANS[key])
            kappa_steps(
                f"Table 1, {title}", out / key, load, plan, overwrite=overwrite,
                keep_going=keep_going,
            )  # fmt: skip
