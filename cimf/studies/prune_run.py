"""One sparse network that ends in a results folder: weights, report, manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cimf.errors import CimfError
from cimf.evaluate.held_out import HeldOut
from cimf.evaluate.main_job import as_task
from cimf.methods.base import Pruned, Task, run_method
from cimf.methods.by_name import METHODS
from cimf.methods.layered.cost import estimated_seconds, exact_is_affordable
from cimf.methods.layered.prune_layers import LayeredOptions
from cimf.model.operators import implicit_summary
from cimf.network.batches import as_batches, as_list, one_tensor
from cimf.network.layers import working_dtype
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import duration, err, out, progress_bar

WEIGHTS, REPORT = "network.safetensors", "report.txt"


def run_prune(
    folder: str | Path,
    settings: Mapping[str, Any],
    network: Callable[[], tuple[Any, ...]],
    sparsity: float | None,
    method: str = "layered",
    *,
    options: Mapping[str, Any],
    overwrite: bool = False,
) -> Pruned:
    """Prune a network and write a results folder.

    Parameters
    ----------
    folder : path
        Receives network.safetensors (the state dict), report.txt and manifest.json; refused before
        any work is done if it holds another run. The weights are written as soon as they are there.
    settings : mapping
        What decides the result besides the arguments below.
    network : () -> (net, calibration batches) or (net, calibration batches, test batches)
        Called once the folder is known to be free. Labelled test batches give accuracies.
    sparsity, method, options
        As `cimf.prune`.
    overwrite : bool
        Replace another run.

    Raises
    ------
    CimfError
        As `cimf.prune`.
    """
    found = METHODS[method]
    record = found.checked(method, sparsity, options)
    decisive = {key: str(value) for key, value in options.items() if key != "n_jobs"}
    settings = {**settings, "sparsity": sparsity, "method": method, "options": decisive}
    with RunFolder.claim(folder, settings, overwrite) as run:
        net, *given = network()
        batches, *test = (as_list("batches", part) for part in given)
        task = as_task(net, batches, method)
        held_out = HeldOut(net, test[0]) if test else None
        if "progress" in found.option_names:
            if isinstance(record, LayeredOptions) and sparsity is not None:
                _say_estimate(task, sparsity, record)
            with progress_bar("layers", len(task.graph.layers)) as progress:
                result = run_method(
                    task, method, found, sparsity, replace(record, progress=progress)
                )
        else:  # what trains shows its own
            result = run_method(task, method, found, sparsity, record)
        run.write(WEIGHTS, result.save)  # what follows may fail: the result is there
        run.write(REPORT, f"{result.report}\n")
        if held_out is not None:
            result = held_out.evaluated(result)
        report = result.report
        out.print(str(report), soft_wrap=True, markup=False)
        implicit = _implicit(result, test[0] if test else batches)
        out.print(f"\n{implicit}", soft_wrap=True, markup=False)
        run.finish(
            {REPORT: f"{report}\n\n{implicit}\n"},
            source=found.source,
            sparsity=report.sparsity,
            evaluation=asdict(report.evaluation) if report.evaluation else None,
            seconds=report.seconds,
        )
    out.print(f"written to {run.path}/: {', '.join(run.written)}, manifest.json")
    return result


def _say_estimate(task: Task, sparsity: float, options: LayeredOptions) -> None:
    """Say how long the rows will take, and which layers are so wide that ADMM solves them."""
    if options.structure is not None or options.support != "auto":
        return
    layers = task.graph.layers
    sizes = [(layer.n_rows, layer.n_columns) for layer in layers]
    surveyed = isinstance(options.allocation, str) and options.allocation != "uniform"
    seconds = estimated_seconds(sizes, 1.0 - sparsity, surveyed, options.n_jobs)
    wide = [
        f"{layer.path or 'the network itself'} ({layer.n_rows:,} x {layer.n_columns:,})"
        for layer in layers
        if not exact_is_affordable(layer.n_rows // layer.groups, layer.n_columns)
    ]
    by_admm = f"; by ADMM: {', '.join(wide)}" if wide else ""
    err.print(
        f"rows of {len(layers)} layers: about {duration(seconds)} on free cores, without the "
        f"forward passes and their statistics{by_admm}",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _implicit(result: Pruned, batches: list[Any]) -> str:
    """Say what the network is as an implicit model, or why it is none."""
    try:
        given = as_batches(batches[:1], working_dtype(result.network))
        samples, *_ = one_tensor(given, "an implicit model")
        return implicit_summary(result.network, samples)
    except CimfError as error:
        return f"no implicit model: {error}"
