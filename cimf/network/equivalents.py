"""Modules that are other layers in disguise, written with those and written back.

Attention keeps the weights of query, key and value in one parameter, as row blocks that read their
own inputs; a transposed convolution is a convolution over an input with zeros between its entries;
a recurrent layer calls two linear maps once and once per step. Each has an equivalent here, made of
linear layers and convolutions, whose rows go back into the module's own parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from cimf.errors import CaptureError


class Equivalent(nn.Module):
    """Computes what a module does by calls of layers that are matched."""

    @classmethod
    def takes(cls, module: Any) -> bool:
        """Whether the class has an equivalent of this module."""
        raise NotImplementedError

    def write(self, module: Any) -> None:
        """Write the layers' weights into the module that this was made from, or one like it."""
        raise NotImplementedError


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with a copy of a weight (r, N) and a bias (r,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, "meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


class AttentionLayers(Equivalent):
    """`nn.MultiheadAttention` as linear layers q, k, v and out_proj, without dropout."""

    batch_first = False  # what nn.TransformerEncoder asks for before it leaves modules aside

    @classmethod
    def takes(cls, module: Any) -> bool:
        """All but added keys, which are no rows."""
        plain = type(module) is nn.MultiheadAttention and module.bias_k is None
        return plain and not module.add_zero_attn

    def __init__(self, module: Any) -> None:
        super().__init__()
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        parts = zip(self._weights(module), biases, strict=True)
        self.q, self.k, self.v = (linear(weight, bias) for weight, bias in parts)
        self.out_proj = linear(module.out_proj.weight, module.out_proj.bias)
        self.heads, self.samples_first = module.num_heads, module.batch_first

    @staticmethod
    def _weights(module: Any) -> tuple[Tensor, ...]:
        if module.in_proj_weight is None:
            return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
        return module.in_proj_weight.chunk(3)

    def write(self, module: Any) -> None:
        """See `Equivalent.write`."""
        layers = (self.q, self.k, self.v)
        for layer, weight in zip(layers, self._weights(module), strict=True):
            weight.copy_(layer.weight)
        if module.in_proj_bias is not None:
            module.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        module.out_proj.weight.copy_(self.out_proj.weight)
        if module.out_proj.bias is not None:
            module.out_proj.bias.copy_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as the module does; `is_causal` only describes `attn_mask`."""
        if query.dim() == 2:
            raise CaptureError("attention without a dimension of samples is not followed")
        first = 0 if self.samples_first else 1

        def heads(layer: nn.Module, x: Tensor) -> Tensor:  # (b, heads, tokens, width)
            y: Tensor = layer(x).unflatten(-1, (self.heads, -1))
            return y.movedim(first, 0).transpose(1, 2)

        q, k, v = heads(self.q, query), heads(self.k, key), heads(self.v, value)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if attn_mask is not None:
            mask = attn_mask
            if mask.dim() == 3:
                mask = mask.unflatten(0, (-1, self.heads))
            logits = _masked(logits, mask)
        if key_padding_mask is not None:
            logits = _masked(logits, key_padding_mask[:, None, None, :])
        weights = torch.softmax(logits, -1)
        y = (weights @ v).transpose(1, 2).flatten(2).movedim(0, first)
        if not need_weights:
            return self.out_proj(y), None
        return self.out_proj(y), weights.mean(1) if average_attn_weights else weights


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Add a mask, or leave out where one of bool is True."""
    if mask.dtype == torch.bool:
        return logits.masked_fill(mask, float("-inf"))
    return logits + mask


class TransposedLayer(nn.Linear, Equivalent):
    """`transformers.pytorch_utils.Conv1D`: a linear layer that keeps its weight as (in, out)."""

    @classmethod
    def takes(cls, module: Any) -> bool:
        """See `Equivalent.takes`; without importing the library, and also under `keep_zeros`."""
        kind = type(module).__bases__[0] if is_parametrized(module) else type(module)
        return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")

    def __init__(self, module: Any) -> None:
        n_in, n_out = module.weight.shape
        super().__init__(n_in, n_out, device="meta")
        self.weight = nn.Parameter(module.weight.detach().T.clone(), module.weight.requires_grad)
        self.bias = nn.Parameter(module.bias.detach().clone(), module.bias.requires_grad)

    def write(self, module: Any) -> None:
        """See `Equivalent.write`."""
        module.weight.copy_(self.weight.T)
        module.bias.copy_(self.bias)


class ConvolvedLayer(Equivalent):
    """A transposed convolution as one over the input with zeros between its entries.

    The kernel is turned around; where the stride is s, an output place reads one in s of its
    columns along each axis.
    """

    @classmethod
    def takes(cls, module: Any) -> bool:
        """See `Equivalent.takes`."""
        return type(module) in (nn.ConvTranspose1d, nn.ConvTranspose2d)

    def __init__(self, module: Any) -> None:
        super().__init__()
        weight = self._turned(module.weight, module.groups)
        kind: Any = nn.Conv1d if weight.ndim == 3 else nn.Conv2d
        self.conv = kind(
            weight.shape[1] * module.groups, weight.shape[0], module.kernel_size,
            dilation=module.dilation, groups=module.groups, bias=module.bias is not None,
            device="meta",
        )  # fmt: skip
        self.conv.weight = nn.Parameter(weight.detach().clone(), module.weight.requires_grad)
        if module.bias is not None:
            bias = module.bias.detach().clone()
            self.conv.bias = nn.Parameter(bias, module.bias.requires_grad)
        reach = [
            gap * (size - 1) - pad
            for gap, size, pad in zip(
                module.dilation, module.kernel_size, module.padding, strict=True
            )
        ]
        # Of a layer: its input has entries of its own from here on, at these distances.
        self.conv.spread = tuple(zip(reach, module.stride, strict=True))
        ends = zip(reach, module.output_padding, strict=True)
        self.stride = module.stride
        self.padding = [n for left, more in reversed(list(ends)) for n in (left, left + more)]

    @staticmethod
    def _turned(weight: Tensor, groups: int) -> Tensor:
        """Return the weight (in, out / groups, ...) as (out, in / groups, ...), or back."""
        parts = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return parts.flip(list(range(2, weight.ndim)))

    def write(self, module: Any) -> None:
        """See `Equivalent.write`."""
        module.weight.copy_(self._turned(self.conv.weight, module.groups))
        if module.bias is not None:
            module.bias.copy_(self.conv.bias)

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        """Convolve; the size of the output is that of the module's own `output_padding`."""
        if output_size is not None:
            raise CaptureError(
                "a transposed convolution with output_size is not followed: give it output_padding"
            )
        for axis, step in enumerate(self.stride, start=2):
            if step > 1:
                size = x.shape[axis]
                x = torch.stack([x, *[torch.zeros_like(x)] * (step - 1)], axis + 1)
                x = x.flatten(axis, axis + 1).narrow(axis, 0, (size - 1) * step + 1)
        return self.conv(functional.pad(x, self.padding))
