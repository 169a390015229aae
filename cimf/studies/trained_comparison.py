"""Methods that train beside one-shot methods and fine-tuning: what each costs, what each gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cimf.methods.by_name import METHODS
from cimf.methods.layered.supports import ball
from cimf.runs.terminal import print_table
from cimf.studies.case import Case
from cimf.studies.compare import FAST, OURS, Point, claim, finish, measure
from cimf.studies.origin import loaded
from cimf.studies.recovery import Tuning, plain, tuned_row
from cimf.studies.sweep_tables import markdown

STRUCTURED = ("sss", "spr", "mla")
ONE_SHOT = ("obs", OURS)
# The paper's rows, layer by layer: the l1 ball with equal weights on the states as they were
# captured, no correction for the layers before, no polish.
LITERAL: dict[str, Any] = {
    **FAST, "support": partial(ball, weighting="ones"), "correct": False, "polish": False
}  # fmt: skip


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
    keep : sequence of str
        Layers that the one-shot baselines keep dense, where that is better for them.
    """

    levels: Sequence[float]
    training: Mapping[str, Any]
    tune_epochs: int
    tunings: Sequence[Tuning]
    samples: int | None = None
    calibration: int | None = None
    keep: Sequence[str] = ()


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
        "calibration": plan.calibration, "training": plain(plan.training),
        "tune_epochs": plan.tune_epochs,
        "tunings": [tuning.settings for tuning in plan.tunings], "keep": plan.keep,
    }  # fmt: skip
    with claim(folder, settings, overwrite) as run:
        case = loaded(run, load)
        tuned = [tuned_row(run, case, tuning, plan.calibration) for tuning in plan.tunings]
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
        aside = f" OBS keeps {', '.join(plan.keep)} dense." if plan.keep else ""
        sources = "".join(
            f"- {m}: {METHODS[m].source}\n" for m in (*STRUCTURED, "gates", *ONE_SHOT)
        )
        finish(
            run, case, rows,
            f"# {name}\n\nDense accuracy {case.dense:.2%}. Structures: output and input "
            "channels of the layers without a weight that is not zero. Multiply-adds: of the "
            "weights that are not zero, as a share of all. Epochs: those after the zeros were "
            f"chosen included. One-shot methods see {seen[1]:,} samples without labels.{aside}\n\n"
            f"{text}\n{sources}",
        )  # fmt: skip
    return rows


def _points(plan: Comparison) -> list[Point]:
    first, n = plan.levels[0], plan.samples
    structured = {**plan.training, "tune_epochs": plan.tune_epochs}
    structured["epochs"] = plan.training["epochs"] - plan.tune_epochs
    channels = {**plan.training, "structure": "channels"}
    baseline = {**FAST, "keep": tuple(plan.keep)}
    return [
        *(Point({"method": m, "target": first}, m, first, structured, n) for m in STRUCTURED),
        Point({"method": "gates, channels", "target": first}, "gates", first, channels, n),
        *(Point({"method": "gates", "target": s}, "gates", s, plan.training, n)
          for s in plan.levels),
        *(Point({"method": "literal ball", "target": s}, OURS, s, LITERAL, plan.calibration)
          for s in plan.levels),
        *(Point({"method": "obs", "target": s}, "obs", s, baseline, plan.calibration)
          for s in plan.levels),
        *(Point({"method": OURS, "target": s}, OURS, s, FAST, plan.calibration)
          for s in plan.levels),
    ]  # fmt: skip


def _line(row: Mapping[str, Any], samples: int) -> list[str]:
    return [
        row["method"], f"{row['target']:.0%}",
        *(f"{100 * row[key]:.2f}" for key in ("accuracy", "sparsity_network_weights",
                                              "zero_structures", "multiply_adds")),
        str(row.get("epochs", 0)), f"{row.get('samples', samples):,}",
        "yes" if row.get("labels", True) else "no",
    ]  # fmt: skip
