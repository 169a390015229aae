"""Constrained L0 gates: whether they meet their target, and how they get there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Overwrite
from experiments.trained_networks import NETWORKS

Full = Annotated[
    bool,
    typer.Option("--full/--quick", help="Fashion-MNIST and CIFAR-10, hours; or digits, minutes."),
]

_DENSITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
# From the published settings (`GatesOptions`); the pretrained ResNet-20 has targets of its own.
_FULL: dict[str, tuple[tuple[float, ...], tuple[int, ...], dict[str, Any]]] = {
    "fashion-mlp": (_DENSITIES, (0, 1, 2), {"epochs": 30}),
    "fashion-lenet": (_DENSITIES, (0, 1, 2), {"epochs": 20}),
    "cifar10": ((0.1, 0.2, 0.5), (0,), {"epochs": 20}),
}
_QUICK = {"digits": ((0.1, 0.3, 0.5), (0,), {"epochs": 40})}


def control(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/gates"
    ),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """Gates: density achieved against the target, and the penalised version beside it."""
    with one_line_errors():
        from cimf.studies.gate_control import Control, gate_control
        from cimf.train.augment import FlipsAndShifts

        for key, (densities, seeds, options) in (_FULL if full else _QUICK).items():
            title, load = NETWORKS[key]
            augment = {"augment": FlipsAndShifts()} if key == "cifar10" else {}
            plan = Control(densities, seeds, {**options, **augment})
            gate_control(f"gates, {title}", out / key, load, plan, overwrite)


def dynamics(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/gates-dynamics"),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """Gates: density and multiplier epoch by epoch, with and without dual restarts."""
    with one_line_errors():
        from cimf.studies.gate_control import gate_dynamics

        title, load = NETWORKS["fashion-mlp" if full else "digits"]
        epochs = 30 if full else 40
        gate_dynamics(f"gates, {title}", out, load, 0.3, {"epochs": epochs}, overwrite)
