"""Moments as files: one safetensors file with a SHA-256 of its content, written atomically."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cimf.errors import RunError
from cimf.files import atomic_path

Array = NDArray[np.float64]


def save_moments(
    gram: Array, corr: Array, target_sq: Array, n_samples: int, path: str | Path
) -> None:
    """Write the attributes of a `Gram`."""
    tensors = {"gram": np.ascontiguousarray(gram), "corr": corr, "target_sq": target_sq}
    meta = {"n_samples": str(n_samples), "sha256": _digest(tensors, n_samples)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=meta)


def load_moments(path: str | Path) -> tuple[Array, Array, Array, int]:
    """Read them: gram (N, N), corr (r, N), target_sq (r,), n_samples.

    Raises
    ------
    RunError
        If the file is missing, truncated, or does not match its checksum.
    """
    try:
        with safe_open(path, framework="numpy") as stream:
            meta = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in ("gram", "corr", "target_sq")}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read as saved statistics: {error}") from error
    count = meta.get("n_samples", "")
    n_samples = int(count) if count.isdecimal() else -1
    if meta.get("sha256") != _digest(tensors, n_samples):
        raise RunError(f"{path} does not match its checksum; compute the statistics again")
    return tensors["gram"], tensors["corr"], tensors["target_sq"], n_samples


def _digest(tensors: dict[str, Array], n_samples: int) -> str:
    digest = hashlib.sha256(str(n_samples).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
