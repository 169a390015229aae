"""Constrained L0 gates: whether they meet their target, and how they get there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Networks, Overwrite
from experiments.trained_networks import NETWORKS, chosen_networks

_DENSITIES = (0.1, 0.3, 0.5, 0.7, 0.9)
# `Control` by network.
_PLANS: dict[str, dict[str, Any]] = {
    "digits": {
        "densities": (0.1, 0.5), "seeds": (0,), "searched": (0.5,), "options": {"epochs": 40}
    },
    "fashion-mlp": {
        "densities": _DENSITIES, "seeds": (0, 1, 2), "searched": (0.1, 0.5),
        "options": {"epochs": 20, "batch_size": 256},
    },
    "fashion-lenet": {
        "densities": _DENSITIES, "seeds": (0, 1, 2), "searched": (0.1,),
        "options": {"epochs": 10}, "samples": 10_000,
    },
    "cifar10": {
        "densities": (0.1, 0.2, 0.5), "seeds": (0,), "searched": (),
        "options": {"epochs": 10}, "samples": 10_000,
    },
}  # fmt: skip
_QUICK, _FULL = ("digits",), ("fashion-mlp", "fashion-lenet", "cifar10")


def control(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/gates"
    ),
    full: Full = False,
    network: Networks = None,
    overwrite: Overwrite = False,
) -> None:
    """Gates: density achieved against the target, and the penalised version beside it."""
    with one_line_errors():
        from cimf.studies.gate_control import Control, gate_control
        from cimf.train.augment import FlipsAndShifts

        for key, title, load in chosen_networks(network, _FULL if full else _QUICK, _PLANS):
            fields = _PLANS[key]
            augment = {"augment": FlipsAndShifts()} if key == "cifar10" else {}
            plan = Control(**{**fields, "options": {**fields["options"], **augment}})
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
