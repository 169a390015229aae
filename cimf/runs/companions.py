"""Results in a second format: Parquet beside CSV, LaTeX beside Markdown, PDF beside PNG."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cimf.files import atomic_path

# Of the file itself, so that equal figures are equal bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure atomically, as PNG or PDF by the ending of the name."""
    kind = path.suffix[1:]
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, metadata=_METADATA[kind])


def table_beside(path: Path) -> tuple[str, str | Callable[[Path], object]] | None:
    """Return name and content of a table in its second format; None where there is none.

    A CSV file gives Parquet, where pyarrow is installed; a Markdown file with tables gives LaTeX.
    """
    if path.suffix == ".csv" and find_spec("pyarrow") is not None:
        return path.with_suffix(".parquet").name, lambda place: _write_parquet(path, place)
    if path.suffix == ".md":
        tables = [latex(*table) for table in _tables(path.read_text(encoding="utf-8"))]
        return (path.with_suffix(".tex").name, "\n".join(tables)) if tables else None
    return None


def _write_parquet(path: Path, place: Path) -> None:
    from pyarrow import csv, parquet

    with atomic_path(place) as temporary:
        parquet.write_table(csv.read_csv(path), temporary)


def _tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """Return heading and rows of every table of a Markdown text."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        lines = [
            [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append((lines[0], lines[2:]))
    return found


def latex(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a LaTeX tabular for the booktabs package."""
    body = [" & ".join(_escape(cell) for cell in row) + r" \\" for row in (heading, *rows)]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}",
        r"\toprule",
        body[0],
        r"\midrule",
        *body[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"([%_&#$])", r"\\\1", text)
