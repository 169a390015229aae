"""Samples as batches of tensors, checked before anything is computed from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cimf.errors import CimfError, InputError

# Batches are cut into pieces of this many samples: the unit of convolution and of the grid offset.
_PIECE = 250
# The only types that torch's embeddings accept: what may be token ids.
_IDS = (torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch for a network with several inputs; it is cut and copied as one tensor is.

    Attributes
    ----------
    tensors : tuple of Tensor (b, ...)
    names : tuple of str
        By which keywords they are given; () by position.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, samples: Any) -> Inputs:
        return self.map(lambda u: u[samples])

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the batch with every tensor changed."""
        return Inputs(tuple(change(u) for u in self.tensors), self.names)

    def clone(self) -> Inputs:
        """Return a copy."""
        return self.map(Tensor.clone)

    def to(self, device: Any) -> Inputs:
        """Return the batch on a device."""
        return self.map(lambda u: u.to(device))

    def split(self, size: int) -> list[Inputs]:
        """Return pieces of at most so many samples."""
        return [self[k : k + size] for k in range(0, len(self), size)]


Batch = Tensor | Inputs


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """Return the tensors of a batch."""
    return batch.tensors if isinstance(batch, Inputs) else (batch,)


def arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the arguments, by position and by keyword, that give a batch to a network."""
    tensors = tensors_of(batch)
    names = batch.names if isinstance(batch, Inputs) else ()
    return ((), dict(zip(names, tensors, strict=True))) if names else (tensors, {})


def one_tensor(batches: Sequence[Batch], what: str) -> list[Tensor]:
    """Return the batches of a network with one input.

    Raises
    ------
    InputError
        It has several; the message says that `what` takes one.
    """
    found = [batch for batch in batches if isinstance(batch, Tensor)]
    if len(found) < len(batches):
        raise InputError(f"{what} takes networks of one input tensor, this one has several")
    return found


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches of the same inputs as one."""
    first = batches[0]
    parts = zip(*(tensors_of(batch) for batch in batches), strict=True)
    tensors = tuple(torch.cat(part) for part in parts)
    return Inputs(tensors, first.names) if isinstance(first, Inputs) else tensors[0]


def as_list(name: str, batches: Any) -> list[Any]:
    """Return batches as a list; one tensor or array is one batch.

    Raises
    ------
    InputError
        If they are not iterable.
    """
    return list(_iterable(name, batches))


def as_batches(batches: Any, dtype: torch.dtype, name: str = "calibration") -> list[Batch]:
    """Return inputs as a list of batches on the CPU of at most 250 samples.

    Parameters
    ----------
    batches : iterable, or one tensor or array
        As `iter_batches`. The input of a network with several is a tuple or a list of tensors, or
        a dict by keyword, in a pair with any label: ((x, y), None); a dict may also come by itself.

    Raises
    ------
    InputError
        As `iter_batches`; inputs of different numbers of samples.
    """
    return [part for batch in _each(batches, dtype, name) for part in batch.split(_PIECE)]


def iter_batches(
    batches: Any, dtype: torch.dtype, name: str, *, piece: int = _PIECE
) -> Iterator[Tensor]:
    """Yield inputs as CPU tensors of at most `piece` samples, for networks of one numeric input.

    Parameters
    ----------
    batches : iterable, or one tensor or array
        Input tensors or arrays (b, ...), or (input, label) pairs; labels are not looked at.
    dtype : torch.dtype
        Of everything that is yielded.
    name : str
        What errors call them.

    Raises
    ------
    InputError
        No batches, an empty one, NaN or infinity (numbered by batch and sample), complex numbers, a
        masked array, something that is no tensor, or samples of different shapes.
    """
    for k, batch in enumerate(_each(batches, dtype, name, ids=False)):
        if isinstance(batch, Inputs):
            raise InputError(
                f"{name} batch {k} has {len(batch.tensors)} inputs; a tensor or an (input, label) "
                "pair is needed"
            )
        yield from batch.split(piece)


def _each(batches: Any, dtype: torch.dtype, name: str, ids: bool = True) -> Iterator[Batch]:
    """Yield the checked inputs of every batch.

    Parameters
    ----------
    ids : bool
        Integers of 32 and 64 bits may be token ids and stay as they are; smaller ones and bool
        (images) cannot, torch's embeddings refuse them. False: all numbers become `dtype`.
    """
    first: Batch | None = None
    for k, given in enumerate(_iterable(name, batches)):
        what = f"{name} batch {k}"
        value = given[0] if isinstance(given, tuple | list) and given else given
        batch = _inputs(value, what, dtype, ids)
        if first is not None and _form(batch) != _form(first):
            now, before = _form(batch), _form(first)
            if isinstance(batch, Tensor) and isinstance(first, Tensor):
                now, before = now[-1][0], before[-1][0]
            raise InputError(
                f"{what} has samples of shape {now}, those before {before}: all must be alike (pad "
                "token ids to one length; one (input, label) pair by itself must be in a list: "
                "[(input, label)])"
            )
        first = batch[:1]
        yield batch
    if first is None:
        raise InputError(f"the {name} batches are empty: there are no samples")


def _form(batch: Batch) -> tuple[Any, ...]:
    """Return what all batches must have in common."""
    shapes = tuple(tuple(u.shape[1:]) for u in tensors_of(batch))
    return (batch.names, shapes) if isinstance(batch, Inputs) else (shapes,)


def _inputs(value: Any, what: str, dtype: torch.dtype, ids: bool) -> Batch:
    """Return one batch: a tensor, or several by position or keyword."""
    if not isinstance(value, tuple | list | Mapping):
        return _numbers(_as_tensor(value, what), what, dtype, ids)
    if not value:
        raise InputError(f"{what} has no inputs")
    named = value if isinstance(value, Mapping) else dict(enumerate(value))
    parts = []
    for key, part in named.items():
        label = f"{what}, input {key!r}"
        u = _as_tensor(part, label, least=1)
        parts.append(u if u.dtype == torch.bool else _numbers(u, label, dtype, ids))
    if len({len(u) for u in parts}) > 1:
        raise InputError(
            f"{what} has inputs of {', '.join(str(len(u)) for u in parts)} samples: all must have "
            "the same number"
        )
    return Inputs(tuple(parts), tuple(map(str, named)) if isinstance(value, Mapping) else ())


def _iterable(name: str, batches: Any) -> Iterable[Any]:
    if isinstance(batches, Tensor | np.ndarray):
        return [batches]
    if not isinstance(batches, Iterable):
        raise InputError(
            f"the {name} batches must be an iterable of tensors, got {type(batches).__name__}"
        )
    return batches


def _numbers(u: Tensor, what: str, dtype: torch.dtype, ids: bool) -> Tensor:
    """Return token ids as they are, everything else as finite numbers in `dtype`."""
    if ids and u.dtype in _IDS:
        return u
    u = u.to(dtype)
    wrong = (~torch.isfinite(u)).flatten(1).sum(1)
    if wrong.any():
        raise InputError(
            f"{what} holds {int(wrong.sum())} NaN or infinite value(s) in "
            f"{int((wrong > 0).sum())} of its samples, first in sample "
            f"{int((wrong > 0).int().argmax())}"
        )
    return u


def _as_tensor(value: Any, what: str, least: int = 2) -> Tensor:
    """Return real numbers (b, ...) on the CPU, outside of autograd and inference mode.

    Parameters
    ----------
    least : int
        Dimensions that it must have.
    """
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
    if value.ndim < least:
        raise InputError(
            f"{what} has shape {tuple(value.shape)}; (samples, ...) is needed, with at least "
            f"{'two dimensions' if least > 1 else 'one dimension'} (a data set of single samples "
            "needs a DataLoader)"
        )
    if not value.numel():
        raise InputError(f"{what} is empty: shape {tuple(value.shape)}")
    if value.is_complex():
        raise InputError(f"{what} is complex; real inputs are needed")
    with torch.inference_mode(False):
        value = value.cpu()
        return value.clone() if value.is_inference() else value.detach()


def run(net: nn.Module, u: Batch, name: str) -> Any:
    """Return the network's output; its input may be changed in place, so it is copied.

    Raises
    ------
    InputError
        The network takes other inputs, or fails on the samples: their shape, type or token ids do
        not fit.
    """
    args, kwargs = arguments(u.clone())
    try:
        inspect.signature(net.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the network's forward does not take the {name} inputs: {error}. Give the inputs of a "
            "network with several as a tuple in a pair with any label, ((x, y), None), or as a "
            "dict by keyword"
        ) from error
    try:
        return net(*args, **kwargs)
    except CimfError:  # has words of its own
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the network cannot be run on {name} samples of shape "
            f"{', '.join(_described(part) for part in tensors_of(u))}: {reason}"
        ) from error


def _described(u: Tensor) -> str:
    ids = "" if u.is_floating_point() or not u.numel() else f" from {u.min()} to {u.max()}"
    return f"{tuple(u.shape[1:])}, {str(u.dtype).removeprefix('torch.')}{ids}"
