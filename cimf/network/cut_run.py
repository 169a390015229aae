"""Running a traced network node by node, with its states read off or replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from cimf.errors import CaptureError
from cimf.network.cut import Network

_CASTS = (
    torch.Tensor.float,
    torch.Tensor.half,
    torch.Tensor.bfloat16,
    torch.Tensor.to,
    torch.Tensor.type,
)


class KeepFloat64(TorchFunctionMode):
    """Leaves out casts of float64 tensors, which would round the states (``x.float()``)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        lossy = func in _CASTS and args[0].dtype == torch.float64 and out.is_floating_point()
        return args[0] if lossy else out


class Lane(fx.Interpreter):
    """One evaluation of a network on a batch of inputs u (k, ...).

    Parameters
    ----------
    network : Network
    u : Tensor (k, ...)
        float64; cloned, because an in-place activation may act on it.
    states : sequence of Tensor (k, ...), optional
        Values that replace the output of each nonlinearity, in order of execution: the network
        cut open. Default: the network itself.

    Attributes
    ----------
    z, x : list of Tensor (k, ...)
        Input and output of every nonlinearity, cloned before and right after it ran.
    """

    def __init__(
        self, network: Network, u: torch.Tensor, states: Sequence[torch.Tensor] | None = None
    ) -> None:
        super().__init__(network.module, garbage_collect_values=False)
        self.network, self.states = network, states
        self.args_iter = iter([u.clone()])
        self.n_samples = u.shape[0]
        self.z: list[torch.Tensor] = []
        self.x: list[torch.Tensor] = []
        self._output: Any = None

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node; raises `CaptureError` naming it if it fails."""
        try:
            with KeepFloat64():
                return self._run_cut(n) if n in self.network.cuts else self._run_plain(n)
        except CaptureError:
            raise
        except Exception as error:
            raise CaptureError(
                f"{self.network.where(n)} failed on {self.n_samples} float64 samples: {error}"
            ) from error

    def _run_plain(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "output":
            self._output = out.clone() if isinstance(out, torch.Tensor) else out
        return out

    @property
    def y(self) -> torch.Tensor:
        """The output (k, ...); raises `CaptureError` if it is not one tensor of that form."""
        out = self._output
        if not isinstance(out, torch.Tensor) or out.shape[:1] != (self.n_samples,):
            kind = (
                f"a tensor of shape {tuple(out.shape)}"
                if isinstance(out, torch.Tensor)
                else f"a {type(out).__name__.removeprefix('immutable_')}"
            )
            raise CaptureError(
                f"the network returns {kind} for {self.n_samples} samples; one tensor with the "
                "samples in its first dimension is needed (wrap the network to select it)"
            )
        return out

    def _run_cut(self, n: fx.Node) -> torch.Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        z = (args[0] if args else kwargs["input"]).clone()
        if z.shape[:1] != (self.n_samples,):
            raise CaptureError(
                f"{self.network.where(n)} acts on a tensor of shape {tuple(z.shape)} for "
                f"{self.n_samples} samples: the samples must be in the first dimension"
            )
        out = super().run_node(n)
        if self.states is not None:
            # Into the tensor itself: an in-place activation also changes its input, and later
            # layers may read that one.
            out.copy_(self.states[len(self.z)])
        self.z.append(z)
        self.x.append(out.clone())
        return out


@torch.no_grad()
def run_lanes(network: Network, lanes: Sequence[Lane]) -> Iterator[fx.Node]:
    """Run several lanes in step; yields every node once all lanes have its value in ``env``."""
    for node in network.module.graph.nodes:
        for lane in lanes:
            lane.env[node] = lane.run_node(node)
        yield node
        for lane in lanes:
            for dead in network.last_uses[node]:
                del lane.env[dead]


def run(network: Network, u: torch.Tensor, states: Sequence[torch.Tensor] | None = None) -> Lane:
    """Run one lane to its end and return it."""
    lane = Lane(network, u, states)
    for _ in run_lanes(network, [lane]):
        pass
    return lane
