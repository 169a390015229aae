"""A sweep over kappa that ends in a results folder: the paper's Table 1."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from cimf.data.datasets import Dataset
from cimf.errors import CertificateError
from cimf.judge import DENOMINATORS
from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import Reference, Rescale, units_in_words
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.row_options import RowOptions
from cimf.methods.stacked.sparsify import iter_path, raise_if_failed
from cimf.runs.folder import RunFolder
from cimf.runs.numbers import shortest
from cimf.runs.terminal import log, out, print_table, progress_bar
from cimf.studies.origin import check_origin, samples_digest
from cimf.studies.sweep_figure import plot_sweep
from cimf.studies.sweep_tables import FULL, TERMINAL, markdown, render

# The kappas of the paper's Table 1.
KAPPAS = (0.005, 0.01, 0.05, 0.1, 0.5, 0.99)


def run_sweep(
    name: str,
    folder: str | Path,
    settings: Mapping[str, Any],
    network: Callable[[], Reference],
    *,
    kappas: Sequence[float | None] = KAPPAS,
    configurations: Sequence[tuple[str, Rescale]] = (("full", True),),
    overwrite: bool = False,
    models: bool = False,
    paper: bool = False,
    dataset: Dataset | None = None,
    options: RowOptions | None = None,
) -> pd.DataFrame:
    """Solve, evaluate by equilibrium, print a table, and write a results folder.

    Every model is written, and kept as a point, as soon as it is evaluated: the same call continues
    with the others.

    Parameters
    ----------
    name : str
        Title of the table and the figure.
    folder : path
        Receives sweep.csv, sweep.md, sweep.png, report.txt and manifest.json; refused
        before any work is done if it holds another run, as are arguments that cannot be used.
    settings : mapping
        What decides the result besides the arguments below (seed, training).
    network : () -> Reference
        Called once the folder is known to be free, unless all models are there already.
    kappas, configurations
        Every kappa for every (design, rescale).
    overwrite : bool
        Replace another run.
    models : bool
        Also save every model.
    paper : bool
        Show the paper's Table 1 beside these numbers.
    dataset : Dataset, optional
        The data, for the settings and the manifest.
    options : PathOptions, LossOptions or SensitivityOptions, optional
        How every configuration is solved.

    Returns
    -------
    DataFrame
        One row per model, as `Report.row`, in the order of `configurations`, then `kappas`.

    Raises
    ------
    CertificateError
        As `sparsify_path`, once everything is written; its `result` holds the models that this
        call made.
    RunError
        As `RunFolder.claim`; network or samples are not those of the run that is continued.
    """
    options = options or PathOptions()
    for design, _ in configurations:
        options.levels(kappas, design)
    decisive = {
        **settings,
        "data": dataset.describe() if dataset else None,
        "kappas": kappas,
        "configurations": configurations,
        **options.decisive,
    }
    with RunFolder.claim(folder, decisive, overwrite) as run:
        captured = cache(lambda: _same(run, network()))
        about = run.once("network", lambda: _about(captured))
        seconds = dict(about["seconds"])
        points: list[dict[str, Any]] = []
        results: list[Sparsified] = []
        for design, rescale in configurations:
            title = f"{design}, {units_in_words(rescale)}"
            levels = options.levels(kappas, design)
            names = [_name(design, rescale, level) + ".safetensors" * models for level in levels]
            wanted = [name not in run.points for name in names]
            with progress_bar(title, about["network"]["states"]) as progress:
                found: Iterator[Sparsified] = iter(())
                if any(wanted):
                    found = iter_path(
                        captured(), kappas, design, rescale, options,
                        wanted=wanted, progress=progress,
                    )  # fmt: skip
                for model in names:
                    point = run.once(model, partial(_measured, run, found, results, model))
                    points.append({**point, "row": json.loads(point["row"])})
                    table = pd.DataFrame([point["row"] for point in points])
                    run.write("sweep.csv", table.to_csv(index=False))
                    log(_finished(title, table[-1:]))
            spent = sum(point["seconds"] for point in points[-len(names) :])
            seconds[f"solve and evaluate: {title}"] = spent
        _write(name, run, {**about, "seconds": seconds}, points, table, paper)
    failures = [point["failure"] for point in points if point["failure"]]
    if failures and not options.keep_going:
        error = CertificateError(failures[0], options=["keep_going", "tol"])
        error.result = tuple(results)
        raise error
    return table


def _about(network: Callable[[], Reference]) -> dict[str, Any]:
    """Train and capture the network; return what the manifest says of it and of its samples."""
    start = time.perf_counter()
    reference = network()
    seconds = time.perf_counter() - start
    return {
        "samples": {
            "calibration": reference.calibration.n_samples,
            "evaluation": reference.evaluation.n_samples,
            "labelled": reference.labels is not None,
        },
        "network": {
            "sha256": reference.digest,
            "weights": reference.network_weights,
            "parameters": reference.network_parameters,
            "states": reference.calibration.layout.n_states,
            "reconstruction_error": reference.calibration.reconstruction.worst,
        },
        "dense_accuracy": reference.dense_accuracy,
        "control_accuracy": reference.control_accuracy,
        "seconds": {"train and capture": seconds},
    }


def _same(run: RunFolder, reference: Reference) -> Reference:
    """Return the network; refuse one that is not that of the models that are there already.

    Its training may depend on more than the seed; and a user's function on more than its source.
    """
    test = reference.test
    check_origin(
        run,
        network=reference.digest,
        samples=samples_digest(*reference.calibration.inputs),
        test_samples=samples_digest(*(test.inputs if test else ()), reference.labels),
    )
    return reference


def _name(design: str, rescale: Rescale, level: float) -> str:
    """Return what a model is called in its run."""
    scaled = {True: "rescaled", False: "plain", "layers": "layers"}[rescale]
    return f"model-{design}-{scaled}-{'penalty' if math.isnan(level) else shortest(level)}"


def _measured(
    run: RunFolder, models: Iterator[Sparsified], results: list[Sparsified], name: str
) -> dict[str, Any]:
    """Make the next model, and save it if it is called like a file; return what is said of it."""
    start = time.perf_counter()
    found = next(models)
    results.append(found)
    if name.endswith(".safetensors"):
        run.write(name, found.model.save)
    report, failure = found.report, ""
    try:
        raise_if_failed([found])
    except CertificateError as error:
        failure = str(error)
    return {
        "row": json.dumps(report.row()),  # as text: a point has neither NaN nor infinity
        "report": str(report),
        "notes": report.notes,
        "methods": report.methods,
        "why": report.solution.why,
        "tolerance": report.solution.certificate.tol,
        "failure": failure,
        "seconds": time.perf_counter() - start,
    }


def _finished(title: str, row: pd.DataFrame) -> str:
    """Return one line about a model that is done, for a log."""
    heading, (cells,) = render(row, TERMINAL)
    return f"{title}: {', '.join(map(' '.join, zip(heading, cells, strict=True)))}"


def _write(
    name: str,
    run: RunFolder,
    about: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    table: pd.DataFrame,
    paper: bool,
) -> None:
    """Print the table and write every file of the run that is not there yet."""
    out.print(name, style="bold")
    for (design, rescale), part in table.groupby(["design", "rescale"], sort=False):
        title = f"design {design}, states {units_in_words(rescale)}"
        print_table(*render(part, TERMINAL), title=title)
    summary = [*_summary(about, table), *_notes(points)]
    for line in summary:
        out.print(line)
    heading, rows = render(table, FULL, paper=paper)
    legend = [*_LEGEND, *([_LOSS] if "loss" in table else []), *([_PAPER] if paper else [])]
    run.finish(
        {
            "sweep.md": f"# {name}\n\n{markdown(heading, rows)}\n"
            + "".join(f"- {line}\n" for line in (*summary, *legend)),
            "report.txt": "\n\n".join(point["report"] for point in points) + "\n",
        },
        {"sweep.png": partial(plot_sweep, table, title=name)},
        **about,
        rows_by_method=_total(point["methods"] for point in points),
        why_this_method=sorted({point["why"] for point in points} - {""}),
        tolerance=points[0]["tolerance"],
        worst_gap=float(table["worst_gap"].max()),
        all_certified=bool((table["certified"] == table["rows"]).all()),
    )
    shown = [name for name in run.written if name != "report.txt"]
    out.print(f"written to {run.path}/: {', '.join(shown)}, ...")


def _notes(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every note of the reports once, with its kappas where it does not hold for all."""
    kappas: dict[str, set[float]] = {}
    for point in points:
        for note in point["notes"]:
            kappas.setdefault(note, set()).add(point["row"]["kappa"])
    every = {point["row"]["kappa"] for point in points}
    return [
        f"note: {note}"
        if where == every
        else f"note, kappa {', '.join(map(shortest, sorted(where)))}: {note}"
        for note, where in kappas.items()
    ]


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by name; the methods of each kappa are in the table."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _summary(about: Mapping[str, Any], table: Any) -> list[str]:
    """Return the sentences that every table must be read with."""
    lines = []
    samples = about["samples"]
    if samples["labelled"]:
        lines.append(
            f"dense network {about['dense_accuracy']:.2%}, control (linear map from the input "
            f"alone) {about['control_accuracy']:.2%}, on {samples['evaluation']:,} test samples"
        )
    total, passed = int(table["rows"].sum()), int(table["certified"].sum())
    lines.append(
        f"{passed:,} of {total:,} rows certified, worst relative gap {table['worst_gap'].max():.1e}"
    )
    inactive = table[table["inactive_rows"] > 0]
    if len(inactive):
        kappas = ", ".join(shortest(kappa) for kappa in sorted(set(inactive["kappa"])))
        lines.append(
            f"{int(inactive['inactive_rows'].sum()):,} rows, at kappa {kappas}, have an inactive "
            "ball (multiplier 0): their optimum may not be unique, and the non-zeros are those of "
            "one solution"
        )
    unproved = int((table["wellposed"] == "none").sum())
    missed = int((table["evaluated"] - table["converged"]).sum())
    lines.append(
        f"{len(table) - unproved} of {len(table)} models proved well-posed; "
        + (
            f"{missed:,} equilibria did not converge: see the column"
            if missed
            else "every equilibrium converged"
        )
    )
    return lines


_LEGEND = (
    "accuracy: by the equilibrium of the sparse model, D holding only the bias; "
    "with inputs: the same with D fitted on all inputs, which mixes the control in.",
    f"sparsity: 1 - non-zeros / {DENOMINATORS['network_weights']}; negative where the model is the "
    "larger one. "
    f"of admissible: 1 - non-zeros / {DENOMINATORS['admissible']}.",
    "state error: the worst block's relative error of Z = A X + B U on the calibration states; "
    "output error: relative error of the outputs on the evaluation samples.",
    "worst gap: the largest duality gap of a row, relative to what the free columns leave of "
    "1/2 ||z||^2; a row is certified at the tolerance that manifest.json names.",
)
_LOSS = (
    "loss value: of the rows of (A, B) in the units in which they were solved, without its "
    "multiplier; of the sensitivity: that of the model, summed over its outputs. A loss of "
    "formulations is certified by the bound of its cone program, relative to the same."
)
_PAPER = (
    "paper columns: accuracy / sparsity in percent at the same kappa as published, for other "
    "networks and other data: an orientation, not a comparison."
)
