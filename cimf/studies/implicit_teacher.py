"""An implicit teacher trained from nothing, and sparse models of it: convex rows against gradients.

The promise of state-driven implicit modelling is that rows are solved without backward passes; the
wall clock of both ways to a sparse model stands in one table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cimf.methods.stacked.captured import Reference, share_correct
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.sparsify import sparsify_path
from cimf.model import ImplicitModel
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import log, out, print_table
from cimf.studies.case import Case
from cimf.studies.line_figure import plot_lines
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.train.equilibrium_training import random_model, train_implicit
from cimf.train.training_options import Training

_MODEL = "teacher.safetensors"


@dataclass(frozen=True)
class TeacherPlan:
    """What is trained and matched.

    Attributes
    ----------
    states : int
        n of the teacher.
    kappa : float
        ||A||_inf of the teacher.
    kappas : sequence of float
        Of the sparse models, design "full", rescaled states.
    calibration : int
        Samples whose states are matched, without labels.
    epochs, tuning : int
        Of the teacher, and of each sparse model that is tuned with labels.
    learning_rate : float
    batch_size : int
    """

    states: int
    kappa: float
    kappas: Sequence[float]
    calibration: int
    epochs: int
    tuning: int
    learning_rate: float
    batch_size: int = 128


def implicit_teacher(
    name: str, folder: Path, load: Callable[[], Case], plan: TeacherPlan, overwrite: bool = False
) -> pd.DataFrame:
    """Train a teacher, match it at every kappa, tune the sparse models by implicit differentiation.

    A third way to the same zeros starts from nothing: the pattern of the sparse model, random
    weights, as many epochs as the teacher had. Writes teacher.csv, teacher.md, teacher.png, the
    trained teacher and the manifest; points are kept as they end.
    """
    with RunFolder.claim(folder, {"network": name, **asdict(plan)}, overwrite) as run:
        case = loaded(run, load)
        first, teacher = trained_teacher(run, case, plan)
        rows = [first]
        for kappa in plan.kappas:
            rows += run.once(f"kappa {kappa:g}", partial(_sparse, teacher, case, plan, kappa))
            run.write("teacher.csv", pd.DataFrame(rows).to_csv(index=False))
            log(f"kappa {kappa:g}: {rows[-3]['accuracy']:.1%}, tuned {rows[-2]['accuracy']:.1%}")
        table = pd.DataFrame(rows)
        heading = ["model", "accuracy", "non-zeros", "seconds", "epochs", "labels"]
        cells = [
            [row["model"], f"{100 * row['accuracy']:.2f}", f"{row['nonzeros']:,}",
             f"{row['seconds']:.1f}", str(row["epochs"]), "yes" if row["labels"] else "no"]
            for row in rows
        ]  # fmt: skip
        print_table(heading, cells, title=name)
        run.finish(
            {"teacher.md": f"# {name}\n\n{markdown(heading, cells)}\n\n{_LEGEND}\n"},
            {"teacher.png": partial(_draw, name, table)},
            data=case.data,
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


_LEGEND = (
    "accuracy: test samples, percent. non-zeros: of A, B, C, D without the bias. seconds: of the "
    "step itself (sparse: capture, rows, (C, D); tuned and from nothing: training), here."
)


def _inputs(case: Case, size: int | None = None) -> NDArray[np.float64]:
    return case.calibration[:size].flatten(1).double().numpy()


def _row(model: ImplicitModel, case: Case, name: str, **aside: Any) -> dict[str, Any]:
    outputs = model.predict(case.inputs.flatten(1).double().numpy().T)
    parts = np.hstack([model.A, model.B])[:, :-1], np.hstack([model.C, model.D])[:, :-1]
    return {
        "model": name,
        "accuracy": share_correct(outputs, case.labels.numpy()),
        "nonzeros": sum(int(np.count_nonzero(part)) for part in parts),
        **aside,
    }


def _training(plan: TeacherPlan, epochs: int) -> Training:
    return Training(epochs=epochs, learning_rate=plan.learning_rate, batch_size=plan.batch_size)


def trained_teacher(
    run: RunFolder, case: Case, plan: TeacherPlan
) -> tuple[dict[str, Any], ImplicitModel]:
    """Return the row of the teacher, and the teacher, which the run folder keeps as a file."""
    row = run.once("teacher", partial(_teacher, run, case, plan))
    return row, ImplicitModel.load(run.path / _MODEL)


def _teacher(run: RunFolder, case: Case, plan: TeacherPlan) -> dict[str, Any]:
    """Train the teacher and write it."""
    inputs = case.calibration.flatten(1)
    start = random_model(plan.states, inputs.shape[1], case.labels.unique().numel())
    began = time.perf_counter()
    model, _ = train_implicit(
        start, _labelled(case), plan.kappa, training=_training(plan, plan.epochs)
    )
    seconds = time.perf_counter() - began
    run.write(_MODEL, model.save)
    aside = {"kappa": None, "seconds": seconds, "epochs": plan.epochs, "labels": True}
    return _row(model, case, "teacher", **aside)


def _labelled(case: Case) -> list[Any]:
    assert case.train_labels is not None
    return [(case.calibration.flatten(1), case.train_labels)]


def _sparse(
    teacher: ImplicitModel, case: Case, plan: TeacherPlan, kappa: float
) -> list[dict[str, Any]]:
    """Return the rows of a sparse model: matched, then tuned; and of its pattern from nothing."""
    began = time.perf_counter()
    reference = Reference.capture(teacher, [_inputs(case, plan.calibration)])
    (found,) = sparsify_path(reference, [kappa], "full", True, PathOptions())
    seconds, model = time.perf_counter() - began, found.model
    rows = [_row(model, case, f"sparse, kappa {kappa:g}", kappa=kappa, seconds=seconds, epochs=0,
                 labels=False)]  # fmt: skip
    again = random_model(teacher.n_states, teacher.n_inputs - 1, teacher.n_outputs, seed=1)
    A, B, C = (np.where(getattr(model, m) != 0, getattr(again, m), 0.0) for m in "ABC")
    patterned = ImplicitModel(A, B, C, model.D, model.blocks, model.bias)
    radius = max(plan.kappa, min(0.99, float(np.abs(model.A).sum(axis=1).max(initial=0.0))))
    for label, start, epochs in (
        ("tuned", model, plan.tuning),
        ("its pattern from nothing", patterned, plan.epochs),
    ):
        began = time.perf_counter()
        trained, _ = train_implicit(
            start, _labelled(case), radius, keep_pattern=True, training=_training(plan, epochs)
        )
        aside = {"kappa": kappa, "seconds": time.perf_counter() - began, "epochs": epochs}
        rows.append(_row(trained, case, f"{label}, kappa {kappa:g}", labels=True, **aside))
    return rows


def _draw(name: str, table: pd.DataFrame, path: Path) -> None:
    kinds = {"sparse": "matched, no labels", "tuned": "tuned", "its pattern from nothing": ""}
    lines = {}
    for start, label in kinds.items():
        part = table[table["model"].str.startswith(f"{start},")]
        lines[label or start] = (list(part["nonzeros"]), [100 * v for v in part["accuracy"]])
    ends = [float(table["nonzeros"].min()), float(table["nonzeros"].max())]
    lines["teacher"] = (ends, [100 * float(table["accuracy"].iloc[0])] * 2)
    plot_lines(
        path, f"{name}: sparse models of it", lines, across="non-zeros", up="accuracy, percent"
    )
