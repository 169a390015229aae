"""Accuracy of ResNet-20 against the number of calibration images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Levels, Overwrite, Tests, listed_levels
from experiments.resnet20 import task


def main(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path(
        "results/resnet20-calibration"
    ),
    images: Annotated[str, typer.Option(help="Numbers of images, comma-separated.")] = (
        "100,500,1000,2000,4000"
    ),
    tests: Tests = None,
    levels: Levels = "0.8,0.9",
    overwrite: Overwrite = False,
) -> None:
    """ResNet-20 on CIFAR-10 against the number of calibration images."""
    with one_line_errors():
        from cimf.data import corpora, networks
        from cimf.runs.terminal import print_table
        from cimf.studies.compare import FAST, OURS, Point, claim, finish, measure, percent
        from cimf.studies.line_figure import plot_lines
        from cimf.studies.sweep_tables import markdown

        name = "ResNet-20, CIFAR-10"
        sizes = sorted({int(size) for size in images.split(",")})
        targets = listed_levels(levels)
        settings = {"network": name, "images": sizes, "levels": targets, "tests": tests}
        with claim(out, settings, overwrite) as run:
            work = task(corpora.cifar10, networks.resnet20_cifar10, sizes[-1], tests)
            methods = {OURS: FAST, "obs": {**FAST, "keep": ("linear",)}}
            rows = measure(run, work, [
                Point(
                    {"method": method, "target": level, "images": size},
                    method,
                    level,
                    options,
                    samples=size,
                )
                for size in sizes
                for level in targets
                for method, options in methods.items()
            ])  # fmt: skip
            series = [(method, level) for level in targets for method in methods]
            title = ["method", "sparsity", *(f"{size:,}" for size in sizes)]
            table = [
                [method, f"{level:.0%}",
                 *(percent(rows, method=method, target=level, images=size) for size in sizes)]
                for method, level in series
            ]  # fmt: skip
            print_table(title, table, title=name, left=2)
            draw = partial(
                plot_lines,
                title=name,
                lines={
                    f"{method}, {level:.0%}": (
                        sizes,
                        [
                            100 * row["accuracy"]
                            for row in rows
                            if (row["method"], row["target"]) == (method, level)
                        ],
                    )
                    for method, level in series
                },
                across="calibration images",
                up="test accuracy (%), logarithmic in the error",
                dense=100 * work.dense,
                bold=[f"layered, {level:.0%}" for level in targets],
                logarithmic=True,
            )
            finish(
                run,
                work,
                rows,
                f"# {name}: calibration images\n\nTest accuracy in percent against the number of "
                f"calibration images; dense {work.dense:.2%}.\n\n{markdown(title, table)}",
                {"images.png": draw},
            )
