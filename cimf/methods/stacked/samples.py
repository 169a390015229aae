"""The states of a network on given samples: run again in every pass, never all in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cimf.methods.stacked.teacher import teacher_states
from cimf.network.states import Reconstruction, States

# Bytes of states held at a time. With chunks of 160 MB (an MLP 784-1024-1024-10) the first pass
# peaks 1.2 GB above what was there before: batches, the chunk joined from them, its scaled copy.
_CHUNK = 2**28
# Samples whose design is built at a time. Chunks are whole numbers of these, so the statistics are
# added in the same order, to the same bits, whether there is one chunk or many.
BLOCK = 4096
# Batches larger than a chunk are run in pieces of this many samples.
_PIECE = 1024


@dataclass(frozen=True)
class Samples:
    """A network on m samples, whose states are computed chunk by chunk in every pass.

    Samples whose states fit in one chunk are run once and their states kept.

    Attributes
    ----------
    net : torch.nn.Module
    inputs : tuple of tensors
        Batches of inputs (b, ...), as given: in their own dtype, not copied.
    layout : States
        Of the first sample: its rows, columns and blocks are those of all.
    size : int
        Samples per chunk.
    n_samples : int
    squares : (N,)
        Sum over the samples of the squared states and inputs.
    reconstruction : Reconstruction
        Largest errors over all samples.
    labels : (m,) int64 or None
    """

    net: Any
    inputs: tuple[Any, ...]
    layout: States
    size: int
    n_samples: int
    squares: NDArray[np.float64]
    reconstruction: Reconstruction
    labels: NDArray[np.int64] | None = None
    _only: States | None = None

    @classmethod
    def capture(cls, net: Any, batches: Sequence[Any]) -> Samples:
        """Run all batches once; everything that can be wrong with them is found here.

        Parameters
        ----------
        net : torch.nn.Module
        batches : sequence
            Input tensors (b, ...), or (input, label) pairs.

        Raises
        ------
        CaptureError, InputError
            As `cimf.capture_states`.
        """
        inputs = [b[0] if isinstance(b, tuple | list) and b else b for b in batches]
        # Two samples, not one: networks that squeeze their output lose a dimension of length one.
        pair = next(teacher_states(net, [u[:2] if _is_batch(u) else u for u in inputs[:1]]))
        layout = _part(pair, slice(1))
        width = layout.n_states + layout.n_columns + layout.n_outputs
        size = max(1, _CHUNK // (8 * width))
        size -= size % BLOCK if size > BLOCK else 0
        pieces = tuple(piece for u in inputs for piece in _pieces(u, size))
        squares, n_samples = np.zeros(layout.n_columns), 0
        checks: list[Reconstruction] = []
        only: States | None = None
        for states in _chunks(net, pieces, size):
            only = None if n_samples else states
            squares += np.square(np.concatenate([states.X, states.U])).sum(axis=1)
            checks.append(states.reconstruction)
            n_samples += states.n_samples
        worst = reduce(Reconstruction.merge, checks)
        return cls(net, pieces, layout, size, n_samples, squares, worst, _only=only)

    def chunks(self) -> Iterator[States]:
        """Yield the states of all samples in order, at most `size` samples at a time."""
        if self._only is not None:
            return iter([self._only])
        return _chunks(self.net, self.inputs, self.size)

    def labelled(self) -> Iterator[tuple[States, NDArray[np.int64] | None]]:
        """Yield every chunk with its labels, None where there are none."""
        start = 0
        for states in self.chunks():
            stop = start + states.n_samples
            yield states, None if self.labels is None else self.labels[start:stop]
            start = stop


def _is_batch(inputs: Any) -> bool:
    return getattr(inputs, "ndim", 0) >= 2


def _pieces(inputs: Any, size: int) -> Sequence[Any]:
    """Return a batch as it is, or in equal pieces where it is larger than a chunk."""
    if not _is_batch(inputs) or len(inputs) <= size:
        return [inputs]
    return torch.as_tensor(inputs).tensor_split(-(-len(inputs) // min(size, _PIECE)))


def _chunks(net: Any, inputs: Sequence[Any], size: int) -> Iterator[States]:
    """Yield states of exactly `size` samples, the last ones perhaps fewer."""
    parts: list[States] = []
    room = size
    for states in teacher_states(net, inputs):
        start = 0
        while start < states.n_samples:
            parts.append(_part(states, slice(start, start + room)))
            start, room = start + room, room - parts[-1].n_samples
            if not room:
                chunk, parts, room = States.concatenate(parts), [], size
                yield chunk
                del chunk
    if parts:
        yield States.concatenate(parts)


def _part(states: States, samples: slice) -> States:
    cut = {name: getattr(states, name)[:, samples] for name in ("U", "X", "Z", "Y")}
    return replace(states, **cut)
