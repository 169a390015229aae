"""The exceptions that `formulations` and `cimf` raise: one tree.

Rooted here because imports run formulations <- cimf.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CimfError(Exception):
    """Root of every error raised on purpose by `formulations` or `cimf`.

    Attributes
    ----------
    options : tuple of str
        Parameters that are wrong or would help, as Python names them: a front end that calls them
        otherwise adds its own names.
    """

    def __init__(self, *args: object, options: Iterable[str] = ()) -> None:
        super().__init__(*args)
        self.options = tuple(options)


class InputError(CimfError, ValueError):
    """An argument cannot be used: wrong shape, NaN, an empty batch, a forbidden value."""


class UnknownNameError(InputError):
    """A name is not in a dictionary of formulations, losses, sets, methods, backends, ..."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(names)}{hint}")


class FormulationError(CimfError, ValueError):
    """A problem is not convex by CVXPY's rules (DCP), or not separable where it must be."""
