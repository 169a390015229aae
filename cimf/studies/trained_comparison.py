"""Methods that train beside one-shot methods and fine-tuning: what each costs, what each gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cimf.errors import InputError
from cimf.methods.by_name import METHODS, prune_task
from cimf.runs.terminal import out, print_table
from cimf.studies.compare import FAST, OURS, Case, Point, claim, finish, measure, share
from cimf.studies.sweep_tables import markdown
from cimf.studies.trained_rows import costs
from cimf.train.finetuning import finetune

STRUCTURED = ("sss", "spr", "mla")
ONE_SHOT = ("obs", OURS)
TUNED = ("labels", "distillation")


def trained_comparison(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    *,
    levels: Sequence[float],
    options: Mapping[str, Any],
    calibration: int | None = None,
    epochs: int = 10,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Write accuracy, sparsity of weights and channels, multiply-adds, epochs and use of labels.

    Structured methods stand at the first level alone, where the paper has them; their sparsity
    counts whole channels. Fine-tuning begins with the layered method's network.

    Parameters
    ----------
    options : mapping
        Of everything that trains: how images are augmented.
    calibration : int, optional
        Samples without labels that the one-shot methods see. Default: all.
    epochs : int
        Of the fine-tuning.
    """
    settings = {
        "network": name, "levels": levels, "calibration": calibration, "epochs": epochs,
        "training": {key: str(value) for key, value in options.items()},
    }  # fmt: skip
    with claim(folder, settings, overwrite) as run:
        case = load()
        channels = {**options, "structure": "channels"}
        points = [
            *(Point({"method": m, "target": levels[0]}, m, levels[0], options) for m in STRUCTURED),
            Point({"method": "gates, channels", "target": levels[0]}, "gates", levels[0], channels),
            *(Point({"method": "gates", "target": s}, "gates", s, options) for s in levels),
            *(
                Point({"method": m, "target": s}, m, s, FAST, calibration)
                for m in ONE_SHOT
                for s in levels
            ),
        ]
        rows = measure(run, case, points)
        for level in levels:
            for loss in TUNED:
                key = f"{OURS} + {loss}, target {level}"
                work = partial(_tuned, case, level, loss, calibration, epochs, options)
                row = {"method": f"{OURS} + {loss}", "target": level, **run.once(key, work)}
                out.print(f"  {key}: {row['accuracy']:.2%} ({row['seconds']:.0f} s)")
                rows.append(row)
        heading = ["method", "target", "accuracy %", "zero weights %", "zero structures %",
                   "multiply-adds %", "epochs", "labels"]  # fmt: skip
        table = [_line(row) for row in rows]
        print_table(heading, table, title=name)
        sources = "".join(
            f"- {m}: {METHODS[m].source}\n" for m in (*STRUCTURED, "gates", *ONE_SHOT)
        )
        finish(
            run, case, rows,
            f"# {name}\n\nDense accuracy {case.dense:.2%}. Structures: output and input "
            "channels of the layers without a weight that is not zero. Multiply-adds: of the "
            "weights that are not zero, as a share of all. Epochs over "
            f"{len(case.calibration):,} training samples, those after the zeros were chosen "
            f"included; one-shot methods see {calibration or len(case.calibration):,} samples "
            f"without labels.\n\n{markdown(heading, table)}\n{sources}",
        )  # fmt: skip
    return rows


def _tuned(
    case: Case,
    level: float,
    loss: str,
    calibration: int | None,
    epochs: int,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the row of the layered method's network, trained on with its zeros held."""
    if case.train_labels is None:
        raise InputError("fine-tuning on labels needs them: the case has none")
    start = time.perf_counter()
    task = case.task(calibration, labelled=False)
    sparse = prune_task(task, level, OURS, **FAST)
    batches: Any = case.calibration
    if loss == "labels":
        batches = [(case.calibration, case.train_labels)]
    teacher = None if loss == "labels" else case.network
    tuned = finetune(sparse.network, batches, teacher, epochs, **options)
    seconds = time.perf_counter() - start
    net = tuned.network.eval()
    classes = case.classes(net)
    return {
        "accuracy": share(classes == case.labels),
        "agreement": share(classes == case.dense_classes),
        "sparsity_network_weights": sparse.report.sparsity["network_weights"],
        **costs(task.graph, net),
        "epochs": epochs,
        "seconds": seconds,
        "report": str(tuned.report),
    }


def _line(row: Mapping[str, Any]) -> list[str]:
    method = row["method"].partition(",")[0]
    labels = method.endswith("labels") or (method in METHODS and "labels" in METHODS[method].needs)
    return [
        row["method"], f"{row['target']:.0%}",
        *(f"{100 * row[key]:.2f}" for key in ("accuracy", "sparsity_network_weights",
                                              "zero_structures", "multiply_adds")),
        str(row.get("epochs", 0)), "yes" if labels else "no",
    ]  # fmt: skip
