"""Implicit models as files: one safetensors file, its header holding a JSON record; no pickle.

A matrix is one tensor under its name or, where that is smaller, its CSR parts ``A.data``,
``A.indices``, ``A.indptr``. The record has the format version, shapes, which matrices of the model
are sparse, and blocks with their activations; beside it stands a SHA-256 over the record and the
tensors, so that an altered file is noticed. Version 1 kept every matrix as it was in the model.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cimf.errors import CimfError, RunError
from cimf.files import atomic_path
from cimf.network.state_blocks import Block

_FORMAT = "cimf.ImplicitModel"
_VERSION = 2
_PARTS = ("data", "indices", "indptr")


class ModelParts(NamedTuple):
    """What an implicit model is made of: dense or sparse matrices, blocks in row order."""

    A: Any
    B: Any
    C: Any
    D: Any
    blocks: tuple[Block, ...]
    bias: bool


def save_parts(model: ModelParts, path: str | Path) -> None:
    """Write a model to `path`, atomically."""
    tensors: dict[str, np.ndarray] = {}
    matrices = {name: getattr(model, name) for name in "ABCD"}
    for name, matrix in matrices.items():
        csr = scipy.sparse.csr_array(matrix)
        parts = {f"{name}.{part}": getattr(csr, part) for part in _PARTS}
        smaller = sum(part.nbytes for part in parts.values()) < 8 * np.prod(matrix.shape)
        if smaller or scipy.sparse.issparse(matrix):
            tensors.update(parts)
        else:
            tensors[name] = matrix
    record = {
        "format": _FORMAT,
        "version": _VERSION,
        "bias": model.bias,
        "shapes": {name: list(matrix.shape) for name, matrix in matrices.items()},
        "sparse": [name for name, matrix in matrices.items() if scipy.sparse.issparse(matrix)],
        "blocks": [block.to_json() for block in model.blocks],
    }
    text = json.dumps(record, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"model": text, "sha256": _digest(text, tensors)})


def load_parts(path: str | Path) -> ModelParts:
    """Read a file written by `save_parts`; raises `RunError` for anything else."""
    try:
        with safe_open(path, framework="numpy") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read as a saved model: {error}") from error
    if "model" not in header:
        raise RunError(
            f"{path} holds tensors ({', '.join(sorted(tensors)[:3])}, ...), no implicit model. A "
            "network's weights, as pruning saves them, are read by "
            "net.load_state_dict(safetensors.torch.load_file(path)); "
            "cimf.ImplicitModel.from_network(net) makes a model of it"
        )
    text = header["model"]
    if header.get("sha256") != _digest(text, tensors):
        raise RunError(f"{path} is not a saved model, or does not match its checksum")
    try:
        record = json.loads(text)
        if record["format"] != _FORMAT or record["version"] > _VERSION:
            raise RunError(
                f"{path} has format {record['format']} version {record['version']}; this version "
                f"of cimf reads {_FORMAT} up to {_VERSION}"
            )
        A, B, C, D = (_matrix(tensors, name, record) for name in "ABCD")
        blocks = tuple(Block.from_json(block) for block in record["blocks"])
        return ModelParts(A, B, C, D, blocks, bool(record["bias"]))
    except RunError:
        raise
    except (CimfError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} holds an inconsistent model: {error}") from error


def _matrix(tensors: dict[str, np.ndarray], name: str, record: dict[str, Any]) -> Any:
    shape = tuple(record["shapes"][name])
    if name in tensors:
        return tensors[name].reshape(shape)
    csr = scipy.sparse.csr_array(tuple(tensors[f"{name}.{part}"] for part in _PARTS), shape=shape)
    return csr if name in record.get("sparse", "ABCD") else csr.toarray()


def _digest(text: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
