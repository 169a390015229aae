"""The zeros of a sparse network, kept while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cimf.errors import InputError
from cimf.network.equivalents import TransposedLayer

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
    """Hold the zeros of all matrices of layers at zero, in place.

    Those of convolutions, linear layers, attention and recurrent cells, and of embeddings that are
    tied to one. Each that has zeros gets a parametrization (`torch.nn.utils.parametrize`): the
    network computes with where(weight was not 0, parameter, 0). The gradient of a zero is zero, and
    what momentum or weight decay make of its parameter is not used.

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
        another parametrization), or is one of `nn.LSTM`, `GRU` or `RNN`, which take no
        parametrization; the message names the layer. Nothing has been changed then.

    Notes
    -----
    Until `release_zeros`, ``state_dict()`` names a weight ``parametrizations.weight.original`` and
    its pattern ``parametrizations.weight.0.kept``, and is loaded by a network under `keep_zeros`
    with zeros in the same layers. `copy.deepcopy` works; `pickle` and `torch.save` of the module
    itself do not (a limit of `torch.nn.utils.parametrize`).
    """
    for path, module, name in _matrices(network):
        if isinstance(module, nn.RNNBase) and (getattr(module, name) == 0).any():
            raise InputError(
                f"the zeros of {_words(path, module)} cannot be held in a training loop of your "
                "own: it reads its weights past any parametrization. cimf.finetune holds them"
            )
    return _hold(network)


def hold(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Hold what is gone, in place, for a `Descent`; undone by `release_zeros`.

    Returns
    -------
    list of (parameter, mask)
        What `keep_zeros` leaves: entries that must be set to zero after every step, those of
        `dead_channels` and the zeros of recurrent layers.

    Raises
    ------
    InputError
        As `keep_zeros`, but for recurrent layers.
    """
    _check(network)
    weights = [getattr(m, name) for _, m, name in _matrices(network) if isinstance(m, nn.RNNBase)]
    held = [(weight, zero) for weight in weights if (zero := weight.detach() == 0).any()]
    held += dead_channels(network)
    _hold(network)
    return held


def _hold(network: Net) -> Net:
    _check(network)
    release_zeros(network)
    for _, module, name in list(_matrices(network)):
        weight = getattr(module, name)
        if not isinstance(module, nn.RNNBase) and (weight == 0).any():
            parametrize.register_parametrization(module, name, _Kept(weight))
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
    names: dict[Any, list[str]] = {}
    for _, module, name in _matrices(network):
        names.setdefault(module, []).append(name)
    for module, own in names.items():
        if not parametrize.is_parametrized(module):
            continue
        # Not by remove_parametrizations: a deep copy shares the class, and would lose the property.
        computed: Any = module.parametrizations
        held = {name: computed[name].original for name in own if name in computed}
        for name, original in held.items():
            original.copy_(getattr(module, name))
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        others = {**module._parameters, **held}
        module._parameters.clear()
        for name in [*own, *others]:  # the weights first, as they were
            module._parameters.setdefault(name, others[name])
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


def _matrices(network: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Yield path, module and name of every matrix of a layer, and of the tables that are one."""
    found = []
    for path, module in network.named_modules():
        for name in _names(module):
            found.append(_stored(module, name))
            yield path, module, name
    for path, module in network.named_modules():
        table = _stored(module, "weight") if isinstance(module, nn.Embedding) else None
        if table is not None and any(table is matrix for matrix in found):
            yield path, module, "weight"


def _names(module: nn.Module) -> list[str]:
    """Return the names of a module's matrices, in the order in which it makes them."""
    if isinstance(module, nn.MultiheadAttention):
        joint = module._qkv_same_embed_dim
        return ["in_proj_weight"] if joint else [f"{part}_proj_weight" for part in "qkv"]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    if isinstance(module, nn.RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight")]
    layer = isinstance(module, (nn.Linear, _CONVOLUTIONS))
    return ["weight"] if layer or TransposedLayer.takes(module) else []


def _stored(module: Any, name: str) -> Any:
    """Return the parameter of a matrix, whether its zeros are held or not."""
    if parametrize.is_parametrized(module, name):
        return getattr(module.parametrizations[name], "original", None)
    return module._parameters.get(name)


def _check(network: nn.Module) -> None:
    """Refuse layers whose weight is computed by somebody else."""
    for path, module, name in _matrices(network):
        computed: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
        steps = [[type(step) for step in steps] for steps in computed.values()]
        own = name in computed or name in module._parameters
        if not own or any(kinds != [_Kept] for kinds in steps):
            raise InputError(
                f"the weight of {_words(path, module)} is computed from other parameters (a mask, "
                "a normalisation, a parametrization): remove that first, as "
                "torch.nn.utils.prune.remove or remove_parametrizations do"
            )


def _words(path: str, module: nn.Module) -> str:
    return f"layer {path or 'the network itself'!r} ({type(module).__name__})"
