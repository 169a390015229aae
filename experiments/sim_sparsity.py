"""State-driven implicit modelling: what each convex objective gives at equal non-zeros.

With --full one cone program of a row with 784 inputs takes 1.4 s (l1) to 2.1 s (perspective) on an
idle core and 28 s on one that four processes share: the losses that need one, perspective, groups
and row sums, are compared on the digits alone. So is the sensitivity of the implicit teacher, whose
feedback takes many rounds (more than three minutes for one model on a busy machine).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Full, Overwrite
from experiments.trained_networks import NETWORKS

_LEFT_OUT = (
    "Left out, for their time: the losses that need cone programs (perspective, groups, row sums), "
    "of rows with 784 inputs; the sensitivity of the implicit teacher, whose feedback takes many "
    "rounds. The digits have them all."
)


def main(
    out: Annotated[Path, typer.Option(help="Results folder, one below it per network.")] = Path(
        "results/sim-sparsity"
    ),
    full: Full = False,
    overwrite: Overwrite = False,
) -> None:
    """Accuracy at equal non-zeros, from a layered and an implicit teacher; units of the states."""
    with one_line_errors():
        import joblib

        from cimf.studies.sparsity_curves import Side, SparsityPlan, sparsity_curves
        from experiments.sim_teacher import teacher_plan

        key = "fashion-mlp" if full else "digits"
        title, load = NETWORKS[key]
        pruned = ("magnitude-layer", "obs", "layered")
        plan = (
            SparsityPlan(
                calibration=10_000,
                tests=2_000,
                tries=2,
                teacher=teacher_plan(full),
                layered=Side(
                    "predecessors",
                    (5_000, 10_000, 20_000),
                    {"plain ball": (0.15, 0.26, 0.46), "l1": (2.0, 6.9, 0.4),
                     "sensitivity": (0.05, 0.0111, 0.0047)},
                    balls=(0.99, 0.5, 0.1), pruned=pruned,
                ),
                implicit=Side(
                    "full",
                    (4_000, 8_000, 16_000),
                    {"plain ball": (0.01, 0.005), "l1": (0.18, 0.4, 0.05)},
                    balls=(0.99, 0.5, 0.1),
                ),
                left_out=_LEFT_OUT,
            )
            if full
            else SparsityPlan(
                calibration=1_000,
                tests=500,
                tries=2,
                teacher=teacher_plan(full),
                layered=Side(
                    "predecessors",
                    (1_500, 2_500, 4_000),
                    {"plain ball": (0.119, 0.314, 0.533), "l1": (0.651, 2.0, 0.074),
                     "sensitivity": (0.2, 0.102, 0.446), "perspective": (1.0, 3.1, 0.173),
                     "row sums": (40.0, 160.0, 5.38), "group columns": (13.9, 40.2, 2.36),
                     "group rows": (38.4, 42.7, 25.1)},
                    balls=(0.99, 0.5, 0.1), penalised=(0.5,), pruned=pruned,
                ),
                implicit=Side(
                    "full",
                    (750, 1_300, 2_000),
                    {"plain ball": (0.042, 0.0173, 0.2), "l1": (0.025, 0.157, 0.00156),
                     "sensitivity": (0.0498, 0.025, 0.0922), "perspective": (0.025, 0.157, 0.002),
                     "row sums": (2.24, 9.58, 0.188), "group columns": (0.6, 2.4, 0.0375),
                     "group rows": (4.1, 5.0, 3.67)},
                    ("sensitivity",),
                    balls=(0.99, 0.5, 0.1), penalised=(0.5,),
                ),
            )
        )  # fmt: skip
        with joblib.parallel_config(n_jobs=-1):
            sparsity_curves(title, out / key, load, plan, overwrite)
