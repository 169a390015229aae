"""Accuracy at equal non-zeros: convex objectives on a layered and on an implicit teacher.

Every objective has one level, a multiplier or a radius, and larger models towards one of its ends.
For every count of non-zeros the level is searched at which a model has just about as many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.path_options import PathOptions
from cimf.runs.folder import RunFolder
from cimf.runs.numbers import shortest
from cimf.runs.terminal import log, out, print_table
from cimf.studies.case import Case
from cimf.studies.compare import FAST, Point, claim, measure
from cimf.studies.convex_objectives import OBJECTIVES, Problem, measured
from cimf.studies.implicit_teacher import TeacherPlan, trained_teacher
from cimf.studies.origin import loaded
from cimf.studies.sparsity_tables import LEGEND, count_cells, draw_curves, unit_cells
from cimf.studies.sweep_tables import markdown

Row = dict[str, Any]

# A search ends where a model has at most a count of non-zeros, and at least this share of it.
_CLOSE = 0.9
# Columns that tell the rows of a table apart.
_ASKED = ("teacher", "objective", "units", "kappa", "level")
# Steps of a search that has not found both sides of a count yet.
_STEP = 4.0


@dataclass(frozen=True)
class Side:
    """A teacher's counts of non-zeros, and where its objectives are looked at first.

    Attributes
    ----------
    design : str
        Of all its models.
    counts : sequence of int
        Weights of (A, B, C, D), or of a pruned network, the bias left out.
    levels : Mapping of str to sequence of float
        A key of `OBJECTIVES` -> levels that are taken first; the search begins with what they
        give. Objectives that are not here are left out.
    middle : sequence of str
        Objectives that are searched at the middle count alone.
    balls : sequence of float
        kappas of the ablation of the units, plain ball.
    penalised : sequence of float
        kappas of the same for the l1 loss at the first of its `levels`, inside the ball.
    pruned : sequence of str
        Methods of `cimf.prune` beside them.
    """

    design: str
    counts: Sequence[int]
    levels: Mapping[str, Sequence[float]]
    middle: Sequence[str] = ()
    balls: Sequence[float] = ()
    penalised: Sequence[float] = ()
    pruned: Sequence[str] = ()


@dataclass(frozen=True)
class SparsityPlan:
    """What is measured.

    Attributes
    ----------
    calibration, tests : int
        The first samples of each.
    tries : int
        Models that the search for one count may make beyond the first levels.
    teacher : TeacherPlan
        Of the implicit teacher.
    layered, implicit : Side
    left_out : str
        What is not measured and why, for the tables.
    """

    calibration: int
    tests: int
    tries: int
    teacher: TeacherPlan
    layered: Side
    implicit: Side
    left_out: str = ""


def sparsity_curves(
    name: str, folder: Path, load: Callable[[], Case], plan: SparsityPlan, overwrite: bool = False
) -> pd.DataFrame:
    """Return a row for every model of every objective, and for the pruned networks.

    Writes sparsity.csv (these rows), units.csv (the ablation), sparsity.md, sparsity.png, the
    trained teacher and the manifest. Every model is kept as it ends: the same call continues.

    Raises
    ------
    CertificateError
        A row that failed its certificate: there is no table of it.
    """
    with claim(folder, {"network": name, **asdict(plan)}, overwrite) as run:
        case = loaded(run, load).with_tests(plan.tests)
        _, implicit = trained_teacher(run, case, plan.teacher)
        teachers = {"layered": case.network, "implicit": implicit}
        tests = [(case.inputs, case.labels)]
        rows: list[Row] = []
        units: list[Row] = []
        dense: dict[str, float] = {}
        for kind, side in (("layered", plan.layered), ("implicit", plan.implicit)):
            batches = list(case.calibration[: plan.calibration].split(1000))
            reference = Reference.capture(teachers[kind], batches, tests)
            assert reference.dense_accuracy is not None
            dense[kind] = reference.dense_accuracy
            search = _Search(run, kind, side, Problem.of(reference, side.design), plan.tries)
            rows += search.rows() + _pruned(run, case, plan, side)
            units += _ablation(run, kind, side, reference)
            run.write("sparsity.csv", _table(rows).to_csv(index=False))
            run.write("units.csv", _table(units).to_csv(index=False))
        table = _table(rows)
        text = [f"# {name}: accuracy at equal non-zeros"]
        for kind, side in (("layered", plan.layered), ("implicit", plan.implicit)):
            head = f"{kind} teacher, {100 * dense[kind]:.1f} % of {len(case.labels):,} test samples"
            for title, (heading, cells) in (
                (head, count_cells(table[table["teacher"] == kind], side.counts, side.pruned)),
                (
                    f"units of the states, {head}",
                    unit_cells([row for row in units if row["teacher"] == kind]),
                ),
            ):
                print_table(heading, cells, title=title)
                text += [f"## {title[0].upper()}{title[1:]}", markdown(heading, cells)]
        text += [LEGEND, plan.left_out]
        run.finish(
            {"sparsity.md": "\n\n".join(part for part in text if part) + "\n"},
            {"sparsity.png": partial(draw_curves, name, table, dense)},
            data=case.data,
            dense_accuracy=dense,
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return the rows as a table, what tells them apart before what was measured."""
    table = pd.DataFrame(rows)
    first = [name for name in _ASKED if name in table]
    return table[[*first, *(name for name in table if name not in first)]]


@dataclass(frozen=True)
class _Search:
    """The models of all objectives from one teacher."""

    run: RunFolder
    kind: str
    side: Side
    problem: Problem
    tries: int
    found: dict[tuple[str, float], Row] = field(default_factory=dict)  # by objective and level

    def rows(self) -> list[Row]:
        """Return a row per model, sparse ones first."""
        for name, levels in self.side.levels.items():
            for level in levels:
                self._measure(name, level)
            counts = sorted(self.side.counts)
            middle = [counts[len(counts) // 2]]
            for count in middle if name in self.side.middle else counts:
                self._near(name, count)
        order = {name: k for k, name in enumerate(self.side.levels)}
        return sorted(
            self.found.values(), key=lambda row: (order[row["objective"]], row["nonzeros"])
        )

    def _near(self, name: str, count: int) -> None:
        """Make models until one is close below the count, or no more may be made."""
        for _ in range(self.tries):
            sign = OBJECTIVES[name].sign
            known = {
                sign * float(np.log(level)): row["nonzeros"]
                for (objective, level), row in self.found.items()
                if objective == name
            }
            if any(_CLOSE * count <= number <= count for number in known.values()):
                return
            # Three digits: a level that can be typed, and the same on every machine.
            self._measure(name, float(f"{np.exp(sign * next_strength(known, count)):.3g}"))

    def _measure(self, name: str, level: float) -> None:
        label = f"{self.kind}, {name}, {OBJECTIVES[name].level} {level:g}"
        row = self.run.once(label, partial(self._row, name, level))
        self.found[name, level] = row
        log(f"{label}: {row['nonzeros']:,} non-zeros, {row['accuracy']:.1%}")

    def _row(self, name: str, level: float) -> Row:
        began = time.perf_counter()
        found = OBJECTIVES[name].solve(self.problem, level)
        aside = {"teacher": self.kind, "objective": name, "level": level}
        return measured(found, **aside, seconds=time.perf_counter() - began)


def next_strength(known: Mapping[float, int], count: int) -> float:
    """Return where to look for a model of about `count` non-zeros next.

    Parameters
    ----------
    known : strength -> non-zeros, one or more
        A strength is the logarithm of a level, its sign such that the non-zeros fall, by and large.
    count : int

    Returns
    -------
    strength : float
        Between the two sides of the count, where the logarithms of the numbers are on a line, but
        in the inner four fifths; one `_STEP` further where only one side is known.
    """
    few = [s for s, number in known.items() if number <= count]
    if not few:
        return max(known) + float(np.log(_STEP))
    right = min(few)
    many = [s for s, number in known.items() if number > count and s < right]
    if not many:
        return right - float(np.log(_STEP))
    left = max(many)
    target = np.sqrt(_CLOSE) * count
    above, below = np.log(known[left] / target), np.log(target / max(known[right], 1))
    share = np.clip(above / (above + below), 0.1, 0.9)
    return float(left + share * (right - left))


def _pruned(run: RunFolder, case: Case, plan: SparsityPlan, side: Side) -> list[Row]:
    """Return the rows of the pruned networks at exactly the counts."""
    dense = sum(p.numel() for p in case.network.parameters() if p.ndim > 1)
    points = [
        Point({"method": method, "count": count}, method, 1.0 - count / dense, FAST,
              plan.calibration)
        for method in side.pruned
        for count in sorted(side.counts)
    ]  # fmt: skip
    return [
        {
            "teacher": "layered",
            "objective": row["method"],
            "level": 1.0 - row["count"] / dense,
            "nonzeros": row["nonzero_weights"],
            "accuracy": row["accuracy"],
            "emptied_rows": row["emptied_rows"],
            "certified": row["certified_rows"],
            "rows": row["solved_rows"],
            "worst_gap": row["worst_gap"],
            "seconds": row["seconds"],
        }
        for row in (measure(run, case, points) if points else [])
    ]


def _ablation(run: RunFolder, kind: str, side: Side, reference: Reference) -> list[Row]:
    """Return the rows of the same balls in other units of the states."""
    choices: tuple[Rescale, ...] = (False, True, "layers")
    penalty = LossOptions(loss="l1", lam=side.levels["l1"][0] if side.penalised else 0.0)
    rows: list[Row] = []
    for rescale in choices:
        problem = Problem.of(reference, side.design, rescale)
        for name, options, kappas in (
            ("plain ball", PathOptions(), side.balls),
            (f"l1, lam {shortest(penalty.lam)}", penalty, side.penalised),
        ):
            for kappa in kappas:
                aside = {"teacher": kind, "objective": name, "units": _UNITS[rescale]}
                label = ", ".join(aside.values()) + f", kappa {kappa:g}"
                rows.append(run.once(label, partial(_unit_row, problem, kappa, options, aside)))
    return rows


def _unit_row(problem: Problem, kappa: float, options: Any, aside: Mapping[str, str]) -> Row:
    return measured(problem.solved(kappa, options), **aside, kappa=kappa)


_UNITS: dict[Rescale, str] = {False: "as captured", True: "Theorem 8", "layers": "by layer"}
