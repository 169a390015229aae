"""Exact conversion of a layered network into (A, B, C, D)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import nn

from cimf.errors import CaptureError, InputError
from cimf.network.activations import Activation
from cimf.network.cut import Network, run, trace_network
from cimf.network.probe import probe
from cimf.network.state_blocks import Block

# Unit vectors are scaled by a power of two so large that biases are lost in the sum: a weight w
# next to a bias b is read with error 1e-16 |w| + 1e-34 |b| instead of 1e-16 (|w| + |b|).
UNIT = 2.0**60
# Rows and columns of the matrix times unit vectors in one batch: about 0.5 GB of activations.
_BATCH_NUMBERS = 2**24
# Relative error at which the matrix and the network must agree at random states.
_AGREEMENT = 1e-10


def convert_network(
    net: nn.Module,
    input_shape: Sequence[int] | None,
    *,
    sparse: bool,
    memory_limit: float,
    activations: Mapping[type[nn.Module], Activation | str] | None = None,
) -> tuple[tuple[Any, Any, Any, Any], tuple[Block, ...]]:
    """Return (A, B, C, D) and the blocks of a network; see `ImplicitModel.from_network`."""
    shape = None if input_shape is None else tuple(input_shape)
    if shape is not None and (any(not isinstance(d, int) or d < 1 for d in shape) or not shape):
        raise InputError(f"input_shape must hold positive integers, got {shape}")
    network = trace_network(net, activations, None if shape is None else random_samples(shape))
    shape = shape or _input_shape(network)
    found = probe(network, shape)
    n = sum(block.stop - block.start for block in found.blocks)
    n_rows, n_columns = n + found.n_outputs, n + found.n_inputs + 1
    size = f"n = {n} states, p = {found.n_inputs + 1} inputs, q = {found.n_outputs} outputs"
    if not sparse and 8 * n_rows * n_columns > memory_limit:
        raise CaptureError(
            f"(A, B, C, D) with {size} would take {8e-9 * n_rows * n_columns:.3g} GB as dense "
            f"matrices, the limit is {1e-9 * memory_limit:.3g} GB: pass sparse=True or a larger "
            "memory_limit"
        )
    # Sources in order of execution, the input first: their shapes and their first columns.
    sources = [(shape, n), *((block.shape, block.start) for block in reversed(found.blocks))]
    whole = _read_matrix(network, sources, (n_rows, n_columns), sparse, memory_limit, size)
    _verify(network, sources, whole)
    A, B, C, D = whole[:n, :n], whole[:n, n:], whole[n:, :n], whole[n:, n:]
    return (A, B, C, D), found.blocks


def random_samples(shape: Sequence[int]) -> torch.Tensor:
    """Return two samples of this shape, to run a network on where there are no others."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def _input_shape(network: Network) -> tuple[int, ...]:
    """Return (in_features,) if the input goes into a Linear layer first."""
    for node in network.graph.nodes:
        if node.op == "call_module":
            layer = network.graph.called(node)
            if isinstance(layer, nn.Linear):
                return (layer.in_features,)
            break
        if node.op in ("call_function", "call_method"):
            break
    raise InputError(
        "input_shape is needed: the shape of one sample, e.g. (1, 28, 28); it can be left out only "
        "where the first layer is nn.Linear"
    )


def _read_matrix(
    network: Network,
    sources: Sequence[tuple[tuple[int, ...], int]],
    shape: tuple[int, int],
    sparse: bool,
    memory_limit: float,
    size: str,
) -> Any:
    """Return ((A, B), (C, D)) as one matrix: rows (Z, Y), columns (X, U, 1)."""
    constant = _outputs(network, _zeros(sources, 1))
    out = None if sparse else np.zeros(shape)
    parts: list[Any] = []
    used = 0.0
    chunk = max(1, _BATCH_NUMBERS // sum(shape))
    for k, (source, offset) in enumerate(sources):
        width = math.prod(source)
        for start in range(0, width, chunk):
            stop = min(start + chunk, width)
            values = _zeros(sources, stop - start)
            rows = torch.arange(stop - start)
            values[k].view(stop - start, -1)[rows, start + rows] = UNIT
            columns = linear_part(_outputs(network, values), constant)
            if out is not None:
                out[:, offset + start : offset + stop] = columns
                continue
            row, column = np.nonzero(columns)
            parts.append((columns[row, column], row, column + offset + start))
            used += 24.0 * row.size
            if used > memory_limit:
                raise CaptureError(
                    f"(A, B, C, D) with {size} have more non-zeros than fit into "
                    f"{1e-9 * memory_limit:.3g} GB: pass a larger memory_limit"
                )
    if out is not None:
        out[:, -1] = constant[:, 0]
        return out
    row = np.flatnonzero(constant[:, 0])
    parts.append((constant[row, 0], row, np.full(row.size, shape[1] - 1)))
    data, i, j = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return scipy.sparse.csr_array((data, (i, j)), shape=shape)


def linear_part(values: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """Return the columns of the matrix from outputs (r, k) at `UNIT` vectors and (r, 1) at zero."""
    columns = values - constant
    # Rounding of the constants themselves, where layers are chained between two cuts.
    columns[np.abs(columns) <= 1e-14 * np.abs(constant)] = 0.0
    return columns / UNIT


def _verify(network: Network, sources: Sequence[tuple[tuple[int, ...], int]], whole: Any) -> None:
    """Compare the matrix with the network cut open at random inputs and states."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in _zeros(sources, 3)]
    expected = _outputs(network, values)
    columns = np.concatenate([_rows([*reversed(values[1:]), values[0]]), np.ones((1, 3))])
    error = np.abs(whole @ columns - expected).max(initial=0.0)
    if not error <= _AGREEMENT * max(1.0, np.abs(expected).max(initial=0.0)):
        raise CaptureError(f"the converted network differs from the network by {error:.1e}")


def _zeros(sources: Sequence[tuple[tuple[int, ...], int]], count: int) -> list[torch.Tensor]:
    return [torch.zeros(count, *shape, dtype=torch.float64) for shape, _ in sources]


def _outputs(network: Network, values: Sequence[torch.Tensor]) -> np.ndarray:
    """Return (Z, Y), shape (n + q, k), of the network cut open at the input and states `values`."""
    opened = run(network, values[0], values[1:])
    return _rows([*reversed(opened.z), opened.y])


def _rows(values: Sequence[torch.Tensor]) -> np.ndarray:
    """Return tensors (k, ...) flattened into rows and stacked, shape (rows, k)."""
    return np.concatenate([value.reshape(value.shape[0], -1).numpy().T for value in values])
