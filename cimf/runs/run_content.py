"""A finished run as its folder holds it: manifest, tables and texts, of any age and kind."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cimf.errors import RunError
from cimf.runs.terminal import duration

MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
REPORT = "report.html"
LOCK = ".lock"

# What every manifest ever written has, and of which type.
_REQUIRED = {"settings": dict, "files": list, "command": str, "versions": dict}
# What it may lack.
_OPTIONAL = ("commit", "threads", "points_of_other_commits")
# Pairs of columns that say how many row problems there were, and how many passed.
_CERTIFIED = (("solved_rows", "certified_rows"), ("rows", "certified"))


@dataclass(frozen=True)
class Table:
    """A CSV file of a run, every cell as its text.

    Attributes
    ----------
    name : str
        Of the file.
    heading : tuple of str
    rows : tuple of tuple of str
    """

    name: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        k = self.heading.index(name)
        return [row[k] for row in self.rows]

    def numbers(self, name: str) -> list[float]:
        """Return the finite numbers of a column; empty where there is no such column."""
        cells = self.column(name) if name in self.heading else []
        found = [as_number(cell) for cell in cells]
        return [value for value in found if value is not None]

    def key(self, columns: Sequence[str] | None = None) -> tuple[str, ...] | None:
        """Return the fewest first columns that tell all rows apart; None where none do.

        Tables are tidy: what a row was asked (method, kappa, ...) stands before what it measured.
        """
        names = self.heading if columns is None else tuple(columns)
        for k in range(1, len(names) + 1):
            cells = zip(*(self.column(name) for name in names[:k]), strict=True)
            if len(set(cells)) == len(self.rows):
                return names[:k]
        return None

    @property
    def certified(self) -> tuple[str, str] | None:
        """The columns of rows in all and rows with a certificate, where the table has them."""
        for pair in _CERTIFIED:
            if "worst_gap" in self.heading and set(pair) <= set(self.heading):
                return pair
        return None


class Spent(NamedTuple):
    """How long a run took, or at least took where `whole` is false."""

    seconds: float
    whole: bool

    def __str__(self) -> str:
        return f"{'' if self.whole else 'at least '}{duration(self.seconds)}"


@dataclass(frozen=True)
class RunContent:
    """What a folder of a finished run holds.

    Attributes
    ----------
    path : Path
    record : Mapping
        The manifest.
    files : tuple of str
        Those of the manifest that are there; `missing` are the others.
    missing : tuple of str
    """

    path: Path
    record: Mapping[str, Any]
    files: tuple[str, ...]
    missing: tuple[str, ...]

    @classmethod
    def read(cls, folder: str | Path) -> RunContent:
        """Read the manifest of a finished run.

        Raises
        ------
        RunError
            The folder is absent, holds no run or an unfinished one; or its manifest is damaged.
        """
        path = Path(folder)
        if not path.is_dir():
            raise RunError(f"{path} is no folder; give the folder of a run, with a {MANIFEST}")
        if not (path / MANIFEST).exists():
            raise RunError(_why_no_run(path))
        try:
            record = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path / MANIFEST} cannot be read ({error}); run it again") from error
        sections = record if isinstance(record, dict) else {}
        wrong = [key for key, kind in _REQUIRED.items() if not isinstance(sections.get(key), kind)]
        wrong += [key for key in _OPTIONAL if not isinstance(sections.get(key) or {}, dict)]
        if wrong:
            raise RunError(
                f"{path / MANIFEST} is not a manifest that this version of cimf can read: it has "
                f"no valid {', '.join(wrong)}; run it again"
            )
        # By their last part: a manifest cannot name files of other folders.
        names = dict.fromkeys(Path(str(name)).name for name in record["files"])
        names.pop(REPORT, None)
        there = {name: (path / name).is_file() for name in names}
        return cls(
            path,
            record,
            tuple(name for name, found in there.items() if found),
            tuple(name for name, found in there.items() if not found),
        )

    def named(self, *endings: str) -> list[str]:
        """Return the files with one of these endings, in the order of the manifest."""
        return [name for name in self.files if Path(name).suffix in endings]

    def data(self, name: str) -> bytes:
        """Return a file.

        Raises
        ------
        RunError
            It cannot be read.
        """
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise RunError(f"{self.path / name} cannot be read ({error.strerror})") from error

    def text(self, name: str) -> str:
        """Return a text file.

        Raises
        ------
        RunError
            It cannot be read, or is no text.
        """
        try:
            return self.data(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RunError(f"{self.path / name} is no text ({error})") from error

    def tables(self) -> list[Table]:
        """Return the CSV files.

        Raises
        ------
        RunError
            One of them is no table.
        """
        found = []
        for name in self.named(".csv"):
            try:
                lines = [tuple(line) for line in csv.reader(io.StringIO(self.text(name))) if line]
            except csv.Error as error:
                raise RunError(f"{self.path / name} is no table ({error})") from error
            if not lines or {len(line) for line in lines} != {len(lines[0])}:
                raise RunError(f"{self.path / name} is no table: its lines differ in length")
            found.append(Table(name, lines[0], tuple(lines[1:])))
        return found

    def spent(self) -> Spent | None:
        """Return how long the run took; None where nothing says it.

        Older manifests hold the seconds of some steps only, and the tables those of their rows: a
        lower bound.
        """
        if isinstance(total := self.record.get("wall_seconds"), (int, float)):
            return Spent(float(total), True)
        steps = dict(flat({"": self.record.get("seconds")}))
        found = [value for value in map(as_number, steps.values()) if value is not None]
        found += [value for table in self.tables() for value in table.numbers("seconds")]
        return Spent(sum(found), False) if found else None


def _why_no_run(path: Path) -> str:
    """Say why a folder without a manifest is no finished run, and what to do."""
    if (path / UNFINISHED).exists():
        return (
            f"{path} holds an unfinished run; the command that began it goes on and ends with a "
            "report"
        )
    inside = sorted(str(found.parent) for found in path.glob(f"*/{MANIFEST}"))
    if inside:
        return f"{path} holds no {MANIFEST}, but runs: give one of {', '.join(inside)}"
    return f"{path} holds no {MANIFEST}: it is not the folder of a run"


def as_number(text: str) -> float | None:
    """Return a finite number, or None where the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every entry of a nested record as "outer, inner" and text; lists are one entry."""
    for key, value in record.items():
        name = f"{prefix}, {key}" if prefix else str(key)
        if isinstance(value, dict) and value:
            yield from flat(value, name)
        elif isinstance(value, list) and not any(isinstance(v, (dict, list)) for v in value):
            yield name, ", ".join(map(_in_words, value)) or "none"
        else:
            yield name, _in_words(value)


def _in_words(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value)


def without(record: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return a record without some keys."""
    return {key: value for key, value in record.items() if key not in keys}
