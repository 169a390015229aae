"""Compilation of the row kernels (numba), cached on disk under a digest of their sources.

Numba decides by the date of one file whether a cached kernel is current, but a kernel contains
those it calls from other files: after an edit of one file, kernels of another would run the old
code. Here the cache folder is named after the sources of all kernels together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

F = TypeVar("F", bound=Callable[..., Any])

# Reductions may be reordered (vectorised); NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}

_KEPT = 30 * 86_400.0  # seconds

_SETTINGS: Any = numba.config


def _folder() -> str:
    """Return the cache folder of the present sources.

    Where NUMBA_CACHE_DIR says, else beside the package, else in the user's cache.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    stated = [Path(_SETTINGS.CACHE_DIR)] if _SETTINGS.CACHE_DIR else []
    for parent in (*stated, package / "__pycache__", Path.home() / ".cache" / "cimf"):
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            _forget_old(parent, name)
            return str(parent / name)
    return tempfile.mkdtemp(prefix=name)


def _forget_old(parent: Path, name: str) -> None:
    """Remove the kernels of other sources than `name` that nothing was added to for a month."""
    for folder in parent.glob("kernels-*"):
        with suppress(OSError):  # another process may remove it as well
            if folder.name != name and time.time() - folder.stat().st_mtime > _KEPT:
                shutil.rmtree(folder, ignore_errors=True)


_FOLDER = _folder()


def kernel(function: F) -> F:
    """Compile a function on first use: no interpreter lock, reductions vectorised, cached.

    Numba infers types by itself, and ignores annotations: they are for readers and mypy.
    """
    return _compiled(function, _FAST)


def finite_kernel(function: F) -> F:
    """As `kernel`, for functions that never see NaN: a maximum is vectorised only then."""
    return _compiled(function, {*_FAST, "nnan"})


def _compiled(function: F, flags: set[str]) -> F:
    dispatcher: Any = numba.njit(nogil=True, fastmath=flags)(function)
    previous = _SETTINGS.CACHE_DIR
    _SETTINGS.CACHE_DIR = _FOLDER  # read by numba when caching is enabled, here only
    try:
        dispatcher.enable_caching()
    finally:
        _SETTINGS.CACHE_DIR = previous
    return dispatcher  # type: ignore[no-any-return]
