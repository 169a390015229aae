"""What training gives back to a one-shot sparse network whose zeros are held."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cimf.errors import InputError
from cimf.methods.by_name import prune_task
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import duration, out, print_table
from cimf.studies.case import Case, share
from cimf.studies.compare import FAST, OURS, claim, finish
from cimf.studies.origin import loaded
from cimf.studies.sweep_tables import markdown
from cimf.studies.trained_rows import costs
from cimf.train.finetuning import finetune


@dataclass(frozen=True)
class Tuning:
    """The layered method's network, trained on with its zeros held.

    Attributes
    ----------
    name : str
        What the table calls it.
    level : float
        Sparsity.
    labels, teacher : bool
        What it sees.
    samples : int, optional
        The first so many training samples. Default: all.
    options : mapping
        Of `cimf.finetune`.
    """

    name: str
    level: float
    labels: bool
    teacher: bool
    samples: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its result."""
        return {**vars(self), "options": plain(self.options)}

    @property
    def method(self) -> str:
        """What stands in the table's first column."""
        return f"{OURS} + {self.name}"


def recovery(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    tunings: Sequence[Tuning],
    calibration: int | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write what every tuning gives: accuracy before and after, epochs, samples, labels, time.

    Parameters
    ----------
    calibration : int, optional
        Samples of the one-shot method. Default: all.
    """
    settings = {
        "network": name, "calibration": calibration, "tunings": [t.settings for t in tunings]
    }  # fmt: skip
    with claim(folder, settings, overwrite) as run:
        case = loaded(run, load)
        rows = [tuned_row(run, case, tuning, calibration) for tuning in tunings]
        heading = ["method", "zero weights %", "one-shot accuracy %", "accuracy %", "epochs",
                   "samples", "labels", "time"]  # fmt: skip
        lines = [
            [row["method"], *(f"{100 * row[key]:.2f}" for key in (
                "sparsity_network_weights", "accuracy_before", "accuracy")),
             str(row["epochs"]), f"{row['samples']:,}", "yes" if row["labels"] else "no",
             duration(row["seconds"])]
            for row in rows
        ]  # fmt: skip
        print_table(heading, lines, title=name)
        finish(
            run, case, rows,
            f"# {name}\n\nDense accuracy {case.dense:.2%}. The zeros are those of the layered "
            "method, chosen from "
            f"{calibration or len(case.calibration):,} samples without labels; time: choosing them "
            f"included.\n\n{markdown(heading, lines)}",
        )  # fmt: skip
    return rows


def tuned_row(
    run: RunFolder, case: Case, tuning: Tuning, calibration: int | None
) -> dict[str, Any]:
    """Return the row of a tuning, from where an interrupted run left it."""
    work = partial(_tuned, case, tuning, calibration)
    return {
        "method": tuning.method, "target": tuning.level, **run.resumed(str(tuning), work)
    }  # fmt: skip


def _tuned(case: Case, tuning: Tuning, calibration: int | None, checkpoint: Path) -> dict[str, Any]:
    """Return the row of the layered method's network, trained on with its zeros held."""
    if case.train_labels is None:
        raise InputError("fine-tuning on labels needs them: the case has none")
    start = time.perf_counter()
    task = case.task(calibration, labelled=False)
    sparse = prune_task(task, tuning.level, OURS, **FAST)
    inputs = case.calibration[: tuning.samples]
    batches: Any = [(inputs, case.train_labels[: tuning.samples])] if tuning.labels else inputs
    teacher = case.network if tuning.teacher else None
    tuned = finetune(
        sparse.network, batches, teacher, **{**tuning.options, "checkpoint": checkpoint}
    )
    seconds = time.perf_counter() - start
    net = tuned.network.eval()
    classes = case.classes(net)
    out.print(f"  {tuning.method}: {share(classes == case.labels):.2%} ({seconds:.0f} s)")
    return {
        "accuracy_before": share(case.classes(sparse.network) == case.labels),
        "accuracy": share(classes == case.labels),
        "agreement": share(classes == case.dense_classes),
        "sparsity_network_weights": sparse.report.sparsity["network_weights"],
        **costs(task.graph, net),
        "epochs": len(tuned.report.epochs),
        "samples": len(inputs),
        "labels": tuning.labels,
        "seconds": seconds,
        "report": str(tuned.report),
    }


def plain(options: Mapping[str, Any]) -> dict[str, str]:
    """Return options as they are written down."""
    return {key: str(value) for key, value in options.items()}
