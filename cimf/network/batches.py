"""Samples as batches of tensors, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cimf.errors import InputError

# Batches are cut into pieces of this many samples: the unit of convolution and of the grid offset.
_PIECE = 250
# The only types that torch's embeddings accept: what may be token ids.
_IDS = (torch.int32, torch.int64)


def as_list(name: str, batches: Any) -> list[Any]:
    """Return batches as a list; one tensor or array is one batch.

    Raises
    ------
    InputError
        If they are not iterable.
    """
    return list(_iterable(name, batches))


def as_batches(batches: Any, dtype: torch.dtype, name: str = "calibration") -> list[Tensor]:
    """Return inputs as a list of CPU tensors of at most 250 samples, see `iter_batches`."""
    return list(iter_batches(batches, dtype, name))


def iter_batches(
    batches: Any, dtype: torch.dtype, name: str, *, ids: bool = True, piece: int = _PIECE
) -> Iterator[Tensor]:
    """Yield inputs as CPU tensors of at most `piece` samples.

    Parameters
    ----------
    batches : iterable, or one tensor or array
        Input tensors or arrays (b, ...), or (input, label) pairs; labels are not looked at.
    dtype : torch.dtype
        Of everything that is yielded but token ids.
    name : str
        What errors call them.
    ids : bool
        Integers of 32 and 64 bits may be token ids and stay as they are; smaller ones and bool
        (images) cannot, torch's embeddings refuse them. False: all numbers become `dtype`.

    Raises
    ------
    InputError
        No batches, an empty one, NaN or infinity (numbered by batch and sample), complex numbers, a
        masked array, something that is no tensor, or samples of different shapes.
    """
    first: Tensor | None = None
    for k, batch in enumerate(_iterable(name, batches)):
        what = f"{name} batch {k}"
        value = batch[0] if isinstance(batch, tuple | list) and batch else batch
        u = _as_tensor(value, what)
        if not (ids and u.dtype in _IDS):
            u = u.to(dtype)
            wrong = (~torch.isfinite(u)).flatten(1).sum(1)
            if wrong.any():
                raise InputError(
                    f"{what} holds {int(wrong.sum())} NaN or infinite value(s) in "
                    f"{int((wrong > 0).sum())} of its samples, first in sample "
                    f"{int((wrong > 0).int().argmax())}"
                )
        if first is not None and u.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{what} has samples of shape {tuple(u.shape[1:])}, those before "
                f"{tuple(first.shape[1:])}: all must be alike (pad token ids to one length; one "
                "(input, label) pair by itself must be in a list: [(input, label)])"
            )
        first = u[:1]
        yield from u.split(piece)
    if first is None:
        raise InputError(f"the {name} batches are empty: there are no samples")


def _iterable(name: str, batches: Any) -> Iterable[Any]:
    if isinstance(batches, Tensor | np.ndarray):
        return [batches]
    if not isinstance(batches, Iterable):
        raise InputError(
            f"the {name} batches must be an iterable of tensors, got {type(batches).__name__}"
        )
    return batches


def _as_tensor(value: Any, what: str) -> Tensor:
    """Return real numbers (b, ...) on the CPU, outside of autograd and inference mode."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{what} is a masked array: fill what is masked, or leave it out")
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.require(value, value.dtype.newbyteorder("="), ["C", "W"]))
        except TypeError as error:
            raise InputError(f"{what} is an array of {value.dtype}; numbers are needed") from error
    if not isinstance(value, Tensor):
        raise InputError(
            f"{what} is a {type(value).__name__}; a tensor or an (input, label) pair is needed"
        )
    if value.ndim < 2:
        raise InputError(
            f"{what} has shape {tuple(value.shape)}; (samples, ...) is needed, with at least two "
            "dimensions (a data set of single samples needs a DataLoader)"
        )
    if not value.numel():
        raise InputError(f"{what} is empty: shape {tuple(value.shape)}")
    if value.is_complex():
        raise InputError(f"{what} is complex; real inputs are needed")
    with torch.inference_mode(False):
        value = value.cpu()
        return value.clone() if value.is_inference() else value.detach()


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
