"""The zeros of a sparse network, kept while it is trained."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cimf.errors import InputError

Net = TypeVar("Net", bound=nn.Module)

_CONVOLUTIONS = nn.modules.conv._ConvNd
_BY_ROWS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Kept(nn.Module):
    """w -> w where it was not zero, else exactly 0; so is its gradient."""

    kept: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", weight.detach() != 0)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.kept, weight, 0.0)  # not a product: 0 times NaN is NaN

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return what is stored when a weight is assigned."""
        return weight


def keep_zeros(network: Net) -> Net:
    """Hold the zeros of all convolution and linear weights at zero, in place.

    Each weight that has zeros gets a parametrization (`torch.nn.utils.parametrize`): the network
    computes with where(weight was not 0, parameter, 0). The gradient of a zero is zero, and what
    momentum or weight decay make of its parameter is not used.

    Parameters
    ----------
    network : nn.Module
        Called again, it also holds the weights that have become zero since.

    Returns
    -------
    nn.Module
        The same object. Its parameters are the same objects too, so an optimiser that has them
        goes on working; their order is another.

    Raises
    ------
    InputError
        A weight is computed from other parameters already (pruning masks, weight normalisation,
        another parametrization): the message names the layer. Nothing has been changed then.

    Notes
    -----
    Until `release_zeros`, ``state_dict()`` names a weight ``parametrizations.weight.original`` and
    its pattern ``parametrizations.weight.0.kept``, and is loaded by a network under `keep_zeros`
    with zeros in the same layers. `copy.deepcopy` works; `pickle` and `torch.save` of the module
    itself do not (a limit of `torch.nn.utils.parametrize`).
    """
    _check(network)
    release_zeros(network)
    for module in _layers(network):
        weight = module.weight
        if (weight == 0).any():
            parametrize.register_parametrization(module, "weight", _Kept(weight))
    return network


@torch.no_grad()
def release_zeros(network: Net) -> Net:
    """Undo `keep_zeros`, in place: plain parameters, the same classes and outputs, exact zeros.

    Returns
    -------
    nn.Module
        The same object; also where nothing was held.

    Raises
    ------
    InputError
        A layer has been given another parametrization since; nothing has been changed then.
    """
    _check(network)
    for module in _layers(network):
        if not parametrize.is_parametrized(module):
            continue
        # Not by remove_parametrizations: a deep copy shares the class, and would lose the property.
        computed: Any = module.parametrizations
        original = computed["weight"].original
        original.copy_(module.weight)
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        others = dict(module._parameters)
        module._parameters.clear()
        module.register_parameter("weight", original)
        module._parameters.update(others)  # the weight first, as it was
    return network


@torch.no_grad()
def dead_channels(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return (parameter, mask) of biases, scales and shifts that belong to channels that are gone.

    A bias that is zero where its row of weights is; scale and shift of a batch norm where both are
    zero. Trained on, they would turn a channel that is zero for every input into a constant.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            gone = (module.weight == 0) & (module.bias == 0)
            found += [(module.weight, gone), (module.bias, gone)]
        elif isinstance(module, _BY_ROWS) and module.bias is not None:
            empty = (module.weight.flatten(1) == 0).all(1)
            found.append((module.bias, empty & (module.bias == 0)))
    return [(parameter, gone) for parameter, gone in found if gone.any()]


def _layers(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, (nn.Linear, _CONVOLUTIONS))]


def _check(network: nn.Module) -> None:
    """Refuse layers whose weight is computed by somebody else."""
    for path, module in network.named_modules():
        if not isinstance(module, (nn.Linear, _CONVOLUTIONS)):
            continue
        if parametrize.is_parametrized(module):
            computed: Any = module.parametrizations
            steps = {name: [type(step) for step in steps] for name, steps in computed.items()}
            plain = steps == {"weight": [_Kept]}
        else:
            plain = "weight" in module._parameters
        if not plain:
            raise InputError(
                f"the weight of layer {path or 'the network itself'!r} ({type(module).__name__}) "
                "is computed from other parameters (a mask, a normalisation, a parametrization): "
                "remove that first, as torch.nn.utils.prune.remove or remove_parametrizations do"
            )
