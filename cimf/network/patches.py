"""The design of a layer: patches of its input over samples and positions, never unfolded whole."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torch.nn import functional

from cimf.network.layers import Layer
from cimf.statistics import Gram

# Values of one piece of patches (about 64 MB in float64).
_PIECE = 8_000_000


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
