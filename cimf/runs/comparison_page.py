"""Several finished runs on one HTML page: what differs, and their tables side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cimf.errors import InputError
from cimf.files import write_text
from cimf.runs.report_page import Certificates, document, figures, notes, page
from cimf.runs.run_content import RunContent, Table, flat


@dataclass(frozen=True)
class SideBySide:
    """Tables of one name, joined where they speak of the same cell.

    Attributes
    ----------
    name : str
        Of the tables.
    runs : tuple of str
        Those that have one.
    key : tuple of str
        The columns that tell the rows of every table apart; empty where the tables have no common
        columns that do.
    same, different : tuple of str
        The other common columns: with the same value in all runs that have the row, or not.
    rows : tuple of tuple of str
        Cells of the key, of every different column run by run ("-" where a run does not have the
        row), and of the same columns.
    """

    name: str
    runs: tuple[str, ...]
    key: tuple[str, ...]
    same: tuple[str, ...]
    different: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, name: str, tables: dict[str, Table]) -> SideBySide:
        """Join the tables, run -> table."""
        first, *others = tables.values()
        common = [c for c in first.heading if all(c in table.heading for table in others)]
        keys = [table.key(common) for table in tables.values()]
        key = max((found for found in keys if found is not None), key=len, default=())
        if None in keys:
            return cls(name, tuple(tables), (), (), (), ())
        rest = [column for column in common if column not in key]
        cells = {
            run: {
                labels: dict(zip(rest, values, strict=True))
                for labels, values in zip(
                    zip(*map(table.column, key), strict=True),
                    zip(*map(table.column, rest), strict=True) if rest else [()] * len(table.rows),
                    strict=True,
                )
            }
            for run, table in tables.items()
        }
        rows = list(dict.fromkeys(labels for found in cells.values() for labels in found))
        different = [
            column
            for column in rest
            if any(len({c[r][column] for c in cells.values() if r in c}) > 1 for r in rows)
        ]
        same = [column for column in rest if column not in different]
        joined = []
        for row in rows:
            there = next(found[row] for found in cells.values() if row in found)
            line = [*row]
            for column in different:
                line += [found.get(row, {}).get(column, "-") for found in cells.values()]
            joined.append((*line, *(there[column] for column in same)))
        return cls(name, tuple(tables), key, tuple(same), tuple(different), tuple(joined))


def write_comparison(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write a page that compares finished runs and return its path.

    Parameters
    ----------
    folders : sequence of path
        At least two, of any kind: tables of the same name are joined on their common columns.
    output : path

    Raises
    ------
    InputError
        Fewer than two folders, or one of them twice.
    RunError
        As `cimf.runs.report_page.write_report`.
    """
    paths = [Path(folder).resolve() for folder in folders]
    if len(set(paths)) < max(len(paths), 2):
        raise InputError("a comparison needs two or more different folders of runs")
    write_text(output, comparison_page([RunContent.read(folder) for folder in folders]))
    return Path(output)


def comparison_page(contents: Sequence[RunContent]) -> str:
    """Return the page as HTML."""
    names = _names([content.path for content in contents])
    runs = dict(zip(names, contents, strict=True))
    tables: dict[str, dict[str, Table]] = {}
    pictures: dict[str, list[tuple[str, str]]] = {}
    warned = []
    facts: dict[str, dict[str, str]] = {}
    for name, content in runs.items():
        found = content.tables()
        certificates = [cells for table in found if (cells := Certificates.of(table))]
        for table in found:
            tables.setdefault(table.name, {})[name] = table
        for file, address in figures(content):
            pictures.setdefault(file, []).append((name, address))
        warned += [f"{name}: {note}" for note in notes(content, certificates)]
        facts[name] = _facts(content, found, certificates)
    return page(
        "comparison.html",
        title=f"{len(runs)} runs side by side: {', '.join(names)}",
        runs=names,
        facts=_lines(facts),
        notes=warned,
        settings=differing({name: dict(flat(c.record["settings"])) for name, c in runs.items()}),
        versions=differing({name: dict(flat(c.record["versions"])) for name, c in runs.items()}),
        tables=[SideBySide.of(name, found) for name, found in tables.items() if len(found) > 1],
        alone=[(name, run) for name, found in tables.items() if len(found) == 1 for run in found],
        figures=pictures,
    )


def differing(records: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
    """Return key and value in every run of what is not the same in all, "-" where it is absent."""
    return [line for line in _lines(records) if len(set(line[1:])) > 1]


def _lines(records: dict[str, dict[str, str]]) -> list[tuple[str, ...]]:
    """Return a line per key: the key and its value in every record."""
    keys = dict.fromkeys(key for record in records.values() for key in record)
    return [(key, *(record.get(key, "-") for record in records.values())) for key in keys]


def _facts(
    content: RunContent, tables: Sequence[Table], certificates: Sequence[Certificates]
) -> dict[str, str]:
    """Return what a reader compares first."""
    record = content.record
    titles = [document(content.text(name))[0] for name in content.named(".md")]
    accuracies = [value for table in tables for value in table.numbers("accuracy")]
    gaps = [table.worst for table in certificates if table.worst is not None]
    dense = record.get("dense_accuracy")
    return {
        "run": titles[0] if titles else "-",
        "command": record["command"],
        "written": str(record.get("written", "-")),
        "commit": str((record.get("commit") or {}).get("id", "-"))[:12],
        "time": str(content.spent() or "not measured"),
        "dense accuracy": f"{dense:.2%}" if isinstance(dense, float) else "-",
        "best accuracy in a table": f"{max(accuracies):.2%}" if accuracies else "-",
        "worst gap": f"{max(gaps):.1e}" if gaps else "-",
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what tells the folders apart, without what is common to all of them."""
    whole = [path.resolve() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in whole]))
    return [path.relative_to(root).as_posix() for path in whole]
