"""The report on a solver: a table, the failures by class, JSON and Markdown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cimf.files import write_text
from cimf.runs.provenance import to_json, versions
from cimf.verification.diagnosis import LIMIT, advice
from cimf.verification.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

# Failures that a terminal shows one by one; the saved tables have them all.
_SHOWN = 12
_HEADING = [
    "problem",
    "verdict",
    "excess",
    "violation",
    "gap",
    "precision",
    "recall",
    "time / ours",
]


@dataclass(frozen=True)
class Report:
    """What a solver is worth on a suite.

    Attributes
    ----------
    solver, suite, interface : str
    tol : float
        Relative objective excess and violation that pass.
    verdicts : tuple of Verdict
        One per problem, in the order of the suite.
    """

    solver: str
    suite: str
    interface: str
    tol: float
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether at least one problem was passed and none failed.

        Inaccurate answers at the limit of float64 (status "limit") are reported, not counted.
        """
        statuses = {verdict.status for verdict in self.verdicts}
        return "passed" in statuses and "failed" not in statuses

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The verdicts that failed."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")

    @property
    def diagnosis(self) -> dict[str, int]:
        """Class of failure -> number of problems, the most frequent first."""
        return dict(Counter(verdict.failure for verdict in self.failures).most_common())

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per problem; the columns are those of `Verdict.row`."""
        import pandas as pd

        return pd.DataFrame([verdict.row() for verdict in self.verdicts])

    def summary(self) -> str:
        """Return the outcome in one line."""
        counts = Counter(verdict.status for verdict in self.verdicts)
        ratios = [v.seconds / v.ours_seconds for v in self.verdicts if v.status != "skipped"]
        time = f"; {np.median(ratios):.3g} times our time in the median" if ratios else ""
        limit = f", {counts['limit']} at the limit of float64" if counts["limit"] else ""
        skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
        return (
            f"{self.solver} on suite '{self.suite}' at tolerance {self.tol:g}: "
            f"{counts['passed']} passed, {counts['failed']} failed{limit}{skipped}{time}"
        )

    def findings(self) -> list[str]:
        """Return one line per class of failure: name, count, what to look at."""
        counts = dict(self.diagnosis)
        if limited := sum(verdict.status == "limit" for verdict in self.verdicts):
            counts[LIMIT] = limited
        return [f"{name} ({n} problems): {advice(name)}" for name, n in counts.items()]

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """Return the table as heading and text cells."""
        rows = []
        for v in self.verdicts:
            words = " - ".join(word for word in (v.failure, v.detail) if word)
            verdict = v.status if v.status == "passed" else f"{v.status}: {words}"
            ratio = v.seconds / v.ours_seconds
            numbers = [_small(v.excess), _small(v.violation), _small(v.gap)]
            numbers += [_part(v.precision), _part(v.recall), _part(ratio)]
            rows.append([v.problem.name, verdict, *numbers])
        return _HEADING, rows

    def show(self) -> None:
        """Print a table by family, the failures, their classes and the summary."""
        from cimf.runs.terminal import out, print_table

        families = self.table.groupby("family", sort=False)
        print_table(
            [
                "family",
                "passed",
                "failed",
                "at limit",
                "skipped",
                "worst excess",
                "worst violation",
                "time / ours",
            ],
            [
                [
                    str(name),
                    *(
                        str(int((part["status"] == s).sum()))
                        for s in ("passed", "failed", "limit", "skipped")
                    ),
                    _small(part["excess"].max()),
                    _small(part["violation"].max()),
                    _part(part["time_ratio"].dropna().median()),
                ]
                for name, part in families
            ],
        )
        for verdict in self.failures[:_SHOWN]:
            detail = f": {verdict.detail}" if verdict.detail else ""
            where = f"{verdict.problem.family}, {verdict.problem.name}"
            line = f"failed {where} - {verdict.failure}{detail}"
            out.print(line, markup=False, soft_wrap=True)
        if len(self.failures) > _SHOWN:
            out.print(f"... and {len(self.failures) - _SHOWN} more, in the table of the report")
        for finding in self.findings():
            out.print(finding, markup=False, soft_wrap=True)
        out.print(self.summary(), markup=False, soft_wrap=True)

    def record(self) -> dict[str, Any]:
        """Return everything as plain numbers and text."""
        return {
            "solver": self.solver,
            "suite": self.suite,
            "interface": self.interface,
            "tol": self.tol,
            "passed": self.passed,
            "diagnosis": self.diagnosis,
            "problems": [verdict.row() for verdict in self.verdicts],
            "versions": versions(),
        }

    def to_json(self) -> str:
        """Return `record` as strict JSON; NaN (not applicable) becomes null."""
        return to_json(self.record()) + "\n"

    def to_markdown(self) -> str:
        """Return summary, findings and table in Markdown."""
        heading, rows = self.lines()
        lines = [heading, ["---", "---", *["---:"] * (len(heading) - 2)], *rows]
        table = "".join("| " + " | ".join(_cell(c) for c in line) + " |\n" for line in lines)
        findings = "".join(f"- {finding}\n" for finding in self.findings())
        return "\n".join(part for part in (self.summary() + "\n", findings, table) if part)

    def save(self, folder: str | Path) -> None:
        """Write verify.json, verify.md and verify.csv, each atomically."""
        folder = Path(folder)
        write_text(folder / "verify.csv", self.table.to_csv(index=False))
        write_text(folder / "verify.md", self.to_markdown())
        write_text(folder / "verify.json", self.to_json())


def _small(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.0e}"


def _part(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
