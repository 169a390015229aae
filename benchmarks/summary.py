"""The tables of the row benchmark: what counts first, then every contestant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.contestants import Exact, LarsTold
from cimf.studies.sweep_tables import markdown

Record = dict[str, Any]


def table_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells, for terminal and Markdown."""
    heading = [
        "problem", "kappa", "solver", "rows", "median ms", "mean ms", "worst gap", "violation",
        "1e-9 reached", "x best peer", "x floor median", "mean", "x numpy floor median", "mean",
    ]  # fmt: skip
    rows = [
        [
            r["problem"], r["kappa"], r["solver"], str(r["rows"]),
            f"{1e3 * r['median_seconds']:.3g}", f"{1e3 * r['mean_seconds']:.3g}",
            f"{r['worst_gap']:.0e}", f"{r['worst_violation']:.0e}",
            "yes" if r["reached"] else f"{r['reached_rows']} rows",
            "" if np.isnan(r["ratio_to_best_peer"]) else f"{r['ratio_to_best_peer']:.3g}",
            f"{r['floor_ratio_median']:.3g}", f"{r['floor_ratio_mean']:.3g}",
            f"{r['numpy_floor_ratio_median']:.3g}", f"{r['numpy_floor_ratio_mean']:.3g}",
        ]
        for r in records
    ]  # fmt: skip
    return heading, rows


def headline(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Return heading and cells: per problem and radius, how many times the peers' mean is ours."""
    heading = [
        "problem", "columns", "kappa", "non-zeros", "cimf, mean ms", "best peer", "times ours",
        "best peer that is told nothing", "times ours",
    ]  # fmt: skip
    rows = []
    for ours in records:
        if ours["solver"] != Exact.name:
            continue
        peers = sorted(
            (r for r in records
             if (r["problem"], r["kappa"]) == (ours["problem"], ours["kappa"])
             and r["reached"] and r is not ours),
            key=lambda r: r["mean_seconds"],
        )  # fmt: skip
        unaided = [r for r in peers if r["solver"] != LarsTold.name]
        cells: list[str] = []
        for ranked in (peers, unaided):
            cells += (
                [ranked[0]["solver"], f"{ranked[0]['mean_seconds'] / ours['mean_seconds']:.3g}"]
                if ranked
                else ["none reached 1e-9", ""]
            )
        rows.append([
            ours["problem"], f"{ours['columns']:,}", ours["kappa"],
            f"{ours['nonzeros_median']:.0f}", f"{1e3 * ours['mean_seconds']:.3g}", *cells,
        ])  # fmt: skip
    return heading, rows


def report(records: Sequence[Record], not_run: Sequence[str]) -> str:
    """Return the Markdown of the whole run."""
    missing = "".join(f"- {name}\n" for name in not_run)
    return (
        "# Row solvers at relative gap 1e-9\n\n"
        "One run, one thread, the same rows for all, judged outside the timer. A peer counts as "
        "reaching the accuracy where every row does, in its time.\n\n"
        f"{markdown(*headline(records))}\n"
        "## Every contestant\n\n"
        "The floor is what a row costs if its support is known: gather, factor, solve and certify, "
        "compiled as our solver is, or in numpy and LAPACK.\n\n"
        f"{markdown(*table_rows(records))}\n"
        + (f"Not run (too large for its time, or not installed):\n\n{missing}" if missing else "")
    )
