"""Sparse networks on disk and at inference: safetensors, CSR per layer, sparse linear layers."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from cimf.errors import InputError, RunError
from cimf.files import atomic_path
from cimf.network.copies import plain_copy
from cimf.network.expansion import expand
from cimf.network.exported import MATCHED

# Modules that read the weights of the linear layers in them, and do not only call them.
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


def save_state(network: nn.Module, path: str | Path) -> None:
    """Write the state dict, zeros included, as safetensors, atomically.

    A tensor that several modules share is written under each of its names, so that
    ``load_state_dict(load_file(path))`` finds them all.
    """
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def csr_layers(network: nn.Module) -> dict[str, scipy.sparse.csr_array]:
    """Return the weight rows (r, N) of every convolution and linear layer, by path.

    Those in attention, recurrent layers and transposed convolutions have the paths of the report.
    In float64 where the weights are, else in float32, which holds half precision exactly.
    """
    out = {}
    whole, _ = expand(plain_copy(network))
    for path, module in whole.named_modules():
        if isinstance(module, SparseLinear):
            parts = (module.values, module.columns, module.starts)
            rows = scipy.sparse.csr_array(
                tuple(part.cpu().numpy() for part in parts), shape=module.shape
            )
        elif isinstance(module, MATCHED):
            weight = module.weight.detach().cpu().flatten(1)
            double = weight.dtype == torch.float64
            rows = scipy.sparse.csr_array((weight if double else weight.float()).numpy())
        else:
            continue
        out[path] = rows
    return out


def save_csr(network: nn.Module, path: str | Path) -> None:
    """Write `csr_layers` as one safetensors file, atomically: data, indices, indptr and shape."""
    arrays = {}
    for name, rows in csr_layers(network).items():
        arrays[f"{name}.data"] = rows.data
        arrays[f"{name}.indices"] = rows.indices.astype(np.int32)
        arrays[f"{name}.indptr"] = rows.indptr.astype(np.int32)
        arrays[f"{name}.shape"] = np.array(rows.shape, dtype=np.int64)
    with atomic_path(path) as temporary:
        save_arrays(arrays, temporary)


def load_csr(path: str | Path) -> dict[str, scipy.sparse.csr_array]:
    """Read a file written by `save_csr`.

    Raises
    ------
    RunError
        The file is missing, truncated or of another kind.
    """
    try:
        arrays = load_arrays(path)
        names = [key.removesuffix(".shape") for key in arrays if key.endswith(".shape")]
        if len(arrays) != 4 * len(names):
            raise ValueError(f"it holds {', '.join(sorted(arrays)[:3])}, ...")
        return {
            name: scipy.sparse.csr_array(
                tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr")),
                shape=tuple(arrays[f"{name}.shape"]),
            )
            for name in names
        }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path} cannot be read as CSR layers: {error}") from error


class SparseLinear(nn.Module):
    """A linear layer whose weight is a CSR matrix; for inference.

    Parameters
    ----------
    linear : nn.Linear
        In float32 or float64.

    Attributes
    ----------
    starts, columns, values : Tensor
        The rows in CSR form: buffers, as is the bias, so that they are saved and move with the
        module.
    shape : (int, int)
        Of the weight.

    Raises
    ------
    InputError
        Half precision, which torch has no CSR product for.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        if weight.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"SparseLinear needs float32 or float64 weights, got {weight.dtype}: convert the "
                "network first, network.float()"
            )
        rows = scipy.sparse.csr_array(weight.cpu().numpy())
        self.shape = (int(rows.shape[0]), int(rows.shape[1]))
        for name, part in (
            ("starts", rows.indptr.astype(np.int32)),
            ("columns", rows.indices.astype(np.int32)),
            ("values", rows.data),
        ):
            self.register_buffer(name, torch.from_numpy(part).to(weight.device))
        bias = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._update()

    def _update(self) -> None:
        """Make the sparse weight: a sparse buffer cannot be saved, and making it takes 9 us."""
        with warnings.catch_warnings():
            # "Sparse CSR tensor support is in beta", "Sparse invariant checks are ..."
            warnings.filterwarnings("ignore", message="Sparse ")
            self._weight = torch.sparse_csr_tensor(
                self.starts, self.columns, self.values, self.shape, check_invariants=False
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_weight"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._update()

    def _apply(self, *args: Any, **options: Any) -> SparseLinear:
        super()._apply(*args, **options)
        self._update()
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._update()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        inputs = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        # A single sample as a vector: 134 us instead of 365 us (2048 x 2048, 10 %, one thread).
        weight = self._weight
        out = (weight @ inputs[0])[None] if len(inputs) == 1 else (weight @ inputs.T).T
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.shape[0])

    def extra_repr(self) -> str:
        """Say what it holds."""
        return f"{self.shape[1]}, {self.shape[0]}, {self.values.numel()} non-zeros"


def with_sparse_linear(network: nn.Module, density: float) -> nn.Module:
    """Return a copy whose linear layers of at most this density are `SparseLinear`.

    Those within `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`, which read their weights,
    stay as they are.

    Raises
    ------
    InputError
        As `SparseLinear`.
    """
    out = copy.deepcopy(network)
    read = {part for m in out.modules() if isinstance(m, _READERS) for part in m.children()}
    for path, module in list(out.named_modules()):
        if isinstance(module, nn.Linear) and module not in read:
            sparse = int(module.weight.count_nonzero()) <= density * module.weight.numel()
            if sparse and not path:  # the network is the layer
                return SparseLinear(module).train(network.training)
            if sparse:
                out.set_submodule(path, SparseLinear(module).train(module.training))
    return out


@torch.no_grad()
def linear_latency(
    n_in: int,
    n_out: int,
    densities: Sequence[float] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01),
    batch: int = 64,
    seconds: float = 0.3,
) -> dict[float, tuple[float, float]]:
    """Measure dense and CSR inference of a float32 linear layer on this machine.

    Zeros are at random places. Both layers are called in turn, with the threads that torch has.

    Parameters
    ----------
    seconds : float
        Time spent on one density, at least five calls of each layer.

    Returns
    -------
    dict of float to (float, float)
        Density -> median seconds of one call, dense and sparse.

    Raises
    ------
    InputError
        A density outside (0, 1].
    """
    if not all(0.0 < density <= 1.0 for density in densities):
        raise InputError(f"densities must lie in (0, 1], got {list(densities)}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, n_in, generator=generator)
    out = {}
    for density in densities:
        linear = nn.Linear(n_in, n_out)
        keep = torch.rand(n_out, n_in, generator=generator) < density
        linear.weight.mul_(keep)
        layers = linear, SparseLinear(linear)
        times: list[list[float]] = [[], []]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[0]) < 6:
            for layer, taken in zip(layers, times, strict=True):
                start = time.perf_counter()
                layer(x)
                taken.append(time.perf_counter() - start)
        dense, sparse = (float(np.median(taken[1:])) for taken in times)  # the first warms up
        out[density] = dense, sparse
    return out


def break_even(latency: Mapping[float, tuple[float, float]]) -> float:
    """Return the density below which CSR wins, from the result of `linear_latency`.

    Interpolated in log-log between the last density at which CSR loses and the next smaller one;
    1 where it wins at all densities, and NaN where it loses at the smallest.
    """
    points = sorted((density, sparse / dense) for density, (dense, sparse) in latency.items())
    if points[0][1] >= 1.0:
        return math.nan
    won = points[0]
    for point in points[1:]:
        if point[1] >= 1.0:
            x, y = np.log([won[0], point[0]]), np.log([won[1], point[1]])
            return float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))
        won = point
    return 1.0
