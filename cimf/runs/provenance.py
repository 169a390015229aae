"""Where a result came from: versions, commit, threads, command; and when two runs are the same."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

# Distributions whose version can change a number.
_PACKAGES = (
    "cimf",
    "numpy",
    "scipy",
    "cvxpy",
    "clarabel",
    "mosek",
    "numba",
    "torch",
    "cooper-optim",
    "transformers",
    "scikit-learn",
)


def versions() -> dict[str, str | None]:
    """Return package -> installed version (None where not installed), with Python and platform."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def threads() -> dict[str, Any]:
    """Return CPU count, the thread limits of the environment and the loaded BLAS libraries."""
    from threadpoolctl import threadpool_info

    return {
        "cpus": os.cpu_count(),
        "environment": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            if name in os.environ
        },
        "libraries": [
            {key: entry.get(key) for key in ("user_api", "internal_api", "version", "num_threads")}
            for entry in threadpool_info()
        ],
    }


def commit() -> dict[str, Any] | None:
    """Return the git commit of the package's sources and whether they were modified since.

    None for an installed copy: only a repository that tracks these very files counts, not one
    that happens to lie around the environment.
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "runs/provenance.py") is None:
        return None
    head = git("rev-parse", "HEAD")
    sources = [
        name for name in ("../formulations", ".", "../experiments") if (package / name).is_dir()
    ]
    changed = git("status", "--porcelain", "--", *sources)
    return {"id": head, "modified": changed is None or changed != ""}


def command() -> str:
    """Return the command line without machine paths: ``cimf demo --seed 1``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # where Python ran with -m
    module = spec.name.removesuffix(".__main__") if spec else ""
    name = f"python -m {module}" if module else Path(sys.argv[0]).name
    return " ".join([name, *sys.argv[1:]])


def manifest(settings: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """Return the record of a run: its settings and their fingerprint, its origin, and `sections`.

    Parameters
    ----------
    settings
        Everything that decides the result (data checksums, seed, design, kappas, tolerances, ...).
    **sections
        What was measured: accuracies, gaps, wall times.
    """
    return {
        "fingerprint": fingerprint(settings),
        "settings": dict(settings),
        "command": command(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "threads": threads(),
        **sections,
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of `settings`, independent of their order.

    Two runs with equal fingerprints answer the same question. Versions, threads and machine are
    left out on purpose: they belong to the answer.
    """
    return hashlib.sha256(to_json(settings, indent=None).encode()).hexdigest()


def to_json(record: Mapping[str, Any], indent: int | None = 2) -> str:
    """Return strict JSON with sorted keys, numpy values converted, NaN and infinity as null."""
    return json.dumps(_plain(record), indent=indent, sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Path):
        return value.name
    return value
