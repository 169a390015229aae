"""What training gives back to one-shot sparse networks, their zeros held."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Networks, Overwrite
from experiments.trained_networks import chosen_networks


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/recovery"
    ),
    full: Full = False,
    network: Networks = None,
    overwrite: Overwrite = False,
) -> None:
    """90 % of all weights zero: trained on with labels, or by the dense network's answers alone."""
    with one_line_errors():
        from cimf.studies.recovery import Tuning, recovery
        from cimf.train.augment import FlipsAndShifts

        # Peak learning rate and decay as usual for residual networks on CIFAR; temperature and
        # share of the labels as usual for distillation (Hinton, Vinyals and Dean 2015); epochs as
        # many as an hour, and a quarter of one, are long enough for on two cores.
        sgd: dict[str, Any] = {
            "augment": FlipsAndShifts(), "optimizer": "sgd", "learning_rate": 0.05,
            "weight_decay": 1e-4, "temperature": 4.0,
        }  # fmt: skip
        images = [
            Tuning("labels and teacher", 0.9, labels=True, teacher=True,
                   options={**sgd, "epochs": 20, "label_weight": 0.5}),
            Tuning("distillation", 0.9, False, True, 10_000, {**sgd, "epochs": 25}),
        ]  # fmt: skip
        digits = [
            Tuning("labels and teacher", 0.9, True, True,
                   options={"epochs": 30, "label_weight": 0.5}),
            Tuning("distillation", 0.9, False, True, options={"epochs": 30}),
        ]  # fmt: skip
        plans = {"digits": digits, "cifar10": images, "cifar100": images}
        default = ("cifar10", "cifar100") if full else ("digits",)
        for key, title, load in chosen_networks(network, default, plans):
            samples = None if key == "digits" else 2000
            recovery(f"recovery, {title}", out / key, load, plans[key], samples, overwrite)
