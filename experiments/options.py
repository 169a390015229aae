"""Options that the experiments share, and what their values mean."""

from __future__ import annotations

from typing import Annotated

import typer

from cimf.errors import InputError, UnknownNameError

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another run in --out.")]
Images = Annotated[int, typer.Option(help="Calibration images, without labels.")]
Tests = Annotated[int | None, typer.Option(help="Test samples; default: all.")]
Methods = Annotated[str | None, typer.Option(help="Comma-separated; default: all.")]
Levels = Annotated[str, typer.Option(help="Target sparsities, comma-separated.")]
Full = Annotated[
    bool, typer.Option("--full/--quick", help="Real data; or the digits of scikit-learn.")
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Measure the other cells where one fails.")
]
Networks = Annotated[
    str | None, typer.Option("--network", help="Comma-separated, in place of the default ones.")
]


def listed_levels(text: str) -> list[float]:
    """Return target sparsities from "0.6,0.9".

    Raises
    ------
    InputError
        Something that is no number in [0, 1).
    """
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0.0 <= level < 1.0 for level in levels):
        raise InputError(f"--levels {text!r}: numbers in [0, 1) needed, as in 0.6,0.9")
    return levels


def listed_methods(text: str | None) -> tuple[str, ...]:
    """Return names of methods from "layered,obs"; all of them for None.

    Raises
    ------
    UnknownNameError
    """
    from cimf.studies.compare import ONE_SHOT

    names = ONE_SHOT if text is None else tuple(text.split(","))
    for name in names:
        if name not in ONE_SHOT:
            raise UnknownNameError("method", name, ONE_SHOT)
    return names
