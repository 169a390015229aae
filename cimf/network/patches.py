"""A layer as a row problem: its rows, and patches of its input, never unfolded whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from cimf.statistics import Gram

# Values of one piece of patches (about 64 MB in float64).
_PIECE = 8_000_000


@dataclass(frozen=True, eq=False)
class Layer:
    """One matched layer.

    Attributes
    ----------
    path : str
        Of the module in the network.
    node : fx.Node
        The call of the module in the folded graph.
    module : nn.Module
        The folded copy; nothing changes it: other rows are given to the call.
    norm : str
        Path of the folded batch norm, or "".
    input_shape, output_shape : tuple of int
        Of one sample at the layer.
    sample_axis : int or None
        Of the output: where the samples follow each other (0 but in sequence-first code). None
        where they alternate along the first axis.
    summand : fx.Node or None
        What is added to the layer's output before anything else sees it, known when the layer runs.
        The sum has the shape of the output, the summand may be smaller (it is broadcast).
    again : tuple of Layer
        Further calls of the module, in order; everything above is of the first one.
    lookups : tuple of fx.Node
        Calls of embeddings whose table is the layer's weight (the tied head of a language model).
    """

    path: str
    node: fx.Node
    module: Any
    norm: str = ""
    summand: fx.Node | None = None
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    sample_axis: int | None = 0
    again: tuple[Layer, ...] = ()
    lookups: tuple[fx.Node, ...] = ()

    @property
    def calls(self) -> tuple[Layer, ...]:
        """All calls of the module, in order."""
        return (self, *self.again)

    @property
    def source(self) -> fx.Node:
        """The node whose value the layer reads."""
        return self.node.all_input_nodes[0]

    @property
    def groups(self) -> int:
        """How many blocks of rows have a design of their own."""
        return int(getattr(self.module, "groups", 1))

    @property
    def has_bias(self) -> bool:
        """Whether the last column of the rows is a free bias."""
        return self.module.bias is not None

    @property
    def weight(self) -> Tensor:
        """The folded weight as rows, shape (r, N): one row per output channel, float64."""
        return self.module.weight.detach().double().flatten(1)

    @property
    def n_rows(self) -> int:
        """Output channels r."""
        return int(self.module.weight.shape[0])

    @property
    def n_columns(self) -> int:
        """Columns of a row without the bias: input channels of its group times kernel size."""
        return int(self.module.weight[0].numel())

    @property
    def n_weights(self) -> int:
        """Entries of the layer's weight."""
        return self.n_rows * self.n_columns

    @property
    def repeats(self) -> NDArray[np.int64]:
        """How often each column of a row occurs in the unrolled matrix (A, B, C, D), shape (N,).

        A convolution's weight acts at every output position whose patch reaches inside the image
        there; padding with anything but zeros reaches inside everywhere.
        """
        module = self.module
        if isinstance(module, nn.Linear):
            return np.full(self.n_columns, math.prod(self.output_shape[:-1]))
        total = np.ones(1, dtype=np.int64)
        before = module._reversed_padding_repeated_twice[::-1][1::2]  # left of each axis
        for axis, (size, stride, gap) in enumerate(
            zip(module.kernel_size, module.stride, module.dilation, strict=True), start=1
        ):
            place = np.arange(self.output_shape[axis]) * stride - before[axis - 1]
            place = place + gap * np.arange(size)[:, None]
            inside = (place >= 0) & (place < self.input_shape[axis])
            if spread := getattr(module, "spread", ()):  # zeros in between and around
                first, step = spread[axis - 1]
                inside &= (place >= first) & ((place - first) % step == 0)
                inside &= place <= self.input_shape[axis] - 1 - first
            if module.padding_mode != "zeros":
                inside[:] = True
            total = (total[:, None] * inside.sum(axis=1)).ravel()
        return np.tile(total, self.n_columns // len(total))

    @property
    def channel_axis(self) -> int:
        """Axis of the output that counts the rows; the others are samples and positions."""
        return -1 if isinstance(self.module, nn.Linear) else 1

    def parameters(self, rows: Mapping[str, tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        """Return the module's parameters for rows (r, N) and a bias (r,); {} for present ones."""
        if self.path not in rows:
            return {}
        weight, bias = rows[self.path]
        own = self.module.weight
        found = {"weight": weight.to(own.dtype).reshape(own.shape).contiguous()}
        return found if bias is None else {**found, "bias": bias.to(own.dtype)}

    def __call__(self, x: Tensor, rows: Mapping[str, tuple[Tensor, Tensor | None]]) -> Tensor:
        """Return the layer's output for its input x, with other rows."""
        return functional_call(self.module, self.parameters(rows), (x,))


def grid(
    layer: Layer, output: Tensor, limit: int | None, rng: np.random.Generator
) -> tuple[slice, ...]:
    """Return slices over the output's positions: all of them, or a regular grid of about `limit`.

    The grid's offset is random, so that over the batches every position takes part.
    """
    if isinstance(layer.module, nn.Linear):
        return ()
    sizes = output.shape[2:]
    if limit is None or math.prod(sizes) <= limit:
        return tuple(slice(None) for _ in sizes)
    step = round((math.prod(sizes) / limit) ** (1.0 / len(sizes)))
    # A transposed convolution reads other columns at other phases of its stride: all must come up.
    while any(math.gcd(step, stride) > 1 for _, stride in getattr(layer.module, "spread", ())):
        step += 1
    return tuple(slice(int(rng.integers(min(step, size))), None, step) for size in sizes)


def patches(layer: Layer, x: Tensor, where: tuple[slice, ...]) -> Tensor:
    """Return the regressors of a layer as a view, shape (groups, ..., N).

    For a convolution the dots are (b, positions...), for a linear layer its leading dimensions.
    """
    module = layer.module
    if isinstance(module, nn.Linear):
        return x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    b, c = x.shape[:2]
    x = x.reshape(b, module.groups, c // module.groups, *x.shape[2:])
    for axis, (size, stride, gap) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=3
    ):
        reach = gap * (size - 1) + 1
        x = x.unfold(axis, reach, stride)[..., ::gap]
    spatial = len(module.kernel_size)
    for axis, part in enumerate(where, start=3):
        x = x[(slice(None),) * axis + (part,)]
    # (b, g, c, positions..., kernel...) -> (g, b, positions..., c, kernel...)
    order = [1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial)]
    return x.permute(order)


def targets(layer: Layer, z: Tensor, where: tuple[slice, ...]) -> Tensor:
    """Return the output of a layer at the positions of `patches`, shape (samples, r)."""
    if isinstance(layer.module, nn.Linear):
        return z.reshape(-1, z.shape[-1])
    z = z[(slice(None), slice(None), *where)]
    return z.movedim(1, -1).reshape(-1, z.shape[1])


class PatchGram:
    """Streamed statistics of one layer: G = M' M per group, C = M' Z, over samples and positions.

    Attributes
    ----------
    gram : (groups, N', N')
        N' = N + 1 where the layer has a bias (its column of ones is last), else N. float64, the
        upper triangle: `group` returns the whole.
    corr : (r, N')
    target_sq : (r,)
    n_samples : int
        Samples times positions.
    """

    def __init__(self, layer: Layer, precision: torch.dtype = torch.float64) -> None:
        self.layer, self.precision = layer, precision
        width = layer.n_columns + layer.has_bias
        self.gram = torch.zeros(layer.groups, width, width, dtype=torch.float64)
        self.corr = torch.zeros(layer.n_rows, width, dtype=torch.float64)
        self.target_sq = torch.zeros(layer.n_rows, dtype=torch.float64)
        self.n_samples = 0

    def update(self, x: Tensor, z: Tensor, where: tuple[slice, ...] = ()) -> None:
        """Add a batch: the layer's input and its target output, at the grid `where`."""
        views = patches(self.layer, x, where)
        n = self.layer.n_columns
        rows = self.layer.n_rows // self.layer.groups
        goal = targets(self.layer, z, where)
        per_sample = max(1, goal.shape[0] // views.shape[1])
        step = max(1, _PIECE // (n * per_sample))
        for g in range(self.layer.groups):
            part = slice(g * rows, (g + 1) * rows)
            for start in range(0, views.shape[1], step):
                m = self._design(views[g, start : start + step])
                t = goal[start * per_sample : (start + step) * per_sample, part].to(self.precision)
                # Half the work of a product.
                upper = scipy.linalg.blas.get_blas_funcs("syrk", (m.numpy(),))(1.0, m.numpy().T)
                self.gram[g] += torch.from_numpy(upper)
                self.corr[part] += t.T @ m
                self.target_sq[part] += t.square().sum(0, dtype=torch.float64)
        self.n_samples += goal.shape[0]

    def pull(self) -> None:
        """Add the use of the weight W as a table: ||A - W||^2, as heavy as the uses by calls.

        Heavy relative to ||W||^2 and ||Z||^2; every row alike, also those that no sample reads.
        """
        weight, n = self.layer.weight, self.layer.n_columns
        table = float(weight.square().sum())
        strength = float(self.target_sq.sum()) / table if table > 0 else 0.0
        self.gram[0].diagonal()[:n] += strength
        self.corr[:, :n] += strength * weight
        self.target_sq += strength * weight.square().sum(1)

    def _design(self, view: Tensor) -> Tensor:
        """Return M of a piece of patches (..., N), with its column of ones, shape (samples, N')."""
        n = self.layer.n_columns
        lead = view.shape[: view.ndim - self.layer.module.weight.ndim + 1]
        design = torch.ones(*lead, n + self.layer.has_bias, dtype=self.precision)
        design[..., :n].unflatten(-1, view.shape[len(lead) :]).copy_(view)
        return design.flatten(0, -2)

    def group(self, g: int) -> Gram:
        """Return the row problems of one group."""
        rows = self.layer.n_rows // self.layer.groups
        part = slice(g * rows, (g + 1) * rows)
        upper = np.triu(self.gram[g].numpy())
        return Gram.from_moments(
            upper + np.triu(upper, 1).T,
            self.corr[part].numpy(),
            self.target_sq[part].numpy(),
            self.n_samples,
        )
