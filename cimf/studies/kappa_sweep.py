"""A sweep over kappa that ends in a results folder: the paper's Table 1."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cimf.data.datasets import Dataset
from cimf.judge import DENOMINATORS
from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import Reference, Rescale, units_in_words
from cimf.methods.stacked.model_report import Report
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.row_options import RowOptions
from cimf.methods.stacked.sparsify import iter_path, raise_if_failed
from cimf.runs.folder import RunFolder
from cimf.runs.numbers import shortest
from cimf.runs.terminal import log, out, print_table, progress_bar
from cimf.studies.sweep_figure import plot_sweep
from cimf.studies.sweep_tables import FULL, TERMINAL, markdown, render, tidy

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
) -> list[Sparsified]:
    """Solve, evaluate by equilibrium, print a table, and write a results folder.

    Every model is written as soon as it is evaluated, and the tables before the figure.

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
        Called once the folder is known to be free.
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
    list of Sparsified
        In the order of `configurations`, then `kappas`.

    Raises
    ------
    CertificateError
        As `sparsify_path`, once everything is written; its `result` holds all models.
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
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        reference = network()
        seconds["train and capture"] = time.perf_counter() - start
        results: list[Sparsified] = []
        for design, rescale in configurations:
            title = f"{design}, {units_in_words(rescale)}"
            start = time.perf_counter()
            with progress_bar(title, reference.calibration.layout.n_states) as progress:
                for found in iter_path(
                    reference, kappas, design, rescale, options, progress=progress
                ):
                    results.append(found)
                    if models:
                        run.write(_model_name(found.report), found.model.save)
                    table = tidy(result.report for result in results)
                    run.write("sweep.csv", table.to_csv(index=False))
                    log(_finished(title, table[-1:]))
            seconds[f"solve and evaluate: {title}"] = time.perf_counter() - start
        _write(name, run, reference, results, seconds, paper)
    if not options.keep_going:
        raise_if_failed(results)
    return results


def _model_name(report: Report) -> str:
    scaled = {True: "rescaled", False: "plain", "layers": "layers"}[report.rescale]
    level = "penalty" if math.isnan(report.kappa) else shortest(report.kappa)
    return f"model-{report.design}-{scaled}-{level}.safetensors"


def _finished(title: str, row: pd.DataFrame) -> str:
    """Return one line about a model that is done, for a log."""
    heading, (cells,) = render(row, TERMINAL)
    return f"{title}: {', '.join(map(' '.join, zip(heading, cells, strict=True)))}"


def _write(
    name: str,
    run: RunFolder,
    reference: Reference,
    results: Sequence[Sparsified],
    seconds: Mapping[str, float],
    paper: bool,
) -> None:
    """Print the table and write every file of the run that is not there yet."""
    table = tidy(result.report for result in results)
    out.print(name, style="bold")
    for (design, rescale), part in table.groupby(["design", "rescale"], sort=False):
        title = f"design {design}, states {units_in_words(rescale)}"
        print_table(*render(part, TERMINAL), title=title)
    summary = [*_summary(reference, table), *_notes(results)]
    for line in summary:
        out.print(line)
    heading, rows = render(table, FULL, paper=paper)
    first = results[0].report
    legend = [*_LEGEND, *([_LOSS] if first.loss else []), *([_PAPER] if paper else [])]
    run.finish(
        {
            "sweep.md": f"# {name}\n\n{markdown(heading, rows)}\n"
            + "".join(f"- {line}\n" for line in (*summary, *legend)),
            "report.txt": "\n\n".join(str(result.report) for result in results) + "\n",
        },
        {"sweep.png": partial(plot_sweep, table, title=name)},
        samples={
            "calibration": reference.calibration.n_samples,
            "evaluation": reference.evaluation.n_samples,
            "labelled": reference.labels is not None,
        },
        network={
            "sha256": reference.digest,
            "weights": reference.network_weights,
            "parameters": reference.network_parameters,
            "reconstruction_error": reference.calibration.reconstruction.worst,
        },
        dense_accuracy=first.dense_accuracy,
        control_accuracy=first.control_accuracy,
        rows_by_method=_total(result.report.methods for result in results),
        why_this_method=sorted({result.report.solution.why for result in results} - {""}),
        tolerance=first.solution.certificate.tol,
        worst_gap=float(table["worst_gap"].max()),
        all_certified=bool((table["certified"] == table["rows"]).all()),
        seconds=dict(seconds),
    )
    shown = [name for name in run.written if name != "report.txt"]
    out.print(f"written to {run.path}/: {', '.join(shown)}, ...")


def _notes(results: Sequence[Sparsified]) -> list[str]:
    """Return every note of the reports once, with its kappas where it does not hold for all."""
    kappas: dict[str, set[float]] = {}
    for result in results:
        for note in result.report.notes:
            kappas.setdefault(note, set()).add(result.report.kappa)
    every = {result.report.kappa for result in results}
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


def _summary(reference: Reference, table: Any) -> list[str]:
    """Return the sentences that every table must be read with."""
    lines = []
    if reference.labels is not None:
        lines.append(
            f"dense network {reference.dense_accuracy:.2%}, control (linear map from the input "
            f"alone) {reference.control_accuracy:.2%}, on {len(reference.labels):,} test samples"
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
