"""State-driven implicit modelling of an implicit teacher, beside training by gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Overwrite
from experiments.trained_networks import NETWORKS

if TYPE_CHECKING:
    from cimf.studies.implicit_teacher import TeacherPlan


def teacher_plan(full: bool) -> TeacherPlan:
    """Return what is trained on Fashion-MNIST, or on the digits."""
    from cimf.studies.implicit_teacher import TeacherPlan

    if full:
        return TeacherPlan(64, 0.95, (0.02, 0.1, 0.5), 10_000, 6, 2, 1e-2, 512)
    return TeacherPlan(32, 0.95, (0.1, 0.3, 0.99), 1_000, 30, 10, 1e-2)


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per data set.")] = Path(
        "results/sim-teacher"
    ),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """Train an implicit teacher from nothing, match it by convex rows, and tune what comes out."""
    with one_line_errors():
        from cimf.studies.implicit_teacher import implicit_teacher

        key = "fashion-mlp" if full else "digits"
        _, load = NETWORKS[key]
        plan = teacher_plan(full)
        name = "Fashion-MNIST" if full else "digits"
        implicit_teacher(
            f"implicit teacher, {plan.states} states, {name}", out / key, load, plan, overwrite
        )
