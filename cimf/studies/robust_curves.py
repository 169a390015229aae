"""Accuracy against the size of perturbations for several ways to the same task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cimf.evaluate.robustness import robustness
from cimf.methods.stacked.sparsify import sparsify
from cimf.model import ImplicitModel
from cimf.runs.companions import save_figure
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import log, out, print_table
from cimf.studies.compare import Case
from cimf.studies.line_figure import draw_lines
from cimf.studies.sweep_tables import markdown
from cimf.train.adversarial import train_adversarially


@dataclass(frozen=True)
class Curves:
    """What is compared.

    Attributes
    ----------
    calibration, tests : int
        The first samples of each.
    eps : sequence of float
    balls, budgets : sequence of float
        kappas of the plain ball (design "causal") and of the sensitivity ("predecessors").
    trained : float
        Radius of adversarial training, 10 epochs with all labels.
    """

    calibration: int
    tests: int
    eps: Sequence[float]
    balls: Sequence[float]
    budgets: Sequence[float]
    trained: float


def robust_curves(
    name: str, folder: Path, load: Callable[[], Case], curves: Curves, overwrite: bool = False
) -> pd.DataFrame:
    """Judge the network, plain balls, sensitivity budgets and adversarial training.

    Writes curves.csv (a row per method and radius), curves.md, curves.png and the manifest. Every
    method is kept as it ends: the same call continues.
    """
    with RunFolder.claim(folder, {"network": name, **vars(curves)}, overwrite) as run:
        case = load()
        rows: list[dict[str, Any]] = []
        for label, method in _methods(case, curves).items():
            rows += run.once(label, partial(_judged, label, method, case, curves))
            run.write("curves.csv", pd.DataFrame(rows).to_csv(index=False))
            log(f"{label}: clean {rows[-1]['clean']:.1%}")
        table = pd.DataFrame(rows)
        heading, cells = _cells(table, curves)
        print_table(heading, cells, title=name)
        run.finish(
            {
                "curves.md": f"# {name}: accuracy under perturbation\n\n"
                f"{markdown(heading, cells)}\n\n{_LEGEND}\n"
            },
            {"curves.png": partial(_draw, name, table)},
            data=case.data,
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


_SHARES = ("eps", "clean", "attacked", "certified")
_LEGEND = (
    "Percent of the test samples. attacked: what PGD-10 on the margin leaves, one start, within "
    "the range of the inputs; certified: proved. mean sensitivity: 1' S 1 / q, |dY| <= S |dU|. "
    "Adversarial training uses all labels; nothing else does."
)


def _methods(case: Case, curves: Curves) -> dict[str, Callable[[], nn.Module | ImplicitModel]]:
    """Return what makes every model, by name."""
    calibration = list(case.calibration[: curves.calibration].split(1000))

    def convex(kappa: float, **options: Any) -> ImplicitModel:
        return sparsify(case.network, calibration, kappa, **options).model

    def adversarial() -> nn.Module:
        assert case.train_labels is not None
        return train_adversarially(
            case.network, [(case.calibration, case.train_labels)], curves.trained
        )

    return {
        "network": lambda: case.network,
        **{
            f"plain ball, kappa {kappa:g}": partial(convex, kappa, design="causal")
            for kappa in curves.balls
        },
        **{
            f"sensitivity, kappa {kappa:g}": partial(
                convex, kappa, design="predecessors", loss="sensitivity"
            )
            for kappa in curves.budgets
        },
        f"adversarial training, eps {curves.trained:g}": adversarial,
    }


def _judged(
    label: str, method: Callable[[], Any], case: Case, curves: Curves
) -> list[dict[str, Any]]:
    """Return the curve of one method, a row per radius."""
    start = time.perf_counter()
    model = method()
    seconds = time.perf_counter() - start
    inputs = case.inputs[: curves.tests]
    found = robustness(
        model, inputs, case.labels[: curves.tests], list(curves.eps),
        box=(float(case.inputs.min()), float(case.inputs.max())),
    )  # fmt: skip
    if isinstance(model, nn.Module):
        shape = tuple(inputs.shape[1:])
        sparse = ImplicitModel.from_network(model, shape, sparse=True)
        weights = sum(int(torch.count_nonzero(p)) for p in model.parameters() if p.ndim > 1)
    else:
        sparse = model
        parts = np.hstack([model.A, model.B]), np.hstack([model.C, model.D])
        weights = sum(int(np.count_nonzero(part[:, :-1])) for part in parts)
    aside = {
        "method": label,
        "labels": "adversarial" in label,
        "sensitivity": float(sparse.sensitivity().sum()) / sparse.n_outputs,
        "nonzeros": weights,
        "seconds": seconds,
    }
    columns = [found[name].tolist() for name in _SHARES]
    return [{**aside, **dict(zip(_SHARES, row, strict=True))} for row in zip(*columns, strict=True)]


def _cells(table: pd.DataFrame, curves: Curves) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells: a line per method, attacked and certified per radius."""
    radii = [eps for eps in curves.eps if eps > 0]
    heading = ["method", "clean", *(f"attacked {eps:g}" for eps in radii)]
    heading += [*(f"certified {eps:g}" for eps in radii), "mean sensitivity", "non-zeros", "s"]
    cells = []
    for label, part in table.groupby("method", sort=False):
        by = {kind: dict(zip(part["eps"], part[kind], strict=True)) for kind in _SHARES[2:]}
        first = part.iloc[0]
        line = [f"{label} (labels)" if first["labels"] else str(label), _percent(first["clean"])]
        line += [_percent(by[kind][eps]) for kind in _SHARES[2:] for eps in radii]
        line += [f"{first['sensitivity']:,.0f}", f"{first['nonzeros']:,}"]
        cells.append([*line, f"{first['seconds']:.0f}"])
    return heading, cells


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f}"


def _draw(name: str, table: pd.DataFrame, path: Path) -> None:
    """Draw what attacks left beside what is proved, a line per method in both."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(11.0, 4.5), dpi=160, layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(sides, _SHARES[2:], strict=True):
        lines = {
            str(label): (list(part["eps"]), [100 * share for share in part[kind]])
            for label, part in table.groupby("method", sort=False)
        }
        draw_lines(
            axes, f"{name}: {kind}", lines, across="radius (l-infinity, units of the inputs)",
            up="accuracy, percent" if kind == "attacked" else "",
        )  # fmt: skip
    figure.legend(*sides[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(figure, path)
