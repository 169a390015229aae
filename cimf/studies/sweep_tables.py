"""Tables of a sweep: one tidy row per model; the same for a terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cimf.runs.numbers import shortest

# Table 1 of the paper: kappa -> column -> (accuracy %, sparsity %).
PAPER_TABLE_1 = {
    0.005: {"CIFAR-100": (76.7, 98.1), "20News": (60.9, 97.8)},
    0.01: {"CIFAR-100": (79.1, 96.4), "20News": (74.2, 95.9)},
    0.05: {"CIFAR-100": (84.2, 95.2), "20News": (80.2, 95.3)},
    0.1: {"CIFAR-100": (87.1, 93.8), "20News": (87.2, 93.3)},
    0.5: {"CIFAR-100": (89.0, 93.3), "20News": (88.8, 90.7)},
    0.99: {"CIFAR-100": (91.0, 90.1), "20News": (90.6, 87.4)},
}
# What the paper says that its columns are.
PAPER_COLUMNS = {
    "CIFAR-100": "a ResNet-20 of 92.1 % dense accuracy, which one reaches on CIFAR-10 only",
    "20News": "DistilBERT of 92.8 % dense accuracy",
}


@dataclass(frozen=True)
class _Column:
    """How one column is shown: its heading, and the text of a tidy row."""

    heading: str
    text: Callable[[Any], str]


def _percent(key: str) -> Callable[[Any], str]:
    return lambda row: "" if _missing(row[key]) else f"{100 * row[key]:.1f}"


def _of(count: int, total: int) -> str:
    return "all" if count == total else f"{count:,} of {total:,}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _level(kappa: float) -> str:
    return shortest(kappa) if math.isfinite(kappa) else "none"


def _loss(row: Any, key: str, text: Callable[[Any], str]) -> str:
    return "" if _missing(row.get(key)) else text(row[key])


_RESCALED = {True: "yes", False: "no", "layers": "by layer"}
_COLUMNS = {
    "design": _Column("design", lambda row: row["design"]),
    "rescaled": _Column("rescaled", lambda row: _RESCALED[row["rescale"]]),
    "kappa": _Column("kappa", lambda row: _level(row["kappa"])),
    "loss": _Column("loss", lambda row: _loss(row, "loss", str)),
    "lam": _Column("multiplier", lambda row: _loss(row, "lam", "{:.3g}".format)),
    "loss value": _Column("loss value", lambda row: _loss(row, "loss_value", "{:.4g}".format)),
    "accuracy": _Column("accuracy %", _percent("accuracy")),
    "with inputs": _Column("with inputs %", _percent("accuracy_with_inputs")),
    "sparsity": _Column("sparsity %", _percent("sparsity_network_weights")),
    "admissible": _Column("of admissible %", _percent("sparsity_admissible")),
    "nonzeros": _Column("non-zeros", lambda row: f"{row['nonzero_weights']:,}"),
    "emptied": _Column("emptied rows", lambda row: f"{row['emptied_rows']}"),
    "state error": _Column("state error", lambda row: f"{row['state_error']:.3f}"),
    "output error": _Column("output error", lambda row: f"{row['output_error']:.3f}"),
    "converged": _Column("converged", lambda row: _of(row["converged"], row["evaluated"])),
    "certified": _Column("certified", lambda row: _of(row["certified"], row["rows"])),
    "gap": _Column("worst gap", lambda row: f"{row['worst_gap']:.0e}"),
}

TERMINAL = (
    "kappa", "loss value", "accuracy", "sparsity", "nonzeros", "output error", "converged",
    "certified", "gap",
)  # fmt: skip
FULL = (
    "design", "rescaled", "loss", "lam", "kappa", "loss value", "accuracy", "with inputs",
    "sparsity", "admissible", "nonzeros", "emptied", "state error", "output error", "converged",
    "certified", "gap",
)  # fmt: skip


def render(
    table: pd.DataFrame, columns: Sequence[str], paper: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows as text, without the columns that are empty in every row.

    Parameters
    ----------
    table
        One row per model, as `cimf.methods.stacked.model_report.Report.row`.
    columns
        `TERMINAL` or `FULL`.
    paper
        Add the paper's Table 1 at equal kappa, accuracy / sparsity in percent.
    """
    records = table.to_dict("records")
    heading = [_COLUMNS[name].heading for name in columns]
    rows = [[_COLUMNS[name].text(record) for name in columns] for record in records]
    used = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    heading, rows = [heading[k] for k in used], [[row[k] for k in used] for row in rows]
    if paper:
        heading += [f"paper {column}" for column in PAPER_COLUMNS]
        for record, row in zip(records, rows, strict=True):
            values = PAPER_TABLE_1.get(record["kappa"], {})
            row += [" / ".join(map(str, values.get(column, ()))) for column in PAPER_COLUMNS]
    return heading, rows


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, text columns left-aligned and numbers right-aligned."""
    lines = [heading, ["---" if k == 0 else "---:" for k in range(len(heading))], *rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in cells)
