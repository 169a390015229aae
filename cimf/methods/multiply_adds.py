"""How often every weight is used on one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cimf.network.exported import MATCHED
from cimf.train.norms import eval_mode


def multiply_adds(network: nn.Module, inputs: Tensor) -> int:
    """Return the multiply-adds of all convolutions and linear layers on one sample, zeros included.

    Products of activations (attention) are not counted.

    Parameters
    ----------
    inputs : (b, ...)
        On the network's device, in its dtype.
    """
    used = positions(network, inputs)
    modules: dict[str, Any] = dict(network.named_modules())
    return sum(count * modules[path].weight.numel() for path, count in used.items())


@torch.no_grad()
def positions(network: nn.Module, sample: Tensor) -> dict[str, int]:
    """Return how often each weight of the called layers is used on one sample, by path."""
    found: dict[str, int] = {}

    def hook(path: str) -> Callable[..., None]:
        def count(module: Any, _inputs: Any, output: Tensor) -> None:
            channels = module.weight.shape[0]
            found[path] = found.get(path, 0) + output.numel() // (len(sample) * channels)

        return count

    hooks = [
        module.register_forward_hook(hook(path))
        for path, module in network.named_modules()
        if isinstance(module, MATCHED)
    ]
    with eval_mode(network):
        network(sample.clone())
    for handle in hooks:
        handle.remove()
    return found
