"""Hard-concrete gates: z in [0, 1] with atoms at 0 and 1, and a closed-form P(z > 0).

Louizos, Welling and Kingma 2018, "Learning sparse neural networks through L0 regularization": with
u uniform, s = sigmoid((log u - log(1 - u) + log alpha) / beta), z = min(1, max(0, s (b - a) + a)).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# The stretch (a, b) and the temperature beta of the paper, section 4; Gallego-Posada et al. 2022
# clamp |log alpha| to ln 100.
LOW, HIGH = -0.1, 1.1
TEMPERATURE = 2.0 / 3.0
BOUND = math.log(100.0)
# P(z > 0) = sigmoid(log alpha - _CLOSED); below _CLOSED the median is zero.
_CLOSED = TEMPERATURE * math.log(-LOW / HIGH)
_EDGE = 1e-6


class HardConcrete(nn.Module):
    """Gates with one log alpha each.

    In training mode the gates are those of the last `draw`, in eval mode the medians.

    Parameters
    ----------
    shape : tuple of int
    drop : float
        The initial log alpha is log((1 - drop) / drop). Below 0.83, so that the medians are open.
    like : Tensor
        Gives dtype and device.
    """

    def __init__(self, shape: tuple[int, ...], drop: float, like: Tensor) -> None:
        super().__init__()
        start = math.log((1.0 - drop) / drop)
        self.log_alpha = nn.Parameter(
            torch.full(shape, start, dtype=like.dtype, device=like.device)
        )
        self.noise: Tensor | None = None
        self.register_buffer("kept", None)
        self.kept: Tensor | None

    @torch.no_grad()
    def draw(self) -> None:
        """Draw the gates of the next forward pass in training mode."""
        u = torch.rand_like(self.log_alpha)
        self.noise = _EDGE + (1.0 - 2.0 * _EDGE) * u

    def forward(self) -> Tensor:
        """Return the gates, between 0 and 1."""
        if not self.training:
            return self.medians()
        if self.noise is None:
            self.draw()
        assert self.noise is not None
        return _gate(self.noise, self.log_alpha)

    def open_probability(self) -> Tensor:
        """Return P(z > 0) of each gate."""
        return torch.sigmoid(self.log_alpha - _CLOSED)

    def medians(self) -> Tensor:
        """Return the gates of test time: the medians, or what `keep` made of them.

        A gate that is kept although its median is zero has the median of z given z > 0.
        """
        half = torch.full_like(self.log_alpha, 0.5)
        median = _gate(half, self.log_alpha)
        if self.kept is None:
            return median
        opened = _gate(1.0 - self.open_probability() / 2.0, self.log_alpha)
        return torch.where(self.kept, torch.where(median > 0, median, opened), 0.0)

    def keep(self, kept: Tensor) -> None:
        """Choose which gates are open at test time."""
        self.kept = kept

    @torch.no_grad()
    def clamp(self) -> None:
        """Put log alpha back into [-ln 100, ln 100]."""
        self.log_alpha.clamp_(-BOUND, BOUND)


def _gate(u: Tensor, log_alpha: Tensor) -> Tensor:
    """Return the quantile of z at u."""
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0.0, 1.0)
