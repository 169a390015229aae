"""Samples as batches of tensors, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cimf.errors import InputError

# Batches are cut into pieces of this many samples: the unit of convolution and of the grid offset.
_PIECE = 250


def as_batches(batches: Any, dtype: torch.dtype, name: str = "calibration") -> list[Tensor]:
    """Return inputs as a list of CPU tensors of at most `_PIECE` samples.

    Floating-point inputs are converted to `dtype`, integers (token ids) stay integers.

    Parameters
    ----------
    batches : iterable, or one tensor
        Input tensors (b, ...), or (input, label) pairs.
    name : str
        What errors call them.

    Raises
    ------
    InputError
        No batches, an empty one, NaN or infinity, something that is no tensor, or samples of
        different shapes. The message numbers the batch.
    """
    if isinstance(batches, Tensor | np.ndarray):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise InputError(
            f"the {name} batches must be an iterable of tensors, got {type(batches).__name__}"
        )
    out: list[Tensor] = []
    for k, batch in enumerate(batches):
        what = f"{name} batch {k}"
        value = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        if not isinstance(value, Tensor | np.ndarray):
            raise InputError(
                f"{what} is a {type(value).__name__}; a tensor or an (input, label) pair is needed"
            )
        u = torch.as_tensor(value).detach().cpu()
        if u.ndim < 2 or not u.numel():
            raise InputError(f"{what} has shape {tuple(u.shape)}; (samples, ...) is needed")
        if out and u.shape[1:] != out[0].shape[1:]:
            raise InputError(
                f"the samples of {what} have shape {tuple(u.shape[1:])}, those before "
                f"{tuple(out[0].shape[1:])}: all must be alike (pad token ids to one length)"
            )
        if u.is_floating_point():
            u = u.to(dtype)
            if not torch.isfinite(u).all():
                raise InputError(f"{what} holds NaN or infinite values")
        out += u.split(_PIECE)
    if not out:
        raise InputError(f"the {name} batches are empty: there are no samples")
    return out


def run(net: nn.Module, u: Tensor, name: str) -> Any:
    """Return the network's output; its input may be changed in place, so it is copied.

    Raises
    ------
    InputError
        The network fails on the samples: their shape, type or token ids do not fit.
    """
    try:
        return net(u.clone())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        ids = "" if u.is_floating_point() else f" from {u.min()} to {u.max()}"
        kind = str(u.dtype).removeprefix("torch.")
        raise InputError(
            f"the network cannot be run on {name} samples of shape {tuple(u.shape[1:])}, "
            f"{kind}{ids}: {reason}"
        ) from error
