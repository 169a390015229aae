"""`python -m experiments NAME`: regenerate a table or a figure."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from experiments import (
    ablation,
    all_methods,
    bisection_figures,
    calibration_images,
    fashion,
    fashion_layered,
    figure4,
    gate_runs,
    newsgroups,
    path_of_a_row,
    recovery_runs,
    resnet20,
    sim_robustness,
    sim_sparsity,
    sim_teacher,
    table1,
    table2,
    table3,
)

app = typer.Typer(
    help="Regenerate a table or a figure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Regenerate a table or a figure."""


app.command("fashion")(fashion.main)
app.command("fashion-layered")(fashion_layered.main)
app.command("figure2")(bisection_figures.figure2)
app.command("figure3")(bisection_figures.figure3)
app.command("figure4")(figure4.main)
app.command("gates")(gate_runs.control)
app.command("gates-dynamics")(gate_runs.dynamics)
app.command("newsgroups")(newsgroups.main)
app.command("overview")(all_methods.main)
app.command("recovery")(recovery_runs.main)
app.command("resnet20")(resnet20.cifar10)
app.command("resnet20-cifar100")(resnet20.cifar100)
app.command("resnet20-calibration")(calibration_images.main)
app.command("resnet20-ablation")(ablation.main)
app.command("row-path")(path_of_a_row.main)
app.command("sim-robustness")(sim_robustness.main)
app.command("sim-robustness-cifar10")(sim_robustness.cifar10)
app.command("sim-sparsity")(sim_sparsity.main)
app.command("sim-teacher")(sim_teacher.main)
app.command("table1")(table1.main)
app.command("table2")(table2.main)
app.command("table3")(table3.main)


@app.command("list")
def list_experiments(
    results: Annotated[Path, typer.Option(help="Where the manifests are.")] = Path("results"),
) -> None:
    """Name every experiment, what it shows, and how long its results took."""
    from cimf.runs.terminal import one_line_errors
    from experiments.measured_times import measured_times

    with one_line_errors():
        spent = measured_times(results)
    for command in app.registered_commands:
        name, run = command.name or "", command.callback
        if run is None or run is list_experiments:
            continue
        both = "full" in inspect.signature(run).parameters
        ways = {"quick": name, "full": f"{name} --full"} if both else {"": name}
        times = [f"{way} {spent.get(key, 'not measured')}".strip() for way, key in ways.items()]
        what = (inspect.getdoc(run) or "").partition("\n")[0]
        typer.echo(f"{name} ({', '.join(times)})\n    {what}")


if __name__ == "__main__":
    app(prog_name="python -m experiments")
