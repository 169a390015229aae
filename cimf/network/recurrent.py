"""Recurrent layers as linear layers that are called step by step.

The gates' matrices stand below each other: a linear layer `ih` of the inputs, called once for the
whole sequence, and one `hh` of the states before, called at every step. (For a GRU's new state the
part of `hh` is multiplied by the reset gate; with the biases that torch keeps apart, it is a linear
layer all the same.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cimf.errors import CaptureError
from cimf.network.equivalents import Equivalent, linear


def step(kind: str, given: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> Any:
    """Return the next state from W_ih x + b_ih, W_hh h + b_hh and the state (h, and c of an LSTM).

    Parameters
    ----------
    kind : str
        "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
    """
    if kind == "LSTM":
        i, f, g, o = (given + recurrent).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if kind == "GRU":
        (r, z, n), (r_, z_, n_) = given.chunk(3, -1), recurrent.chunk(3, -1)
        z = torch.sigmoid(z + z_)
        n = torch.tanh(n + torch.sigmoid(r + r_) * n_)
        return ((1 - z) * n + z * state[0],)
    act = torch.tanh if kind == "RNN_TANH" else torch.relu
    return (act(given + recurrent),)


class RecurrentLayers(Equivalent):
    """`nn.LSTM`, `nn.GRU` or `nn.RNN`, the steps written one after the other, without dropout.

    The number of steps is that of the samples it is traced with.
    """

    @classmethod
    def takes(cls, module: Any) -> bool:
        """All but LSTMs with projections."""
        return type(module) in (nn.LSTM, nn.GRU, nn.RNN) and not module.proj_size

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.kind, self.size = module.mode, module.hidden_size
        self.samples_first, self.n_layers = module.batch_first, module.num_layers
        self.ends = ["", "_reverse"] if module.bidirectional else [""]
        for name in self._names():
            for part in ("ih", "hh"):
                bias = getattr(module, f"bias_{part}{name}", None)
                layer = linear(getattr(module, f"weight_{part}{name}"), bias)
                self.add_module(f"{part}{name}", layer)

    def _names(self) -> list[str]:
        return [f"_l{k}{end}" for k in range(self.n_layers) for end in self.ends]

    def write(self, module: Any) -> None:
        """See `Equivalent.write`."""
        for name in self._names():
            for part in ("ih", "hh"):
                layer: Any = getattr(self, f"{part}{name}")
                getattr(module, f"weight_{part}{name}").copy_(layer.weight)
                if layer.bias is not None:
                    getattr(module, f"bias_{part}{name}").copy_(layer.bias)

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        """Return the outputs and the last states, as the module does."""
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise CaptureError(
                "a recurrent layer is followed on tensors (samples, steps, features) only: no "
                "packed sequences, no single ones"
            )
        axis = 1 if self.samples_first else 0
        count = 2 if self.kind == "LSTM" else 1
        given = None if hx is None else hx if isinstance(hx, tuple | list) else (hx,)
        ends: list[tuple[Tensor, ...]] = []
        for k in range(self.n_layers):
            sides = []
            for end in self.ends:
                gates = getattr(self, f"ih_l{k}{end}")(x)
                zero = x.select(axis, 0).new_zeros(x.shape[1 - axis], self.size)
                state = (zero,) * count
                if given is not None:
                    state = tuple(part[len(ends)] for part in given)
                steps = list(range(x.shape[axis]))
                found: list[Tensor] = []
                for t in reversed(steps) if end else steps:
                    before = getattr(self, f"hh_l{k}{end}")(state[0])
                    state = step(self.kind, gates.select(axis, t), before, state)
                    found.append(state[0])
                ends.append(state)
                sides.append(torch.stack(found[::-1] if end else found, axis))
            x = torch.cat(sides, -1)
        last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return x, last if self.kind == "LSTM" else last[0]


class RecurrentCell(Equivalent):
    """`nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` as linear layers ih and hh."""

    @classmethod
    def takes(cls, module: Any) -> bool:
        """See `Equivalent.takes`."""
        return type(module) in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)

    def __init__(self, module: Any) -> None:
        super().__init__()
        kind = type(module).__name__.removesuffix("Cell")
        self.kind = f"RNN_{module.nonlinearity.upper()}" if kind == "RNN" else kind
        self.size = module.hidden_size
        self.ih = linear(module.weight_ih, module.bias_ih)
        self.hh = linear(module.weight_hh, module.bias_hh)

    def write(self, module: Any) -> None:
        """See `Equivalent.write`."""
        for name, layer in (("ih", self.ih), ("hh", self.hh)):
            getattr(module, f"weight_{name}").copy_(layer.weight)
            if layer.bias is not None:
                getattr(module, f"bias_{name}").copy_(layer.bias)

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        """Return the next state, as the module does."""
        state = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
        if hx is None:
            state = (x.new_zeros(x.shape[0], self.size),) * (2 if self.kind == "LSTM" else 1)
        found = step(self.kind, self.ih(x), self.hh(state[0]), state)
        return found if self.kind == "LSTM" else found[0]
