"""By how much methods differ on the same test samples, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cimf.evaluate.paired import paired_difference, unpacked
from cimf.studies.sweep_tables import markdown


def differences(rows: Sequence[Mapping[str, Any]], reference: str, samples: int) -> list[list[str]]:
    """Return a line per method: its name, then its accuracy less the reference's by level.

    Parameters
    ----------
    rows : sequence of mapping
        With method, target, and `right` as `cimf.evaluate.paired.packed` writes it.
    reference : str
        A method; without it there is nothing to compare with.
    samples : int
        Test samples.
    """
    right = {(row["method"], row["target"]): unpacked(row["right"], samples) for row in rows}
    lines: dict[str, list[str]] = {}
    for (method, level), found in right.items():
        if method != reference and (reference, level) in right:
            apart = paired_difference(found, right[reference, level])
            lines.setdefault(method, [method]).append(str(apart))
    return list(lines.values())


def differences_text(heading: Sequence[str], lines: list[list[str]], reference: str) -> str:
    """Return the lines as Markdown with what they mean, or nothing."""
    if not lines:
        return ""
    return (
        f"\nPoints of accuracy less those of {reference}, with the 95 % interval of paired test "
        f"samples (McNemar); *: it excludes 0.\n\n{markdown(heading, lines)}\n"
    )
