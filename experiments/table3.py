"""Table 3 of the paper: what warm starts and partial data save, in time and in iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Overwrite
from experiments.trained_networks import NETWORKS


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/table3"
    ),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """Table 3: speed-up by warm start and by partial data; bisection, exact path, CVXPY."""
    with one_line_errors():
        from cimf.studies.solver_times import TimesPlan, solver_times

        key = "fashion-mlp" if full else "digits"
        plan = TimesPlan(60_000, repeats=5, rows=4) if full else TimesPlan(1_300, repeats=3, rows=8)
        title, load = NETWORKS[key]
        solver_times(f"Table 3, {title}", out / key, load, plan, overwrite)
