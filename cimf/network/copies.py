"""Copies of a network that can be traced and written to: no wrappers, no reparametrisations.

What is computed anew at every call (`torch.nn.utils.prune`, `parametrize`, `weight_norm`,
`spectral_norm`) becomes a plain parameter with its present value in eval mode.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from cimf.errors import CaptureError, InputError
from cimf.network.batches import Batch, run

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@torch.inference_mode(False)
@torch.no_grad()
def plain_copy(net: nn.Module, *to: Any) -> nn.Module:
    """Return a copy of the same class, device and mode, its weights plain parameters.

    `DataParallel`, `DistributedDataParallel` and `torch.compile` are taken off.

    Parameters
    ----------
    *to : torch.dtype, or "cpu" and torch.dtype
        Where, and in which type, weights are computed from others. Default: as the network is.

    Raises
    ------
    InputError
        `net` is not an nn.Module.
    CaptureError
        It cannot be copied; a module's `forward` was replaced on the instance; a weight is lazy,
        complex, NaN or infinite. The message names the module.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    # A tensor that is no leaf (a pruned or normalised weight) refuses deepcopy: copy its value.
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in net.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        for module in reversed(list(net.modules())):
            inner = (
                module.module if isinstance(module, _WRAPPERS) else module._modules.get("_orig_mod")
            )
            if inner is not None:
                memo[id(module)] = copy.deepcopy(inner, memo)
        out: nn.Module = copy.deepcopy(net, memo)
        out = out.to(*to) if to else out
    except Exception as error:
        raise CaptureError(
            f"the network cannot be copied: {error} (quantised networks are not supported)"
        ) from error
    modes = [(module, module.training) for module in out.modules()]
    out.eval()
    made: dict[int, tuple[Tensor, nn.Parameter]] = {}
    for module, _ in modes:
        _make_plain(module, made)
    for module, training in modes:
        module.training = training
    for path, module in out.named_modules():
        what = f"layer {path or 'the network itself'!r} ({type(module).__name__})"
        if "forward" in vars(module):
            raise CaptureError(
                f"{what} has its forward replaced on the instance: a copy goes on running the "
                "original's. Write a subclass with that forward"
            )
        for name, value in module.named_parameters(recurse=False):
            if nn.parameter.is_lazy(value):
                raise CaptureError(f"{what} has no {name} yet: run the network once on samples")
            if value.is_complex():
                raise CaptureError(f"{what} has a complex {name}; real weights are needed")
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise CaptureError(
                    f"the weights are damaged: {f'{path}.{name}'.lstrip('.')!r} holds "
                    f"{int((~torch.isfinite(value)).sum())} NaN or infinite value(s)"
                )
    return out


def _make_plain(module: nn.Module, made: dict[int, tuple[Tensor, nn.Parameter]]) -> None:
    """Replace what is computed from other parameters at every call by its present value.

    Parameters
    ----------
    made : dict
        Grows: by the id of a parameter, itself and what was made of it; a tied one stays tied.
    """
    if parametrize.is_parametrized(module):
        # Not by remove_parametrizations: the copy shares its class with the original, which would
        # lose the property.
        computed: Any = module.parametrizations
        values: dict[str, nn.Parameter] = {}
        for name, steps in computed.items():
            value = getattr(module, name).detach()
            stored = next(steps.parameters(recurse=False), value)
            _, one = made.setdefault(id(stored), (stored, nn.Parameter(value.clone())))
            values[name] = one if torch.equal(one, value) else nn.Parameter(value.clone())
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        others = dict(module._parameters)
        module._parameters.clear()
        module._parameters.update({**values, **others})  # the weight first, as layers have it
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            torch.nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            torch.nn.utils.remove_spectral_norm(module, hook.name)


@torch.inference_mode(False)
def working_copy(net: nn.Module, dtype: torch.dtype, *, hooks: bool = False) -> nn.Module:
    """Return a copy of a `plain_copy` in `dtype` on the CPU, in eval mode, without gradients."""
    out = copy.deepcopy(net).to("cpu", dtype).eval().requires_grad_(False)
    for module in out.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.detach().to("cpu", dtype))
        if not hooks:
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    return out


@torch.no_grad()
def check_hooks(net: nn.Module, reference: nn.Module, *samples: Batch) -> None:
    """Run a network's forward hooks on a copy: they may look, but not change anything.

    Parameters
    ----------
    net : nn.Module
        A `plain_copy`.
    reference : nn.Module
        Its `working_copy`, without hooks.
    *samples : Tensor or Inputs (b, ...)
        A hook may act on few of them only.

    Raises
    ------
    CaptureError
        The output without the hooks is another one. The message names the hooked modules.
    """
    hooked = [
        path or "the network itself"
        for path, module in net.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
    if not hooked:
        return
    with_hooks = working_copy(net, sample_dtype(reference), hooks=True)
    for sample in samples:
        plain, found = (
            tree_leaves(run(one, sample, "calibration")) for one in (reference, with_hooks)
        )
        if len(plain) != len(found) or not all(map(same, plain, found)):
            raise CaptureError(
                f"forward hooks on {', '.join(hooked[:5])} change the network's output: tracing "
                "does not see what they do. Remove them, or write it into the forward of a module"
            )


def sample_dtype(net: nn.Module) -> torch.dtype:
    """Return the floating-point type of a `working_copy`."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float64)


def same(found: Any, expected: Any) -> bool:
    """Whether two outputs agree to rounding, relative to the largest expected value."""
    if not (isinstance(found, Tensor) and isinstance(expected, Tensor)):
        return type(found) is type(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return difference(found, expected) <= tolerance(expected.dtype)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value.

    Places where both are not finite in the same way are equal (masks of attention hold -inf);
    where only one is, the difference is infinite.
    """
    one, two = found.double(), expected.double()
    finite = one.isfinite() & two.isfinite()
    if not torch.equal(one.where(~finite, 0.0).nan_to_num(), two.where(~finite, 0.0).nan_to_num()):
        return float("inf")
    if not finite.any():
        return 0.0
    error = float((one - two)[finite].abs().max())
    return error / max(float(two[finite].abs().max()), 1e-30)


def tolerance(dtype: torch.dtype) -> float:
    """Return how far two ways of computing an output may differ: 1e-3 in float32.

    Folding a batch norm and running another number of samples change ResNet-20's output by up to
    1e-5; what a network does differently is far above this.
    """
    return 3.0 * float(torch.finfo(dtype).eps) ** 0.5 if dtype.is_floating_point else 0.0
