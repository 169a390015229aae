"""Batch norms of a network that is trained on: their statistics, and the function they compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cimf.network.hooks import hooked

_NORMS = nn.modules.batchnorm._BatchNorm


def tracked_norms(network: nn.Module) -> dict[str, Any]:
    """Return the batch norms with running statistics, by path."""
    return {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, _NORMS) and module.running_mean is not None
    }


@torch.no_grad()
def align_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to those of the data and leave the function in eval mode as it is.

    Scale and shift absorb the change: gamma' = gamma s'/s, beta' = beta + gamma (mu' - mu) / s
    with s = sqrt(var + eps). A network whose norms were folded into its layers keeps them with mean
    0 and a scale that cancels the variance; in training mode it would be another function than in
    eval mode. Afterwards the two agree on the data. A norm without scale and shift is left alone.

    Parameters
    ----------
    network : nn.Module
        Changed in place; on the device of the batches.
    """
    norms = {path: norm for path, norm in tracked_norms(network).items() if norm.affine}
    if not norms:
        return
    found = _input_moments(network, norms, batches)
    for path, norm in norms.items():
        if path not in found:  # not called in eval mode
            continue
        mean, variance = found[path]
        scale = (norm.running_var.double() + norm.eps).sqrt()
        ratio = norm.weight.double() / scale
        norm.bias.copy_(norm.bias.double() + ratio * (mean - norm.running_mean.double()))
        norm.weight.copy_(ratio * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@torch.no_grad()
def reset_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running statistics to those of the data, norm after norm as the batches pass.

    The mean over the batches of what each norm sees in training mode, where the norms before it
    use the batch's own statistics (Frantar and Alistarh 2022 do so after pruning).
    """
    norms = tracked_norms(network)
    if not norms:
        return
    momenta = {path: norm.momentum for path, norm in norms.items()}
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the mean over all batches
    for inputs in batches:
        network(inputs.clone())
    for path, norm in norms.items():
        norm.momentum = momenta[path]
    for module, training in modes:
        module.training = training


def _input_moments(
    network: nn.Module, norms: dict[str, Any], batches: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance (channels,) in float64 of what each norm reads in eval mode."""
    sums: dict[str, list[Tensor]] = {}

    def watch(path: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            u = inputs[0].detach().double()
            u = u.transpose(0, 1).flatten(1) if u.ndim > 1 else u[None]
            new = [torch.tensor(u.shape[1], dtype=torch.float64), u.sum(1), u.square().sum(1)]
            old = sums.get(path)
            sums[path] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

        return hook

    hooks = [norm.register_forward_pre_hook(watch(path)) for path, norm in norms.items()]
    with eval_mode(network), hooked(hooks):
        for inputs in batches:
            network(inputs.clone())
    found = {}
    for path, (count, total, squares) in sums.items():
        mean = total / count
        found[path] = mean, (squares / count - mean.square()).clamp_min(0.0)
    return found


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Run the block in eval mode and put every module's own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def freeze_norms(network: nn.Module) -> None:
    """Put batch norms into eval mode: they use, and keep, their running statistics."""
    for module in network.modules():
        if isinstance(module, _NORMS):
            module.eval()
