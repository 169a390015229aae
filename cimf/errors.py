"""Every exception that cimf raises on purpose; all derive from `CimfError`."""

from __future__ import annotations

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
    "UnknownNameError",
]


class BackendError(CimfError, RuntimeError):
    """A solver backend is missing, unlicensed, or failed; the vendor's error is the cause."""


class CaptureError(CimfError, ValueError):
    """A network cannot be represented as an implicit model; the message names the layer."""


class CertificateError(CimfError, RuntimeError):
    """A solution failed its certificate: it is infeasible, or its gap is above the tolerance."""


class DataError(CimfError, RuntimeError):
    """A data set is missing, incomplete, or does not match its checksum."""


class RunError(CimfError, RuntimeError):
    """A folder cannot be written or holds another run, or a saved file is corrupt."""
