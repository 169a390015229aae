"""What each part of the layered method is worth on ResNet-20, one change at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Images, Levels, Overwrite, Tests, listed_levels
from experiments.resnet20 import task

if TYPE_CHECKING:
    from cimf.methods.layered.supports import Rule

# Supports are shown before and after the exact exchanges.
BALLS = {
    "ball, weights 1": ("ones", 0),
    "ball, weights 1/|w|": ("inverse", 0),
    "ball, weights 1/|w|, 3 rounds of reweighting": ("inverse", 3),
    "ball, weights 1/saliency": ("saliency", 0),
    "ball, weights 1/saliency, 3 rounds of reweighting": ("saliency", 3),
}
# Changes of one option of the default.
CHANGES: dict[str, dict[str, Any]] = {
    "rows by error over variance": {"allocation": "error"},
    "rows uniform, head dense": {"allocation": "uniform", "keep": ("linear",)},
    "no error correction": {"correct": False},
    "no polish": {"polish": False},
    "rows by effect on the softmax": {"metric": "softmax"},
    "damping 1e-2": {"damping": 1e-2},
    "32 positions": {"positions": 32},
}


def main(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/resnet20-ablation"),
    images: Images = 1000,
    tests: Tests = None,
    levels: Levels = "0.9",
    overwrite: Overwrite = False,
) -> None:
    """ResNet-20 on CIFAR-10: variants of the layered method at the same non-zeros."""
    with one_line_errors():
        from cimf.data import corpora, networks
        from cimf.methods.layered.supports import ball, magnitude, obs
        from cimf.runs.terminal import print_table
        from cimf.studies.compare import FAST, OURS, Point, claim, finish, measure, percent
        from cimf.studies.sweep_tables import markdown

        name = f"ResNet-20, CIFAR-10, {images:,} calibration images"
        targets = listed_levels(levels)
        supports: dict[str, Rule] = {
            "OBS": obs,
            "magnitude": magnitude,
            **{
                key: partial(ball, weighting=weighting, reweight=rounds)
                for key, (weighting, rounds) in BALLS.items()
            },
        }
        variants: dict[str, dict[str, Any]] = {
            f"{key}{', swaps' if swaps else ''}": {"support": rule, "swaps": swaps}
            for key, rule in supports.items()
            for swaps in (False, True)
        }
        variants |= {f"OBS, swaps, {key}": change for key, change in CHANGES.items()}
        settings = {
            "network": name, "levels": targets, "tests": tests, "variants": list(variants),
            "balls": BALLS, "changes": CHANGES,
        }  # fmt: skip
        with claim(out, settings, overwrite) as run:
            work = task(corpora.cifar10, networks.resnet20_cifar10, images, tests)
            rows = measure(run, work, [
                Point({"variant": variant, "target": level}, OURS, level, {**FAST, **options})
                for variant, options in variants.items()
                for level in targets
            ])  # fmt: skip
            title = ["variant", *(f"{level:.0%}" for level in targets), "certified"]
            table = [
                [variant, *(percent(rows, variant=variant, target=level) for level in targets),
                 _certified([row for row in rows if row["variant"] == variant])]
                for variant in variants
            ]  # fmt: skip
            print_table(title, table, title=name)
            finish(
                run,
                work,
                rows,
                f"# {name}: variants\n\nTest accuracy in percent, dense {work.dense:.2%}. The "
                "default is `OBS, swaps`: supports by Optimal Brain Surgeon improved by exact "
                "exchanges, rows by their measured effect on the output. Certified: rows of the "
                "convex problems behind the supports whose certificate passed.\n\n"
                f"{markdown(title, table)}",
            )


def _certified(rows: list[dict[str, Any]]) -> str:
    solved = sum(row["solved_rows"] for row in rows)
    return f"{sum(row['certified_rows'] for row in rows):,} of {solved:,}" if solved else "-"
