"""Test performance against the share of the training data: the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cimf.runs.numbers import shortest
from cimf.runs.terminal import print_table
from cimf.studies.case import Case
from cimf.studies.compare import OURS, Point, finish, measure
from cimf.studies.kappa_steps import STEPS, claimed, head_of, require_certificates
from cimf.studies.line_figure import plot_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown

# A mean accuracy within this of that with all the data counts as flat.
FLAT = 0.01


@dataclass(frozen=True)
class SharePlan:
    """Which subsets are compared.

    Attributes
    ----------
    shares : tuple of float
        Parts of the training data, 1 among them. With fewer samples than columns the data do not
        determine a row, and the tie-break of `STATISTICS` gives away the network's own weights.
    kappas : tuple of float
    seeds : tuple of int
        Each permutes the training data; its subsets are the first samples of this order, every one
        within the larger ones.
    steps : tuple of str
        Keys of `cimf.studies.kappa_steps.STEPS`.
    data : int, optional
        The first so many training samples are all the data. Default: all.
    tests : int, optional
        The first so many test samples. Default: all.
    """

    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    kappas: tuple[float, ...] = (0.05, 0.1, 0.5, 0.99)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: tuple[str, ...] = ("rescaled", "rescaled, corrected, polished")
    data: int | None = None
    tests: int | None = None


def data_share(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    plan: SharePlan,
    *,
    overwrite: bool = False,
    keep_going: bool = False,
) -> list[dict[str, Any]]:
    """Write accuracy and sparsity of every step, kappa, share and seed, and where they flatten.

    Raises
    ------
    CertificateError, CimfError
        As `cimf.studies.kappa_steps.kappa_steps`.
    """
    with claimed(name, folder, plan, overwrite) as run:
        case = loaded(run, load).with_tests(plan.tests)
        data, head = case.calibration[: plan.data], head_of(case)
        rows, points = [], []
        for seed in plan.seeds:
            order = np.random.default_rng(seed).permutation(len(data))
            part = [
                Point({"step": step, "kappa": kappa, "share": share, "seed": seed}, OURS, None,
                      STEPS[step].options(kappa, head), max(1, round(share * len(data))))
                for share in plan.shares
                for step in plan.steps
                for kappa in plan.kappas
            ]  # fmt: skip
            rows += measure(run, replace(case, calibration=data[order]), part, keep_going)
            points += part
        if not rows:
            require_certificates(rows, points)
        table = pd.DataFrame(rows)
        heading, cells = _cells(table, plan)
        print_table(heading, cells, title=name, left=2)
        text = [f"# {name}\n", markdown(heading, cells), _legend(case, len(data), plan)]
        figures = {
            f"{step.replace(', ', '-')}.png": partial(
                _draw, f"{name}: {step}", _mean(table, step), case.dense
            )
            for step in plan.steps
        }
        finish(run, case, rows, "\n".join(text), figures)
    require_certificates(rows, points)
    return rows


def flat_from(accuracy: Mapping[float, float]) -> float:
    """Return the smallest share from which on the accuracy stays within `FLAT` of that with all.

    Parameters
    ----------
    accuracy : share -> mean accuracy
    """
    found = 1.0
    for share in sorted(accuracy, reverse=True):
        if abs(accuracy[share] - accuracy[1.0]) > FLAT:
            break
        found = share
    return found


def _cells(table: pd.DataFrame, plan: SharePlan) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells, a line per step and kappa: mean and range over the seeds."""
    heading = ["step", "kappa", *(f"{share:.0%}" for share in plan.shares), "flat from"]
    cells = []
    for step in plan.steps:
        for kappa, mean in _mean(table, step).items():
            line = [step, shortest(kappa)]
            own = table[(table["step"] == step) & (table["kappa"] == kappa)]
            for share in plan.shares:
                runs = 100 * own.loc[own["share"] == share, "accuracy"]
                text = f"{runs.mean():.1f} ({runs.min():.1f}-{runs.max():.1f})"
                line.append(text if len(runs) else "-")
            cells.append([*line, f"{flat_from(mean):.0%}" if 1.0 in mean else "-"])
    return heading, cells


def _mean(table: pd.DataFrame, step: str) -> dict[float, dict[float, float]]:
    """Return the mean accuracy of a step over the seeds: kappa -> share -> mean."""
    wide: Any = table[table["step"] == step].pivot_table("accuracy", "share", "kappa", "mean")
    return {kappa: wide[kappa].dropna().to_dict() for kappa in wide.columns}


def _legend(case: Case, samples: int, plan: SharePlan) -> str:
    lines = [
        f"test accuracy in percent: mean (least-largest) over {len(plan.seeds)} seeds; dense "
        f"network {case.dense:.2%} on {len(case.labels):,} test samples",
        f"share: of {samples:,} training samples, without labels; the subsets of a seed are nested",
        f"flat from: the smallest share from which on the mean stays within {100 * FLAT:g} points "
        "of that with all the data. The paper (section 4, Figure 4): around 20 % for CIFAR-100, "
        "approximately 30 % for 20NewsGroup",
    ]
    return "".join(f"- {line}\n" for line in lines)


def _draw(
    name: str, means: Mapping[float, Mapping[float, float]], dense: float, path: Path
) -> None:
    """Draw the mean accuracy against the share, a line per kappa."""
    lines = {
        f"kappa {shortest(kappa)}": (
            [_percent(share) for share in mean],
            [100 * accuracy for accuracy in mean.values()],
        )
        for kappa, mean in means.items()
    }
    plot_lines(
        path, name, lines, across="share of the training data (%)",
        up="test accuracy (%), logarithmic in the error", dense=100 * dense, logarithmic=True,
    )  # fmt: skip


def _percent(share: float) -> float:
    """Return a share as a tick shows it: 5 and 0.5 for 0.05 and 0.005."""
    percent = round(100 * share, 9)
    return int(percent) if percent.is_integer() else percent
