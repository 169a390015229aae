"""Figures 2 and 3 of the paper: test performance while the bisection runs, by kappa and start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Networks, Overwrite
from experiments.trained_networks import chosen_networks

# Calibration and test samples by network.
_SAMPLES: dict[str, tuple[int, int | None]] = {
    "digits": (1_000, None),
    "fashion-mlp": (10_000, None),
    "cifar10": (1_000, 1_000),
}
_QUICK, _FULL = ("digits",), ("fashion-mlp",)

Out = Annotated[Path, typer.Option(help="Results folder, one below it per network.")]


def figure2(
    out: Out = Path("results/figure2"),
    full: Full = False,
    network: Networks = None,
    overwrite: Overwrite = False,
) -> None:
    """Figure 2: test performance per iteration of the bisection for each kappa."""
    from cimf.studies.sweep_tables import PAPER_TABLE_1

    _curves("Figure 2", out, full, network, overwrite, kappas=tuple(PAPER_TABLE_1))


def figure3(
    out: Out = Path("results/figure3"),
    full: Full = False,
    network: Networks = None,
    overwrite: Overwrite = False,
) -> None:
    """Figure 3: test performance with and without warm start, by outer and inner iterations."""
    _curves("Figure 3", out, full, network, overwrite,
            kappas=(0.1, 0.5, 1.0), warm_starts=("rows", "none"))  # fmt: skip


def _curves(
    name: str, out: Path, full: bool, network: str | None, overwrite: bool, **plan: Any
) -> None:
    with one_line_errors():
        from cimf.studies.bisection_curves import CurvePlan, bisection_curves

        for key, title, load in chosen_networks(network, _FULL if full else _QUICK, _SAMPLES):
            calibration, tests = _SAMPLES[key]
            curves = CurvePlan(calibration, **plan, tests=tests)
            bisection_curves(f"{name}, {title}", out / key, load, curves, overwrite)
