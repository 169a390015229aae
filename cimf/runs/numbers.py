"""Numbers as text."""

from __future__ import annotations


def shortest(value: float) -> str:
    """Return the shortest text that no other number has: 0.1, 1, 1e-05."""
    return repr(float(value)).removesuffix(".0")
