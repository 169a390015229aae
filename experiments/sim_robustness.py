"""State-driven implicit modelling: robustness without labels, attacked and certified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Networks, Overwrite
from experiments.trained_networks import NETWORKS, chosen_networks


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/sim-robustness"
    ),
    full: Full = False,
    network: Networks = None,
    overwrite: Overwrite = False,
) -> None:
    """Accuracy against the radius: network, plain balls, sensitivity, adversarial training."""
    with one_line_errors():
        from cimf.studies.robust_curves import Curves, robust_curves

        images = Curves(
            calibration=10_000,
            tests=2_000,
            eps=(0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2),
            balls=(0.5, 0.1, 0.02),
            budgets=(0.5, 0.2, 0.12, 0.06, 0.03),
            trained=0.03,
        )
        digits = Curves(1_000, 500, (0.0, 0.02, 0.05, 0.1), (0.5, 0.1), (0.5, 0.2), 0.05)
        plans = {"digits": digits, "fashion-mlp": images, "fashion-mlp-short": images}
        default = ("fashion-mlp", "fashion-mlp-short") if full else ("digits",)
        for key, title, load in chosen_networks(network, default, plans):
            robust_curves(title, out / key, load, plans[key], overwrite)


def cifar10(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path(
        "results/sim-robustness/cifar10"
    ),
    overwrite: Overwrite = False,
) -> None:
    """ResNet-20 on CIFAR-10: layers of least sensitivity against pruning at the same zeros."""
    with one_line_errors():
        from cimf.studies.robust_curves import LayeredCurves, robust_curves

        title, load = NETWORKS["cifar10"]
        # In units of the normalised inputs: 0.5, 1 and 2 of 255 grey levels, at the mean deviation
        # of the three channels, from which each is within 1.5 %.
        eps = tuple(round(levels / 255 / 0.226, 5) for levels in (0.5, 1.0, 2.0))
        curves = LayeredCurves(2_000, 128, eps, (0.03, 0.001), ("magnitude-layer", "layered"))
        robust_curves(title, out, load, curves, overwrite)
