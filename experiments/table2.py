"""Table 2 of the paper: structured methods that train beside one-shot methods and fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Networks, Overwrite
from experiments.trained_networks import chosen_networks

# Training images of the methods that train: an epoch over 10,000 takes a ResNet-20 25 s.
SAMPLES = 10_000


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/table2"
    ),
    full: Full = False,
    network: Networks = None,
    overwrite: Overwrite = False,
) -> None:
    """SSS, SPR, MLA and gates beside one-shot methods and fine-tuning, at the paper's sparsity."""
    with one_line_errors():
        from cimf.studies.recovery import Tuning
        from cimf.studies.trained_comparison import Comparison, trained_comparison
        from cimf.train.augment import FlipsAndShifts

        flips: dict[str, Any] = {"augment": FlipsAndShifts()}
        # Half of the epochs after the removal: with two of ten, sss ended at 48 %.
        images = Comparison((0.5, 0.9), {**flips, "epochs": 10}, 5, [
            Tuning("labels", 0.9, True, False, SAMPLES, {**flips, "epochs": 10}),
            Tuning("distillation", 0.9, False, True, SAMPLES, {**flips, "epochs": 10}),
        ], SAMPLES, 2000)  # fmt: skip
        # As in `experiments.resnet20`: the head of CIFAR-10 has 0.2 % of all weights.
        ten = replace(images, keep=("linear",))
        digits = Comparison((0.5, 0.9), {"epochs": 30}, 10, [
            Tuning("labels", 0.9, labels=True, teacher=False),
            Tuning("distillation", 0.9, labels=False, teacher=True),
        ])  # fmt: skip
        plans = {"digits": digits, "cifar10": ten, "cifar100": images}
        default = ("cifar10", "cifar100") if full else ("digits",)
        for key, title, load in chosen_networks(network, default, plans):
            trained_comparison(f"Table 2, {title}", out / key, load, plans[key], overwrite)
