"""Parameters that are multiplied by something that is trained: gates, scaling factors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Times(nn.Module):
    """w -> factor() * w."""

    def __init__(self, factor: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.factor, self.shape = factor, shape

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor().view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def multiply(module: Any, name: str, factor: nn.Module, shape: tuple[int, ...]) -> None:
    """Let a module compute with factor().view(shape) times its parameter, which stays as stored.

    Several parameters may share a factor. `cimf.network.copies.plain_copy` writes the products out.
    """
    parametrize.register_parametrization(module, name, _Times(factor, shape))
