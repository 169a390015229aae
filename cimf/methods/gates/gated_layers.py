"""A network whose convolution and linear weights are multiplied by hard-concrete gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cimf.errors import InputError, UnknownNameError
from cimf.methods.gates.hard_concrete import HardConcrete
from cimf.methods.multiplied import multiply
from cimf.network.copies import plain_copy
from cimf.network.exported import MATCHED
from cimf.network.hooks import hooked
from cimf.train.norms import eval_mode

STRUCTURES = (None, "channels")


@dataclass(frozen=True)
class GatedLayer:
    """One gated layer.

    Attributes
    ----------
    path : str
    module : nn.Module
    gates : HardConcrete
        One per weight; per input neuron of a linear layer, (columns,); per output channel of a
        convolution, (rows,).
    norm : nn.Module or None
        The batch norm that the gates of output channels act on.
    weights : int
        All weights of the layer.
    positions : int
        How often every weight is used on one sample: its multiply-adds.
    """

    path: str
    module: Any
    gates: HardConcrete
    norm: Any
    weights: int
    positions: int

    @property
    def group(self) -> int:
        """Weights per gate."""
        return self.weights // self.gates.log_alpha.numel()

    def active(self) -> Tensor:
        """Return the expected number of weights whose gate is open."""
        return self.gates.open_probability().sum() * self.group


class Gated(nn.Module):
    """A network with gates; called like the network itself, it draws new gates in training mode.

    Parameters
    ----------
    network : nn.Module
        Changed in place: its weights get parametrizations. In eval mode it computes what it
        computed before.
    sample : (b, ...)
        Inputs on the network's device: which layers are called, and how often.
    structure : None or "channels"
        A gate per weight; or per output channel of a convolution (with its bias and the scale and
        shift of its batch norm) and per input neuron of a linear layer.
    drop : float
        Initially P(z > 0) is sigmoid(log((1 - drop) / drop) + 1.6); in (0, 0.8].
    keep : iterable of str
        Layers without gates.
    norms : mapping of str to str
        Path of the batch norm directly behind a convolution. Without it a channel's gate acts on
        the convolution, and a batch norm in training mode undoes its scale.

    Raises
    ------
    InputError, UnknownNameError
        No layer is left, an unknown structure or layer, a weight that is computed from others.
    """

    def __init__(
        self,
        network: nn.Module,
        sample: Tensor,
        *,
        structure: str | None = None,
        drop: float = 0.05,
        keep: Iterable[str] = (),
        norms: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if structure not in STRUCTURES:
            raise UnknownNameError("structure of gates", structure, ["channels"])
        if not 0.0 < drop <= 0.8:
            raise InputError(f"drop must be in (0, 0.8], got {drop!r}")
        self.network = network
        calls, keep = _positions(network, sample), set(keep)
        if unknown := keep - set(calls):
            raise UnknownNameError("layer", min(unknown), calls)
        with eval_mode(network):  # registering a parametrization evaluates it: nothing is drawn
            self.layers = [
                _gated(network, path, calls[path], structure, drop, (norms or {}).get(path, ""))
                for path in calls
                if path not in keep
            ]
        self.training = network.training
        for layer in self.layers:
            layer.gates.train(self.training)
        if not self.layers:
            raise InputError("no convolution or linear layer is left to have gates")

    def forward(self, *inputs: Any) -> Any:
        """Return the network's output; in training mode with gates drawn anew."""
        if self.training:
            for layer in self.layers:
                layer.gates.draw()
        return self.network(*inputs)

    def gate_parameters(self) -> list[nn.Parameter]:
        """Return the log alphas, layer by layer."""
        return [layer.gates.log_alpha for layer in self.layers]

    def network_parameters(self) -> list[nn.Parameter]:
        """Return all others that require a gradient."""
        gates = {id(p) for p in self.gate_parameters()}
        return [p for p in self.network.parameters() if id(p) not in gates and p.requires_grad]

    def densities(self) -> Tensor:
        """Return the expected share of open weights of every layer, (layers,)."""
        return torch.stack([layer.active() / layer.weights for layer in self.layers])

    def density(self, multiply_adds: bool = False) -> Tensor:
        """Return the expected share of open weights, or multiply-adds, of all gated layers."""
        size = self._sizes(multiply_adds)
        return self.densities() @ size / size.sum()

    @torch.no_grad()
    def median_densities(self) -> Tensor:
        """Return the share of weights of every layer whose gate is open at test time."""
        shares = [(layer.gates.medians() > 0).double().mean() for layer in self.layers]
        return torch.stack(shares).to(self.densities())

    @torch.no_grad()
    def median_density(self, multiply_adds: bool = False) -> float:
        """Return the share of weights, or multiply-adds, that is open at test time."""
        size = self._sizes(multiply_adds)
        return float(self.median_densities() @ size / size.sum())

    def _sizes(self, multiply_adds: bool) -> Tensor:
        sizes = [layer.weights * (layer.positions if multiply_adds else 1) for layer in self.layers]
        first = self.layers[0].gates.log_alpha
        return torch.tensor(sizes, dtype=first.dtype, device=first.device)

    def clamp(self) -> None:
        """Put every log alpha back into its bounds."""
        for layer in self.layers:
            layer.gates.clamp()

    @torch.no_grad()
    def purge(self) -> nn.Module:
        """Return the plain network at test time: exact zeros, the same class, no gates."""
        network = plain_copy(self.network)
        for layer in self.layers:
            if layer.norm is not None:
                module: Any = network.get_submodule(layer.path)
                closed = layer.gates.medians() == 0
                module.weight[closed] = 0.0
                if module.bias is not None:
                    module.bias[closed] = 0.0
        return network

    @torch.no_grad()
    def select(self, counts: Mapping[tuple[str, ...], int]) -> list[float]:
        """Keep the gates of largest log alpha open at test time, whatever their medians.

        Equal log alphas (they are clamped) go by the size of the weights behind the gate.

        Parameters
        ----------
        counts : mapping of paths to int
            For each group of layers, how many weights stay. With several weights per gate as many
            gates as come closest.

        Returns
        -------
        list of float
            The smallest log alpha that was kept, by group (infinity: none).
        """
        return [self._select(paths, count) for paths, count in counts.items()]

    def _select(self, paths: tuple[str, ...], count: int) -> float:
        layers = [layer for layer in self.layers if layer.path in paths]
        alphas = torch.cat([layer.gates.log_alpha.flatten() for layer in layers]).double()
        sizes = torch.cat([_sizes_behind(layer) for layer in layers])
        weights = torch.cat([
            torch.full((layer.gates.log_alpha.numel(),), layer.group, device=alphas.device)
            for layer in layers
        ])  # fmt: skip
        order = sizes.argsort(descending=True, stable=True)
        order = order[alphas[order].argsort(descending=True, stable=True)]
        total = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
        stay = order[: int((total - count).abs().argmin())]
        kept = torch.zeros_like(alphas, dtype=torch.bool)
        kept[stay] = True
        parts = kept.split([layer.gates.log_alpha.numel() for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.gates.keep(part.view_as(layer.gates.log_alpha))
        return float(alphas[stay].min()) if len(stay) else float("inf")


@torch.no_grad()
def _positions(network: nn.Module, sample: Tensor) -> dict[str, int]:
    """Return how often each weight of the called layers is used on one sample, by path."""
    found: dict[str, int] = {}

    def hook(path: str) -> Any:
        def count(module: Any, _inputs: Any, output: Tensor) -> None:
            channels = module.weight.shape[0]
            found[path] = found.get(path, 0) + output.numel() // (len(sample) * channels)

        return count

    hooks = [
        module.register_forward_hook(hook(path))
        for path, module in network.named_modules()
        if isinstance(module, MATCHED)
    ]
    with eval_mode(network), hooked(hooks):
        network(sample.clone())
    return found


def _sizes_behind(layer: GatedLayer) -> Tensor:
    """Return the sum of the squared weights behind each gate."""
    parametrized = parametrize.is_parametrized(layer.module, "weight")
    weight = layer.module.parametrizations.weight.original if parametrized else layer.module.weight
    square, gates = weight.detach().double().square(), layer.gates.log_alpha
    if gates.shape == weight.shape:
        return square.flatten()
    return square.flatten(1).sum(1) if weight.ndim > 2 else square.sum(0)


def _gated(
    network: nn.Module, path: str, positions: int, structure: str | None, drop: float, norm: str
) -> GatedLayer:
    module: Any = network.get_submodule(path)
    if "weight" not in module._parameters:
        raise InputError(
            f"the weight of layer {path or 'the network itself'!r} is computed from other "
            "parameters; take a plain copy first"
        )
    weight = module.weight
    if structure is None:
        gates = HardConcrete(tuple(weight.shape), drop, weight)
        _attach(module, ["weight"], gates, tuple(weight.shape))
        return GatedLayer(path, module, gates, None, weight.numel(), positions)
    if isinstance(module, nn.Linear):
        gates = HardConcrete((weight.shape[1],), drop, weight)
        _attach(module, ["weight"], gates, (1, -1))
        return GatedLayer(path, module, gates, None, weight.numel(), positions)
    gates = HardConcrete((weight.shape[0],), drop, weight)
    behind: Any = network.get_submodule(norm) if norm else None
    if behind is not None and behind.affine:
        _attach(behind, ["weight", "bias"], gates, (-1,))
        return GatedLayer(path, module, gates, behind, weight.numel(), positions)
    _attach(module, ["weight"], gates, (-1, *[1] * (weight.ndim - 1)))
    if module.bias is not None:
        _attach(module, ["bias"], gates, (-1,))
    return GatedLayer(path, module, gates, None, weight.numel(), positions)


@torch.no_grad()
def _attach(module: Any, names: Iterable[str], gates: HardConcrete, shape: tuple[int, ...]) -> None:
    """Multiply parameters by gates; what is stored is divided by the medians that they begin with.

    The function at test time stays what it is.
    """
    for name in names:
        getattr(module, name).div_(gates.medians().view(shape))
        multiply(module, name, gates, shape)
