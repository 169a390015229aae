"""Results folders: one run each, written at the end and in one go, the manifest last.

A long run keeps its finished points in one file until then (`RunFolder.once`), so that it continues
where it was interrupted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cimf.errors import RunError
from cimf.files import write_text
from cimf.runs.provenance import commit, fingerprint, manifest, to_json

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"


@dataclass(frozen=True)
class RunFolder:
    """A folder that this run may write to; made by `claim`, before any work is done.

    Attributes
    ----------
    path : Path
    settings : Mapping
        What decides the result; see `cimf.runs.provenance.fingerprint`.
    stale : tuple[str, ...]
        Files of the run that stood here before; those not written again are removed at the end.
    points : dict of str to Any
        What `once` returned so far, in this run and in one of the same settings that was
        interrupted.
    commits : dict of str to Any
        The commit that measured each point, as `cimf.runs.provenance.commit`.
    commit : dict or None
        The commit when the run began.
    """

    path: Path
    settings: Mapping[str, Any]
    stale: tuple[str, ...] = ()
    points: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, Any] = field(default_factory=dict)
    commit: dict[str, Any] | None = field(default_factory=lambda: commit())

    @classmethod
    def claim(
        cls, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False
    ) -> RunFolder:
        """Return the folder if it is empty, absent, or holds the same run, finished or not.

        A finished run is made again; the points of the same run, unfinished, are kept. With
        `overwrite` any other run gives way.

        Raises
        ------
        RunError
            If it holds another run, or files of unknown origin, unless `overwrite`; or it cannot
            be written.
        """
        folder = Path(path)
        advice = "; choose another folder with --out, or replace it with --overwrite"
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; choose another folder with --out")
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if names - {UNFINISHED} and MANIFEST not in names and not overwrite:
            raise RunError(f"{folder} holds files but no {MANIFEST}{advice}")
        files: list[str] = []
        points: dict[str, Any] = {}
        commits: dict[str, Any] = {}
        for name in sorted(names & {MANIFEST, UNFINISHED}):
            try:
                old = json.loads((folder / name).read_text(encoding="utf-8"))
                same = old["fingerprint"] == fingerprint(settings)
                if name == MANIFEST:
                    files = [Path(file).name for file in old["files"]]
                elif same:
                    points, commits = dict(old["points"]), dict(old["commits"])
                difference = "" if same else _difference(old["settings"], settings)
            except (OSError, ValueError, KeyError, TypeError) as error:
                if not overwrite:
                    raise RunError(f"{folder / name} cannot be read ({error}){advice}") from error
                continue
            if difference and not overwrite:
                raise RunError(f"{folder} holds another run ({difference}){advice}")
        _check_writable(folder)
        return cls(folder, dict(settings), tuple(files), points, commits)

    def once(self, key: str, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, or what it returned before the run was interrupted.

        Parameters
        ----------
        key : str
            Names the point within the run.
        work : () -> value
            Its value is returned in its JSON form (NaN is None), and is on the disk by then.
        """
        if key not in self.points:
            self.points[key] = json.loads(to_json({"": work()}))[""]
            self.commits[key] = self.commit
            record = {
                "fingerprint": fingerprint(self.settings),
                "settings": self.settings,
                "points": self.points,
                "commits": self.commits,
            }
            write_text(self.path / UNFINISHED, to_json(record) + "\n")
        return self.points[key]

    def finish(
        self, files: Mapping[str, str], binary: tuple[str, ...] = (), **sections: Any
    ) -> None:
        """Write text files, then the manifest that names them all, then remove other files of ours.

        The manifest's commit is that of the beginning; points that an interrupted run measured at
        another commit are listed.

        Parameters
        ----------
        files
            Name -> content.
        binary
            Names of files that were already written to the folder.
        **sections
            What was measured, for the manifest.
        """
        for name, text in files.items():
            write_text(self.path / name, text)
        names = sorted({*files, *binary})
        sections["commit"] = self.commit
        others = {key: value for key, value in self.commits.items() if value != self.commit}
        if others:
            sections["points_of_other_commits"] = others
        record = manifest(self.settings, files=names, **sections)
        write_text(self.path / MANIFEST, to_json(record) + "\n")
        for name in {*self.stale, UNFINISHED} - set(names):
            (self.path / name).unlink(missing_ok=True)


def _check_writable(folder: Path) -> None:
    """Try to make a folder in `folder`, or in the first one above it that exists."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with --out"
        ) from error


def _difference(old: Any, new: Mapping[str, Any]) -> str:
    """Return in a few words which settings differ."""
    old = old if isinstance(old, dict) else {}
    new = json.loads(to_json(new))
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "other " + ", ".join(keys) if keys else "other settings"
