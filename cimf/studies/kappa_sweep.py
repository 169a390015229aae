"""Runs that end in a results folder: a sweep over kappa, the paper's Table 1; a sparse network."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cimf.data.datasets import Dataset
from cimf.errors import InputError, UnknownNameError
from cimf.judge import DENOMINATORS
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.sparsify import Sparsified, check_path, sparsify, sparsify_path
from cimf.runs.folder import RunFolder
from cimf.runs.numbers import shortest
from cimf.runs.terminal import out, print_table, progress_bar
from cimf.solve.rows import check_limits
from cimf.studies.sweep_figure import plot_sweep
from cimf.studies.sweep_tables import FULL, TERMINAL, latex, markdown, render, tidy

if TYPE_CHECKING:
    from cimf.methods.layered.calibration import SparseNetwork

# The kappas of the paper's Table 1.
KAPPAS = (0.005, 0.01, 0.05, 0.1, 0.5, 0.99)


def run_sweep(
    name: str,
    folder: str | Path,
    settings: Mapping[str, Any],
    network: Callable[[], Reference],
    *,
    kappas: Sequence[float] = KAPPAS,
    configurations: Sequence[tuple[str, bool]] = (("full", True),),
    overwrite: bool = False,
    models: bool = False,
    paper: bool = False,
    dataset: Dataset | None = None,
    **options: Any,
) -> list[Sparsified]:
    """Solve, evaluate by equilibrium, print a table, and write a results folder.

    Parameters
    ----------
    name : str
        Title of the table and the figure.
    folder : path
        Receives sweep.csv, sweep.md, sweep.tex, sweep.png, report.txt and manifest.json; refused
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
    **options
        As `cimf.methods.stacked.sparsify.sparsify_path`.

    Returns
    -------
    list of Sparsified
        In the order of `configurations`, then `kappas`.
    """
    for design, _ in configurations:
        check_path(kappas, design, **options)
    decisive = {key: value for key, value in options.items() if key != "n_jobs"}
    run = RunFolder.claim(
        folder,
        {
            **settings,
            "data": dataset.describe() if dataset else None,
            "kappas": kappas,
            "configurations": configurations,
            **decisive,
        },
        overwrite,
    )
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    reference = network()
    seconds["train and capture"] = time.perf_counter() - start
    results: list[Sparsified] = []
    for design, rescale in configurations:
        title = f"{design}, {'rescaled' if rescale else 'as captured'}"
        start = time.perf_counter()
        with progress_bar(title, reference.calibration.n_states) as progress:
            results += sparsify_path(
                reference, kappas, design, rescale, progress=progress, **options
            )
        seconds[f"solve and evaluate: {title}"] = time.perf_counter() - start
    _write(name, run, reference, results, seconds, models, paper)
    return results


def run_layered(
    folder: str | Path,
    settings: Mapping[str, Any],
    network: Callable[[], tuple[Any, ...]],
    target_sparsity: float | None,
    support: str = "obs",
    *,
    overwrite: bool = False,
    n_jobs: int | None = None,
) -> SparseNetwork:
    """Make a network's weights sparse by the layered design, and write a results folder.

    Parameters
    ----------
    folder : path
        Receives network.safetensors (the state dict), report.txt and manifest.json; refused before
        any work is done if it holds another run.
    settings : mapping
        What decides the result besides the target sparsity and the support.
    network : () -> (net, calibration batches) or (net, calibration batches, test batches)
        Called once the folder is known to be free. Labelled test batches give accuracies.
    target_sparsity, support, n_jobs
        As `cimf.methods.layered.calibration.sparsify_layers`.
    overwrite : bool
        Replace another run.

    Raises
    ------
    InputError
        A target sparsity outside [0, 1), or none; an unknown support.
    """
    if target_sparsity is None or not 0.0 <= target_sparsity < 1.0:
        raise InputError(
            "design 'layered' needs a target sparsity in [0, 1): --target-sparsity 0.8"
        )
    check_limits(1.0, n_jobs)
    from cimf.methods.layered.supports import SUPPORTS
    from cimf.model.operators import implicit_summary
    from cimf.network.batches import as_batches, as_list
    from cimf.network.export import save_state
    from cimf.network.layers import working_dtype

    if support not in SUPPORTS:
        raise UnknownNameError("support", support, SUPPORTS)
    run = RunFolder.claim(
        folder,
        {**settings, "design": "layered", "target_sparsity": target_sparsity, "support": support},
        overwrite,
    )
    net, *given = network()
    batches, *test = (as_list("input", part) for part in given)
    result = cast(
        "SparseNetwork",
        sparsify(
            net,
            batches,
            design="layered",
            target_sparsity=target_sparsity,
            support=support,
            test=test[0] if test else None,
            n_jobs=n_jobs,
        ),
    )
    report = result.report
    samples, *_ = as_batches((test[0] if test else batches)[:1], working_dtype(net))
    text = f"{report}\n\n{implicit_summary(result.network, samples)}\n"
    out.print(text, soft_wrap=True, markup=False)
    save_state(result.network, run.path / "network.safetensors")
    run.finish(
        {"report.txt": text},
        ("network.safetensors",),
        sparsity=report.sparsity,
        evaluation=asdict(report.evaluation) if report.evaluation else None,
        seconds=report.seconds,
    )
    out.print(f"written to {run.path}/: network.safetensors, report.txt, manifest.json")
    return result


def _write(
    name: str,
    run: RunFolder,
    reference: Reference,
    results: Sequence[Sparsified],
    seconds: Mapping[str, float],
    models: bool,
    paper: bool,
) -> None:
    """Print the table and write every file of the run."""
    table = tidy(result.report for result in results)
    out.print(name, style="bold")
    for (design, rescale), part in table.groupby(["design", "rescale"], sort=False):
        title = f"design {design}, states {'rescaled' if rescale else 'as captured'}"
        print_table(*render(part, TERMINAL), title=title)
    summary = [*_summary(reference, table), *_notes(results)]
    for line in summary:
        out.print(line)
    binary = ["sweep.png"]
    plot_sweep(table, run.path / "sweep.png", name)
    if models:
        for result in results:
            report = result.report
            scaled = "rescaled" if report.rescale else "plain"
            binary.append(f"model-{report.design}-{scaled}-{shortest(report.kappa)}.safetensors")
            result.model.save(run.path / binary[-1])
    heading, rows = render(table, FULL, paper=paper)
    first = results[0].report
    run.finish(
        {
            "sweep.csv": table.to_csv(index=False),
            "sweep.md": f"# {name}\n\n{markdown(heading, rows)}\n"
            + "".join(f"- {line}\n" for line in (*summary, *_LEGEND, *([_PAPER] if paper else []))),
            "sweep.tex": latex(heading, rows),
            "report.txt": "\n\n".join(str(result.report) for result in results) + "\n",
        },
        tuple(binary),
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
    out.print(f"written to {run.path}/: {', '.join(['sweep.csv', 'sweep.md', *binary])}, ...")


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
    "worst gap: the largest duality gap of a row, relative to 1/2 ||z||^2; a row is certified at "
    "the tolerance that manifest.json names.",
)
_PAPER = (
    "paper columns: accuracy / sparsity in percent at the same kappa as published, for other "
    "networks and other data: an orientation, not a comparison."
)
