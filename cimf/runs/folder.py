"""Results folders: one run each, every file written as soon as it is known, the manifest last.

A long run keeps its finished points in one file until then (`RunFolder.once`), so that it continues
where it was interrupted. Two runs never write to one folder at the same time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cimf.errors import RunError, warn_outside
from cimf.files import halves_of, write_text
from cimf.runs.companions import table_beside
from cimf.runs.former_run import former_run
from cimf.runs.provenance import commit, fingerprint, manifest, to_json
from cimf.runs.report_page import write_report
from cimf.runs.run_content import LOCK, MANIFEST, REPORT, UNFINISHED


@dataclass(frozen=True)
class RunFolder:
    """A folder that this run alone may write to; made by `claim`, before any work is done.

    As a context manager it is let go at the end of the block, else by `finish`.

    Attributes
    ----------
    path : Path
    lock : FileLock
        Held until the folder is let go; the operating system lets go of it with the process.
    made : tuple of Path
        The folders that `claim` made, this one first; removed again if they are left empty.
    settings : Mapping
        What decides the result; see `cimf.runs.provenance.fingerprint`.
    stale : tuple[str, ...]
        Files of the run that stood here before; those not written again are removed at the end.
    points : dict of str to Any
        What `once` returned so far, in this run and in one of the same settings that was
        interrupted.
    commits : dict of str to Any
        The commit that measured each point, as `cimf.runs.provenance.commit`.
    outputs : dict of str to list of str
        The files that each point wrote itself: a run that is continued has them, too.
    spent : float
        Seconds that interrupted runs took for the points that are kept.
    began : float
        When this run began, as `time.perf_counter`.
    commit : dict or None
        The commit when the run began.
    written : list of str
        The files that `write` wrote so far.
    """

    path: Path
    lock: FileLock
    made: tuple[Path, ...]
    settings: Mapping[str, Any]
    stale: tuple[str, ...] = ()
    points: dict[str, Any] = field(default_factory=dict)
    commits: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, list[str]] = field(default_factory=dict)
    spent: float = 0.0
    began: float = field(default_factory=lambda: time.perf_counter())
    commit: dict[str, Any] | None = field(default_factory=lambda: commit())
    written: list[str] = field(default_factory=list)

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
            If it holds another run, or files of unknown origin, unless `overwrite`; another run
            is writing to it; or it cannot be written.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; choose another folder", options=["folder"])
        lock, made = _locked(folder)
        try:
            run = cls(folder, lock, made, dict(settings), *former_run(folder, settings, overwrite))
            for name in (MANIFEST, UNFINISHED, REPORT, *run.stale):
                for half in halves_of(folder / name):
                    half.unlink(missing_ok=True)
            return run
        except BaseException:
            _let_go(folder, lock, made)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(self.kept)
        _let_go(self.path, self.lock, self.made)

    @property
    def wall_seconds(self) -> float:
        """How long the run took so far, with the runs that it continues."""
        return self.spent + time.perf_counter() - self.began

    @property
    def kept(self) -> str:
        """What an interrupted run leaves, and what the same command would do with it."""
        if self.written and (self.path / MANIFEST).exists():
            return f"{self.path} is finished, but its {REPORT} may be missing"
        files = sorted(self.written)
        there = [f"{len(self.points)} finished point(s)"] if self.points else []
        there += [", ".join(files)] if files else []
        if not there:
            return f"nothing was written to {self.path} yet"
        again = "goes on with the others" if self.points else "begins again and replaces them"
        return f"{self.path} keeps {' and '.join(there)}: the same command {again}"

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
            before = tuple(self.written)
            value = json.loads(to_json({"": work()}))[""]
            self.outputs[key] = [name for name in self.written if name not in before]
            self.points[key], self.commits[key] = value, self.commit
            self._record()
        self.written.extend(n for n in self.outputs.get(key, ()) if n not in self.written)
        return self.points[key]

    def resumed(self, key: str, work: Callable[[Path], Any]) -> Any:
        """As `once`, for long work that keeps a checkpoint of its own in the file it is given.

        The file, and those whose names go on from its, are removed once the point is there.
        """
        name = f"unfinished-{fingerprint({'point': key})[:12]}.pt"
        if key not in self.points:
            self._record(name)  # before the file: a folder of unknown files is refused
        value = self.once(key, lambda: work(self.path / name))
        for path in self.path.glob(f"{name}*"):
            path.unlink()
        return value

    def write(self, name: str, content: str | Callable[[Path], object]) -> None:
        """Write a file of the run now, so that nothing that comes after can lose it.

        Parameters
        ----------
        name : str
            May be written again, as a table that grows.
        content : str, or Path -> object
            The text; or a function that writes the file, atomically.
        """
        if name not in self.written:
            self._record(name)  # an interrupted run may have left it
            for old in (MANIFEST, REPORT):  # they spoke of the files that go now
                (self.path / old).unlink(missing_ok=True)
        if isinstance(content, str):
            write_text(self.path / name, content)
        else:
            content(self.path / name)
        if name not in self.written:
            self.written.append(name)

    def finish(
        self,
        files: Mapping[str, str],
        figures: Mapping[str, Callable[[Path], object]] | None = None,
        **sections: Any,
    ) -> None:
        """Write text files, figures, manifest and report; remove other files of ours.

        A figure that fails raises when the manifest is written: the numbers are there by then. A
        report that fails is a warning. Interrupted before the manifest is there, the run is one
        that the same command continues. The manifest's commit is that of the beginning; points
        that an interrupted run measured at another commit are listed.

        Parameters
        ----------
        files
            Name -> content. Tables come in their second format too, see
            `cimf.runs.companions.table_beside`.
        figures
            Name -> function that draws the file, atomically, in the format of its ending; a PNG
            comes as PDF too.
        **sections
            What was measured, for the manifest.
        """
        try:
            for name, text in files.items():
                self.write(name, text)
            for name in tuple(self.written):
                if beside := table_beside(self.path / name):
                    self.write(*beside)
            failure = self._draw(figures or {})
            sections |= {"commit": self.commit, "wall_seconds": self.wall_seconds}
            others = {key: value for key, value in self.commits.items() if value != self.commit}
            if others:
                sections["points_of_other_commits"] = others
            record = manifest(self.settings, files=sorted(self.written), **sections)
            write_text(self.path / MANIFEST, to_json(record) + "\n")
            for name in {*self.stale, UNFINISHED, REPORT} - set(self.written):
                (self.path / name).unlink(missing_ok=True)
            self._report(record)
        finally:
            _let_go(self.path, self.lock, self.made)
        if failure is not None:
            raise failure

    def _draw(self, figures: Mapping[str, Callable[[Path], object]]) -> Exception | None:
        """Write the figures; return why one could not be drawn."""
        try:
            for name, draw in figures.items():
                self.write(name, draw)
                if name.endswith(".png"):
                    self.write(f"{name[:-4]}.pdf", draw)
        except Exception as error:
            return error
        return None

    def _report(self, record: Mapping[str, Any]) -> None:
        """Write the report of what is there by now, and the manifest that names it."""
        try:
            write_report(self.path)
        except Exception as error:
            warn_outside(f"{self.path} has no {REPORT}, all else is there: {error!r}")
            return
        self.written.append(REPORT)
        record = {**record, "files": sorted(self.written)}
        write_text(self.path / MANIFEST, to_json(record) + "\n")

    def _record(self, *coming: str) -> None:
        """Write down what there is of a run that is not finished."""
        record = {
            "fingerprint": fingerprint(self.settings),
            "settings": self.settings,
            "points": self.points,
            "commits": self.commits,
            "outputs": self.outputs,
            "wall_seconds": self.wall_seconds,
            "files": sorted({*self.stale, *self.written, *coming}),
        }
        write_text(self.path / UNFINISHED, to_json(record) + "\n")


def _locked(folder: Path) -> tuple[FileLock, tuple[Path, ...]]:
    """Make the folder and hold its lock; return also which folders were made, innermost first."""
    made = tuple(path for path in (folder, *folder.parents) if not path.exists())
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise RunError(
            f"another run is writing to {folder}; wait for it, or choose another folder",
            options=["folder"],
        ) from None
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}); choose another folder",
            options=["folder"],
        ) from error
    return lock, made


def _let_go(folder: Path, lock: FileLock, made: tuple[Path, ...]) -> None:
    """Let another run have the folder; it and those above it go if nothing was written to them."""
    if lock.is_locked:
        with suppress(OSError):  # Windows does not remove an open file
            (folder / LOCK).unlink(missing_ok=True)  # still held: it cannot be another run's
        lock.release()
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
