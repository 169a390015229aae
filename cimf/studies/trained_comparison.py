"""Methods that train beside one-shot methods and fine-tuning: what each costs, what each gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cimf.errors import InputError
from cimf.methods.by_name import METHODS, prune_task
from cimf.methods.layered.supports import ball
from cimf.runs.terminal import out, print_table
from cimf.studies.compare import FAST, OURS, Case, Point, claim, finish, measure, share
from cimf.studies.sweep_tables import markdown
from cimf.studies.trained_rows import costs
from cimf.train.finetuning import finetune

STRUCTURED = ("sss", "spr", "mla")
ONE_SHOT = ("obs", OURS)
# The paper's rows, layer by layer: the l1 ball with equal weights on the states as they were
# captured, no correction for the layers before, no polish.
LITERAL: dict[str, Any] = {
    **FAST, "support": partial(ball, weighting="ones"), "correct": False, "polish": False
}  # fmt: skip


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
    def method(self) -> str:
        """What stands in the table's first column."""
        return f"{OURS} + {self.name}"


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes
    ----------
    levels : sequence of float
        Sparsity of the gates and of the one-shot methods. Structured methods stand at the first
        level alone, where the paper has them; their sparsity counts whole channels.
    training : mapping
        Options of the methods that train.
    tune_epochs : int
        How many of its epochs a structured method takes after its zeros are chosen.
    tunings : sequence of Tuning
    samples, calibration : int, optional
        Training samples of the methods that train; those without labels of the one-shot methods.
        Default: all.
    """

    levels: Sequence[float]
    training: Mapping[str, Any]
    tune_epochs: int
    tunings: Sequence[Tuning]
    samples: int | None = None
    calibration: int | None = None


def trained_comparison(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    plan: Comparison,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write accuracy, sparsity of weights and channels, multiply-adds, epochs and use of labels."""
    settings = {
        "network": name, "levels": plan.levels, "samples": plan.samples,
        "calibration": plan.calibration, "training": _plain(plan.training),
        "tune_epochs": plan.tune_epochs,
        "tunings": [{**vars(t), "options": _plain(t.options)} for t in plan.tunings],
    }  # fmt: skip
    with claim(folder, settings, overwrite) as run:
        case = load()
        tuned = [
            {
                "method": tuning.method,
                "target": tuning.level,
                **run.resumed(str(tuning), partial(_tuned, case, tuning, plan.calibration)),
            }
            for tuning in plan.tunings
        ]
        points = measure(run, case, _points(plan))
        trained = [*(row for row in points if row.get("epochs")), *tuned]
        one_shot = [row for row in points if not row.get("epochs")]
        rows = [*trained, *one_shot]
        heading = ["method", "target", "accuracy %", "zero weights %", "zero structures %",
                   "multiply-adds %", "epochs", "samples", "labels"]  # fmt: skip
        seen = plan.samples or len(case.calibration), plan.calibration or len(case.calibration)
        parts = {
            "Methods that train": (heading, [_line(row, seen[0]) for row in trained]),
            "One shot": (heading[:6], [_line(row, seen[1])[:6] for row in one_shot]),
        }
        for title, (head, lines) in parts.items():
            print_table(head, lines, title=f"{name}: {title.lower()}")
        text = "\n".join(
            f"## {title}\n\n{markdown(head, lines)}" for title, (head, lines) in parts.items()
        )
        sources = "".join(
            f"- {m}: {METHODS[m].source}\n" for m in (*STRUCTURED, "gates", *ONE_SHOT)
        )
        finish(
            run, case, rows,
            f"# {name}\n\nDense accuracy {case.dense:.2%}. Structures: output and input "
            "channels of the layers without a weight that is not zero. Multiply-adds: of the "
            "weights that are not zero, as a share of all. Epochs: those after the zeros were "
            f"chosen included. One-shot methods see {seen[1]:,} samples without labels.\n\n"
            f"{text}\n{sources}",
        )  # fmt: skip
    return rows


def _plain(options: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in options.items()}


def _points(plan: Comparison) -> list[Point]:
    first, n = plan.levels[0], plan.samples
    structured = {**plan.training, "tune_epochs": plan.tune_epochs}
    structured["epochs"] = plan.training["epochs"] - plan.tune_epochs
    channels = {**plan.training, "structure": "channels"}
    return [
        *(Point({"method": m, "target": first}, m, first, structured, n) for m in STRUCTURED),
        Point({"method": "gates, channels", "target": first}, "gates", first, channels, n),
        *(Point({"method": "gates", "target": s}, "gates", s, plan.training, n)
          for s in plan.levels),
        *(Point({"method": "literal ball", "target": s}, OURS, s, LITERAL, plan.calibration)
          for s in plan.levels),
        *(Point({"method": m, "target": s}, m, s, FAST, plan.calibration)
          for m in ONE_SHOT for s in plan.levels),
    ]  # fmt: skip


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


def _line(row: Mapping[str, Any], samples: int) -> list[str]:
    return [
        row["method"], f"{row['target']:.0%}",
        *(f"{100 * row[key]:.2f}" for key in ("accuracy", "sparsity_network_weights",
                                              "zero_structures", "multiply_adds")),
        str(row.get("epochs", 0)), f"{row.get('samples', samples):,}",
        "yes" if row.get("labels", True) else "no",
    ]  # fmt: skip
