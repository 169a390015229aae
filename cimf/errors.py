"""Every exception that cimf raises on purpose, all derived from `CimfError`; and how it warns."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from formulations.errors import CimfError, FormulationError, InputError, UnknownNameError

__all__ = [
    "BackendError",
    "CaptureError",
    "CertificateError",
    "CimfError",
    "DataError",
    "FormulationError",
    "InputError",
    "RunError",
    "TrainingError",
    "UnknownNameError",
    "warn_outside",
]

# Packages whose lines a warning never points at: ours, and torch, which calls our modules.
_INSIDE = {"cimf", "formulations", "torch"}


class BackendError(CimfError, RuntimeError):
    """A solver backend is missing, unlicensed, or failed; the vendor's error is the cause."""


class CaptureError(CimfError, ValueError):
    """A network cannot be represented as an implicit model; the message names the layer."""


class CertificateError(CimfError, RuntimeError):
    """A solution failed its certificate: it is infeasible, or its gap is above the tolerance.

    Attributes
    ----------
    solution : cimf.judge.Solution, cimf.judge.ModelSolution or None
        The solution that failed, with its certificate.
    result : object or None
        What the function that raised would have returned: nothing that was computed is lost.
    """

    solution: Any = None
    result: Any = None


class DataError(CimfError, RuntimeError):
    """A data set is missing, incomplete, or does not match its checksum."""


class RunError(CimfError, RuntimeError):
    """A folder cannot be written or holds another run, or a saved file is corrupt."""


class TrainingError(CimfError, RuntimeError):
    """Training diverged: the loss or a parameter became NaN or infinite; names the epoch."""


def warn_outside(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the caller's own line: the innermost one that is outside of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
