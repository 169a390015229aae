"""Whole output channels of a network: scaled, removed, and counted until a target is met.

Removing a channel sets its weights, its bias and the scale and shift of its batch norm to zero: it
is exactly zero for every input. The weights that read a channel which is zero whatever the input
are zero then too, which changes nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cimf.errors import InputError
from cimf.methods.multiplied import multiply
from cimf.network.exported import MATCHED
from cimf.network.hooks import hooked
from cimf.network.layers import LayerGraph
from cimf.train.norms import tracked_norms

# Random inputs and random weights that a channel must be zero for, to be called zero for all; at
# both scales, so that an activation with a threshold (Softshrink(5), relu(x - 30)) opens as well.
SAMPLES, SCALES = 16, (1.0, 100.0)
_DRAWS = 4


@dataclass(frozen=True)
class Channels:
    """The output channels of one layer.

    Attributes
    ----------
    path : str
    norm : str
        Path of the batch norm directly behind it, or "".
    rows, columns : int
        Channels, and weights of each.
    """

    path: str
    norm: str
    rows: int
    columns: int

    def modules(self, network: nn.Module) -> tuple[Any, Any]:
        """Return the layer, and its norm if that has scale and shift, else None."""
        norm: Any = network.get_submodule(self.norm) if self.norm else None
        return network.get_submodule(self.path), norm if norm is not None and norm.affine else None

    def flat(self, network: nn.Module) -> Tensor:
        """Return what belongs to each channel, (rows, columns and bias, scale, shift)."""
        layer, norm = self.modules(network)
        parts = [layer.weight.flatten(1)]
        if layer.bias is not None:
            parts.append(layer.bias[:, None])
        if norm is not None:
            parts += [norm.weight[:, None], norm.bias[:, None]]
        return torch.cat(parts, dim=1)

    def scale(self, network: nn.Module, factor: nn.Module) -> None:
        """Multiply every channel by its factor: the norm behind the layer, else the layer.

        In training mode a norm would undo a factor before it.
        """
        layer, norm = self.modules(network)
        module = layer if norm is None else norm
        multiply(module, "weight", factor, (-1, *[1] * (module.weight.ndim - 1)))
        if module.bias is not None:
            multiply(module, "bias", factor, (-1,))

    @torch.no_grad()
    def remove(self, network: nn.Module, gone: Tensor) -> None:
        """Set channels (rows,) bool to zero."""
        layer, norm = self.modules(network)
        for module in (layer, norm):
            if module is not None:
                module.weight[gone] = 0.0
                if module.bias is not None:
                    module.bias[gone] = 0.0


def removable(graph: LayerGraph, keep: Sequence[str]) -> list[Channels]:
    """Return the layers whose channels may go: all but `keep` and the last, the network's outputs.

    Raises
    ------
    InputError
        There is none.
    """
    found = [
        Channels(layer.path, layer.norm, layer.n_rows, layer.n_weights // layer.n_rows)
        for layer in graph.layers[:-1]
        if layer.path not in keep
    ]
    if not found:
        raise InputError("no layer is left whose channels may be removed: the last one keeps its")
    return found


@dataclass(frozen=True)
class Removal:
    """What was removed to meet a target.

    Attributes
    ----------
    network : nn.Module
        With exact zeros.
    gone : dict of str to Tensor
        By layer, which channels.
    zeros, total : int
        Of the matched weights.
    """

    network: nn.Module
    gone: dict[str, Tensor]
    zeros: int
    total: int

    def note(self, by: str) -> str:
        """Return a sentence about it."""
        removed = sum(int(mask.sum()) for mask in self.gone.values())
        channels = sum(len(mask) for mask in self.gone.values())
        return (
            f"{removed} of {channels} channels are removed, those of the smallest {by}, as many as "
            "come closest to the target: a channel's own weights are zero, and those that read a "
            "channel which is zero for every input; every layer keeps a channel"
        )


def remove_to_target(
    network: nn.Module,
    layers: Sequence[Channels],
    graph: LayerGraph,
    scores: Mapping[str, Tensor],
    sparsity: float,
    inputs: Tensor,
) -> Removal:
    """Remove the channels of smallest score, as many as bring the zeros closest to the target.

    Parameters
    ----------
    network : nn.Module
        Not modified.
    graph : LayerGraph
        Of the network's architecture: which weights count.
    scores : path -> (rows,)
        Comparable between layers. The largest of each layer stays.
    inputs : (b, ...)
        As `clear_unread`.

    Raises
    ------
    InputError
        The target is out of reach even if every layer keeps a single channel.
    """
    flat = [(float(s), k, i) for k, layer in enumerate(layers)
            for i, s in enumerate(scores[layer.path].tolist())]  # fmt: skip
    best = {k: int(scores[layer.path].argmax()) for k, layer in enumerate(layers)}
    order = [(k, i) for _, k, i in sorted(flat) if i != best[k]]
    paths = [layer.path for layer in graph.layers]
    total = sum(layer.n_weights for layer in graph.layers)

    def attempt(count: int) -> Removal:
        made = copy.deepcopy(network)
        gone = {layer.path: torch.zeros(layer.rows, dtype=torch.bool) for layer in layers}
        for k, i in order[:count]:
            gone[layers[k].path][i] = True
        for layer in layers:
            layer.remove(made, gone[layer.path])
        if count:
            clear_unread(made, inputs)
        modules: list[Any] = [made.get_submodule(path) for path in paths]
        zeros = sum(int((module.weight == 0).sum()) for module in modules)
        return Removal(made, gone, zeros, total)

    goal = round(sparsity * total)
    low, high = attempt(0), attempt(len(order))
    if high.zeros < goal:
        raise InputError(
            f"whole channels reach a sparsity of {high.zeros / total:.1%} at most, every layer "
            f"keeping one; the target is {sparsity:.1%}",
            options=["sparsity"],
        )
    least, most = 0, len(order)
    while most - least > 1:
        middle = (least + most) // 2
        found = attempt(middle)
        if found.zeros < goal:
            least, low = middle, found
        else:
            most, high = middle, found
    return low if goal - low.zeros < high.zeros - goal else high


@torch.no_grad()
def clear_unread(network: nn.Module, inputs: Tensor) -> None:
    """Set the weights to zero that read a channel which is zero for every input.

    Found by running the network on random inputs with random weights in place of all that are not
    zero, positive ones (nothing cancels, no ReLU closes) and signed ones: a channel that is exactly
    zero in all of these runs is zero because of the zeros alone.

    Parameters
    ----------
    inputs : (b, ...)
        Gives shape and type; token ids are used as they are.
    """
    dead: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for scale, draw in itertools.product(SCALES, range(_DRAWS)):
        probe = copy.deepcopy(network).to("cpu", torch.float64).eval()
        _randomise(probe, generator, scale, positive=draw % 2 == 0)
        u = inputs[:1].expand(SAMPLES, *inputs.shape[1:]) if len(inputs) < SAMPLES else inputs
        if inputs.is_floating_point():
            u = scale * (torch.rand(u.shape, generator=generator, dtype=torch.float64) + 0.5)
        for path, zero in _zero_inputs(probe, u):
            dead[path] = zero & dead.get(path, zero)
    for path, zero in dead.items():
        weight: Any = network.get_submodule(path).weight
        weight[:, zero.to(weight.device)] = 0.0


def _randomise(
    network: nn.Module, generator: torch.Generator, scale: float, positive: bool
) -> None:
    """Draw everything that is not zero anew; every layer multiplies the size by `scale`."""
    for value in network.parameters():
        drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5
        if not positive:
            drawn = drawn * (torch.randint(0, 2, value.shape, generator=generator) * 2 - 1)
        fan_in = value[0].numel() if value.ndim > 1 else 1
        value.copy_(torch.where(value == 0, 0.0, scale * drawn / fan_in))
    for norm in tracked_norms(network).values():
        norm.running_mean.copy_(torch.where(norm.running_mean == 0, 0.0, -0.1))
        norm.running_var.fill_(1.0)


def _zero_inputs(network: nn.Module, u: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Return which input channels of each layer are zero for all samples and places."""
    found: dict[str, Tensor] = {}

    def hook(path: str) -> Any:
        def look(module: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            axis = x.ndim - 1 if isinstance(module, nn.Linear) else 1
            zero = (x.transpose(0, axis).flatten(1) == 0).all(1)
            found[path] = zero & found.get(path, zero)

        return look

    hooks = [
        module.register_forward_pre_hook(hook(path))
        for path, module in network.named_modules()
        if isinstance(module, MATCHED) and getattr(module, "groups", 1) == 1
    ]
    with hooked(hooks):
        network(u)
    return iter(found.items())
