"""Tables of layers and what was proved, read back from the reports that a run wrote as text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cimf.runs.run_content import as_number

# A line of `cimf.methods.stacked.model_report` about a block of rows.
_BLOCK = re.compile(
    r"  block (.+): ([\d,]+) weights in ([\d,]+) rows"
    r"(?:, state error (\S+), drift of the equilibrium ([^,\s]+))?(?:, (.*))?"
)
_BLOCK_HEADING = ("block", "weights", "rows", "state error", "drift", "emptied")
_STATEMENTS = ("proved: ", "not proved: ", "certificate ", "well-posed ")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?(?!\w)")


@dataclass(frozen=True)
class LayerTable:
    """The report of one network or model.

    Attributes
    ----------
    title : str
        Its first line; empty where the report begins with its table.
    heading : tuple of str
        Empty where it has no table.
    rows : tuple of tuple of str
    shares : tuple of float
        A bar for each row, in [0, 1]: `drawn`.
    drawn : str
        The column that the bars show.
    rest : tuple of str
        The other lines.
    """

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    drawn: str
    rest: tuple[str, ...]


def layer_tables(text: str) -> list[LayerTable]:
    """Return the reports of a text; empty where none of them has a table of layers."""
    found = [_parsed(block.splitlines()) for block in re.split(r"\n\s*\n", text) if block.strip()]
    return found if any(report.heading for report in found) else []


def _parsed(lines: Sequence[str]) -> LayerTable:
    heading: tuple[str, ...] = ()
    title = ""
    rows: list[tuple[str, ...]] = []
    rest: list[str] = []
    for line in lines:
        names = tuple(re.split(r"\s{2,}", line.strip()))
        if not heading and names[0] == "layer" and {"kept", "sparsity"} <= set(names):
            heading = names
        elif (block := _BLOCK.fullmatch(line)) and heading in ((), _BLOCK_HEADING):
            heading = _BLOCK_HEADING
            rows.append(tuple(part or "" for part in block.groups()))
        elif heading and not rest and len(line.split()) == len(heading):
            rows.append(tuple(line.split()))
        elif line is lines[0]:
            title = line
        else:
            rest.append(line)
    drawn = "sparsity" if "sparsity" in heading else "weights"
    values = [_value(row[heading.index(drawn)]) for row in rows]
    top = 100.0 if drawn == "sparsity" else max(values, default=1.0) or 1.0
    shares = tuple(min(max(value / top, 0.0), 1.0) for value in values)
    return LayerTable(title, heading, tuple(rows), shares, drawn, tuple(rest))


def _value(cell: str) -> float:
    return as_number(cell.replace(",", "").rstrip("%")) or 0.0


def statements(texts: Iterable[str]) -> list[tuple[int, str]]:
    """Return what the reports say was proved and what was not, and how often.

    Lines that differ in numbers alone are one: the numbers that differ are "smallest to largest".
    """
    groups: dict[str, list[list[str]]] = defaultdict(list)
    for line in "\n".join(texts).splitlines():
        if line.startswith(_STATEMENTS):
            plain = re.sub(r"\s{2,}", ": ", line)
            groups[_NUMBER.sub("\0", plain)].append(_NUMBER.findall(plain))
    found = []
    for mask, numbers in groups.items():
        parts = mask.split("\0")
        ranges = [_between(column) for column in zip(*numbers, strict=True)]
        text = "".join(part + value for part, value in zip(parts, [*ranges, ""], strict=True))
        found.append((len(numbers), text))
    return found


def _between(numbers: Sequence[str]) -> str:
    low, high = min(numbers, key=_value), max(numbers, key=_value)
    return low if low == high else f"{low} to {high}"
