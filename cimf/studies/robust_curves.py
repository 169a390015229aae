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
from cimf.methods.by_name import prune_task
from cimf.methods.stacked.sparsify import sparsify
from cimf.model import ImplicitModel
from cimf.network.copies import plain_copy
from cimf.network.layers import LayerGraph
from cimf.network.magnitude import MagnitudeNetwork
from cimf.runs.companions import save_figure
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import log, out, print_table
from cimf.studies.case import Case
from cimf.studies.compare import FAST
from cimf.studies.line_figure import draw_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.train.adversarial import train_adversarially

Row = dict[str, Any]
# What makes a model, given the rows of the methods before it.
Maker = Callable[[Sequence[Row]], nn.Module | ImplicitModel]


@dataclass(frozen=True)
class Curves:
    """Models of an MLP: plain balls, sensitivity budgets, adversarial training.

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

    def methods(self, case: Case) -> dict[str, Maker]:
        """Return what makes every model, by name."""
        calibration = list(case.calibration[: self.calibration].split(1000))

        def convex(rows: Sequence[Row], kappa: float, **options: Any) -> ImplicitModel:
            return sparsify(case.network, calibration, kappa, **options).model

        def adversarial(rows: Sequence[Row]) -> nn.Module:
            assert case.train_labels is not None
            return train_adversarially(
                case.network, [(case.calibration, case.train_labels)], self.trained
            )

        return {
            "network": lambda rows: case.network,
            **{
                f"plain ball, kappa {kappa:g}": partial(convex, kappa=kappa, design="causal")
                for kappa in self.balls
            },
            **{
                f"sensitivity, kappa {kappa:g}": partial(
                    convex, kappa=kappa, design="predecessors", loss="sensitivity"
                )
                for kappa in self.budgets
            },
            f"adversarial training, eps {self.trained:g}": adversarial,
        }

    def judge(self, model: nn.Module | ImplicitModel, case: Case, **box: Any) -> pd.DataFrame:
        """Return clean, attacked and certified accuracy, and the mean sensitivity."""
        inputs, labels = case.inputs[: self.tests], case.labels[: self.tests]
        found = robustness(model, inputs, labels, list(self.eps), **box)
        weaker = robustness(
            model, inputs, labels, list(self.eps), "pgd-float32", certify=False, **box
        )
        if isinstance(model, nn.Module):
            model = ImplicitModel.from_network(model, tuple(inputs.shape[1:]), sparse=True)
        mean = float(model.sensitivity().sum()) / model.n_outputs
        return found.assign(sensitivity=mean, attacked_float32=weaker["attacked"])


@dataclass(frozen=True)
class LayeredCurves:
    """Networks that `cimf.prune` makes of one with convolutions: no model with stored matrices.

    Attributes
    ----------
    calibration, tests, eps
        As `Curves`.
    budgets : sequence of float
        kappas of the method "sensitivity".
    others : sequence of str
        Methods at the zeros of the first budget.
    """

    calibration: int
    tests: int
    eps: Sequence[float]
    budgets: Sequence[float]
    others: Sequence[str]

    def methods(self, case: Case) -> dict[str, Maker]:
        """Return what makes every model, by name."""
        task = case.task(self.calibration, labelled=False)
        options = {**FAST, "positions": 64}

        def sensitive(rows: Sequence[Row], kappa: float) -> nn.Module:
            return prune_task(task, None, "sensitivity", kappa=kappa, **options).network

        def other(rows: Sequence[Row], method: str) -> nn.Module:
            dense, least = rows[0]["nonzeros"], rows[-1]["nonzeros"]
            return prune_task(task, 1.0 - least / dense, method, **options).network

        budgets = {
            f"sensitivity, kappa {kappa:g}": partial(sensitive, kappa=kappa)
            for kappa in self.budgets
        }
        others = {f"{name}, as many zeros": partial(other, method=name) for name in self.others}
        first = dict(list(budgets.items())[:1])
        return {"network": lambda rows: case.network, **first, **others, **budgets}

    def judge(self, model: nn.Module, case: Case, **box: Any) -> pd.DataFrame:
        """Return the same, certified by the closed form |dY| <= S |dU|, S of the magnitudes."""
        inputs, labels = case.inputs[: self.tests], case.labels[: self.tests]
        found = robustness(model, inputs, labels, list(self.eps), certify=False, **box)
        graph = LayerGraph(model, inputs[:8])
        moved = torch.from_numpy(MagnitudeNetwork(graph, torch.ones_like(inputs[0])).outputs())
        with torch.no_grad():
            values = plain_copy(model, torch.float64).eval()(inputs.double())
        own = torch.arange(len(labels)), labels
        margin = values[own][:, None] - values
        margin[own] = np.inf
        radius = (margin / (moved[labels][:, None] + moved)).amin(1).numpy()
        certified = [float((radius > eps).mean()) for eps in self.eps]
        mean = float(moved.mean())
        return found.assign(certified=certified, sensitivity=mean, attacked_float32=np.nan)


Compared = Curves | LayeredCurves


def robust_curves(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    curves: Compared,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Judge a network and the models that are made of it.

    Writes curves.csv (a row per method and radius), curves.md, curves.png and the manifest. Every
    method is kept as it ends: the same call continues.
    """
    with RunFolder.claim(folder, {"network": name, **vars(curves)}, overwrite) as run:
        case = loaded(run, load)
        rows: list[Row] = []
        for label, method in curves.methods(case).items():
            make = partial(method, tuple(rows))
            found = run.once(label, partial(_judged, label, make, case, curves))
            rows += [{"method": label, "eps": row["eps"], **row} for row in found]  # the key first
            run.write("curves.csv", pd.DataFrame(rows).to_csv(index=False))
            log(f"{label}: clean {rows[-1]['clean']:.1%}")
        table = pd.DataFrame(rows)
        heading, cells = _cells(table, curves)
        print_table(heading, cells, title=name)
        run.finish(
            {
                "curves.md": f"# {name}: accuracy under perturbation\n\n"
                f"{markdown(heading, cells)}\n\n{_LEGEND}\n{_weaker(table, curves)}"
            },
            {"curves.png": partial(_draw, name, table)},
            data=case.data,
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


_SHARES = ("eps", "clean", "attacked", "certified")
_COLUMNS = (*_SHARES, "attacked_float32")
_LEGEND = (
    "Percent of the test samples. attacked: what PGD-10 on the margin leaves, one start, within "
    "the range of the inputs; certified: proved. mean sensitivity: 1' S 1 / q, |dY| <= S |dU|. "
    "Adversarial training uses all labels; nothing else does."
)


def _judged(label: str, method: Callable[[], Any], case: Case, curves: Compared) -> list[Row]:
    """Return the curve of one method, a row per radius."""
    start = time.perf_counter()
    model = method()
    seconds = time.perf_counter() - start
    found = curves.judge(model, case, box=(float(case.inputs.min()), float(case.inputs.max())))
    if isinstance(model, nn.Module):
        weights = sum(int(torch.count_nonzero(p)) for p in model.parameters() if p.ndim > 1)
    else:
        parts = np.hstack([model.A, model.B]), np.hstack([model.C, model.D])
        weights = sum(int(np.count_nonzero(part[:, :-1])) for part in parts)
    aside = {
        "method": label,
        "labels": "adversarial" in label,
        "sensitivity": float(found["sensitivity"].iloc[0]),
        "nonzeros": weights,
        "seconds": seconds,
    }
    columns = [found[name].tolist() for name in _COLUMNS]
    rows = zip(*columns, strict=True)
    return [{**aside, **dict(zip(_COLUMNS, row, strict=True))} for row in rows]


def _cells(table: pd.DataFrame, curves: Compared) -> tuple[list[str], list[list[str]]]:
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
        size = float(first["sensitivity"])
        line += [f"{size:,.0f}" if size < 1e9 else f"{size:.1e}", f"{first['nonzeros']:,}"]
        cells.append([*line, f"{first['seconds']:.0f}"])
    return heading, cells


def _weaker(table: pd.DataFrame, curves: Compared) -> str:
    """Return what the attack leaves that most published tables have, or nothing."""
    if table["attacked_float32"].isna().all():
        return ""
    radii = [eps for eps in curves.eps if eps > 0]
    cells = [
        [str(label), *(_percent(x) for x in part["attacked_float32"][part["eps"] > 0])]
        for label, part in table.groupby("method", sort=False)
    ]
    return (
        "\nPGD-10 on the cross-entropy in float32, which most published tables have, finds less: "
        "its gradient loses the own class where the network is sure.\n\n"
        f"{markdown(['method', *(f'{eps:g}' for eps in radii)], cells)}\n"
    )


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
