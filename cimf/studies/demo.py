"""The demonstration: both main jobs on data that is embedded in scikit-learn, within a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from cimf.data import datasets
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.path_options import PathOptions
from cimf.runs.companions import save_figure
from cimf.runs.terminal import out
from cimf.studies.case import Case
from cimf.studies.compare import OURS, accuracy_lines, compare
from cimf.studies.kappa_sweep import run_sweep
from cimf.studies.line_figure import draw_lines
from cimf.studies.sweep_figure import draw_sweep
from cimf.train.supervised import Schedule, batches, trained_mlp

SIZES = (64, 32, 16, 10)
SCHEDULE = Schedule(epochs=40, learning_rate=1e-2, batch_size=128)
LEVELS = (0.6, 0.8, 0.9)
METHODS = (OURS, "obs", "magnitude-global")


def run(
    folder: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    options: PathOptions | None = None,
) -> pd.DataFrame:
    """Train an MLP on the digits, prune it at three levels, and sweep kappa.

    Parameters
    ----------
    folder : path
        Receives two results folders, ``prune`` (see `compare`) and ``kappa`` (see `run_sweep`), and
        demo.png, both side by side.
    options : PathOptions, optional
        How the rows of the sweep are solved.

    Returns
    -------
    DataFrame
        The models of the sweep, as `run_sweep`.
    """
    folder, data = Path(folder), datasets.digits()
    name = f"digits, MLP {'-'.join(map(str, SIZES))}"
    settings = {"network": {"sizes": SIZES, **asdict(SCHEDULE)}, "seed": seed}

    @cache
    def network() -> nn.Module:
        return trained_mlp(SIZES, data, seed=seed, schedule=SCHEDULE)

    def case() -> Case:
        return Case(
            network(),
            torch.from_numpy(data.train_inputs),
            torch.from_numpy(data.test_inputs),
            torch.from_numpy(data.test_labels),
            data.describe(),
        )

    def reference() -> Reference:
        return Reference.capture(
            network(),
            batches(data.train_inputs, data.train_labels),
            batches(data.test_inputs, data.test_labels),
        )

    # The sweep first: it refuses options that cannot be right before anything is trained.
    table = run_sweep(
        f"{name}: implicit models",
        folder / "kappa",
        settings,
        reference,
        configurations=(("full", True), ("full", False)),
        paper=True,
        dataset=data,
        overwrite=overwrite,
        options=options,
    )
    pruned = compare(
        f"{name}: the same network, sparse",
        folder / "prune",
        settings,
        case,
        levels=LEVELS,
        methods=METHODS,
        overwrite=overwrite,
    )
    _draw(folder / "demo.png", pruned, table)
    out.print(f"written to {folder}/: prune/, kappa/, demo.png")
    return table


def _draw(path: Path, pruned: Sequence[Mapping[str, Any]], table: pd.DataFrame) -> None:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(13.0, 4.8), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_lines(
        left,
        "cimf.prune: the same network with sparse weights",
        accuracy_lines(METHODS, pruned),
        across="sparsity of all weights (%)",
        up="test accuracy (%), logarithmic in the error",
        dense=100 * float(table["dense_accuracy"].iloc[0]),
        bold=[OURS],
    )
    left.legend(frameon=False, fontsize=8, loc="center left")
    draw_sweep(right, table, "cimf.sparsify: implicit models at the paper's κ")
    save_figure(figure, path)
