"""The run that is in a results folder already: refused, replaced or continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cimf.errors import RunError
from cimf.files import halves_of
from cimf.runs.provenance import fingerprint, to_json
from cimf.runs.run_content import LOCK, MANIFEST, UNFINISHED


class FormerRun(NamedTuple):
    """What a run takes over from the one before; the attributes are those of `RunFolder`."""

    stale: tuple[str, ...]
    points: dict[str, Any]
    commits: dict[str, Any]
    outputs: dict[str, list[str]]
    spent: float


def former_run(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> FormerRun:
    """Return what is kept of the run in a folder: its files; its points if it is the same run.

    Raises
    ------
    RunError
        It is another run, or no run, unless `overwrite`.
    """
    advice = "; choose another folder, or overwrite it"
    options = ["folder", "overwrite"]
    halves = set(halves_of(folder / UNFINISHED))  # all there is, if it was killed at once
    names = {path.name for path in folder.iterdir() if path not in halves} - {LOCK}
    if names and not names & {MANIFEST, UNFINISHED} and not overwrite:
        raise RunError(f"{folder} holds files but no {MANIFEST}{advice}", options=options)
    files: list[str] = []
    kept: tuple[dict[str, Any], dict[str, Any], dict[str, list[str]], float] = {}, {}, {}, 0.0
    for name in sorted(names & {MANIFEST, UNFINISHED}):
        try:
            old = json.loads((folder / name).read_text(encoding="utf-8"))
            same = old["fingerprint"] == fingerprint(settings)
            files += [Path(file).name for file in old["files"]]
            if name == UNFINISHED and same:
                seconds = float(old.get("wall_seconds", 0.0))
                kept = dict(old["points"]), dict(old["commits"]), old.get("outputs", {}), seconds
            difference = "" if same else _difference(old["settings"], settings)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not overwrite:
                raise RunError(
                    f"{folder / name} cannot be read ({error}){advice}", options=options
                ) from error
            continue
        if difference and not overwrite:
            raise RunError(f"{folder} holds another run ({difference}){advice}", options=options)
    return FormerRun(tuple(files), *kept)


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    """Return in a few words which settings differ."""
    old = old if isinstance(old, dict) else {}
    new = json.loads(to_json(new))
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "other " + ", ".join(keys) if keys else "other settings"
