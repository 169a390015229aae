"""`python -m experiments NAME`: regenerate a table or a figure."""

from __future__ import annotations

import typer

from experiments import (
    ablation,
    calibration_images,
    fashion,
    fashion_layered,
    gate_runs,
    newsgroups,
    resnet20,
    sim_robustness,
    sim_teacher,
    table2,
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
app.command("gates")(gate_runs.control)
app.command("gates-dynamics")(gate_runs.dynamics)
app.command("newsgroups")(newsgroups.main)
app.command("resnet20")(resnet20.cifar10)
app.command("resnet20-cifar100")(resnet20.cifar100)
app.command("resnet20-calibration")(calibration_images.main)
app.command("resnet20-ablation")(ablation.main)
app.command("sim-robustness")(sim_robustness.main)
app.command("sim-robustness-cifar10")(sim_robustness.cifar10)
app.command("sim-teacher")(sim_teacher.main)
app.command("table2")(table2.main)

if __name__ == "__main__":
    app(prog_name="python -m experiments")
