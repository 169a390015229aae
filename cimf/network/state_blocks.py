"""Blocks: which rows of the state share one activation, and what follows from it row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError
from cimf.network.activations import Activation
from formulations.columns import as_float64

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the state that share one activation: one nonlinearity of a network.

    Blocks are listed in row order. As in the paper the last layer is on top (row 0), so the blocks
    that ran earlier lie below and a layered A is strictly block upper triangular.

    Attributes
    ----------
    name : str
        Where the nonlinearity is in the network, e.g. ``"features.1"``; unique.
    start, stop : int
        Rows ``start <= i < stop``.
    activation : Activation
    shape : tuple of int
        Shape of one sample of it inside the network, flattened into the rows in C order.
    predecessors : tuple of str
        Blocks (or ``"input"``) that its pre-activation depends on directly.
    """

    name: str
    start: int
    stop: int
    activation: Activation
    shape: tuple[int, ...] = ()
    predecessors: tuple[str, ...] = ()

    @property
    def rows(self) -> slice:
        """The rows as a slice."""
        return slice(self.start, self.stop)

    def to_json(self) -> dict[str, Any]:
        """Return a record that JSON can hold."""
        return {
            "name": self.name,
            "start": self.start,
            "stop": self.stop,
            "activation": self.activation.to_json(),
            "shape": list(self.shape),
            "predecessors": list(self.predecessors),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Block:
        """Return the block that `to_json` described."""
        return cls(
            str(record["name"]),
            int(record["start"]),
            int(record["stop"]),
            Activation.from_json(record["activation"]),
            tuple(record["shape"]),
            tuple(record["predecessors"]),
        )


def check_blocks(blocks: Sequence[Block], n_states: int) -> tuple[Block, ...]:
    """Return `blocks` as a tuple if they cover rows 0 .. n_states - 1 once and in order.

    Raises
    ------
    InputError
        If they do not.
    """
    stop = 0
    for block in blocks:
        if block.start != stop or block.stop < block.start:
            raise InputError(
                f"block {block.name!r} covers rows {block.start}:{block.stop}; {stop}: needed"
            )
        stop = block.stop
    if stop != n_states:
        raise InputError(f"the blocks cover {stop} rows, but there are {n_states} states")
    return tuple(blocks)


def apply_blocks(blocks: Sequence[Block], z: Array) -> Array:
    """Return X = phi(Z) for Z (n, ...), every block with its own activation."""
    if len(blocks) == 1:
        return blocks[0].activation.numpy(z)
    x = np.empty_like(z)
    for block in blocks:
        x[block.rows] = block.activation.numpy(z[block.rows])
    return x


def lipschitz_rows(blocks: Sequence[Block], n_states: int) -> Array:
    """Return the Lipschitz constant of every state's activation, shape (n,)."""
    out = np.ones(n_states)
    for block in blocks:
        out[block.rows] = block.activation.lipschitz
    return out


def homogeneous_rows(blocks: Sequence[Block], n_states: int) -> NDArray[np.bool_]:
    """Return which states have a positively homogeneous activation, shape (n,) bool."""
    out = np.zeros(n_states, dtype=bool)
    for block in blocks:
        out[block.rows] = block.activation.positively_homogeneous
    return out


def check_scale(scale: ArrayLike, scalable: Sequence[bool] | NDArray[np.bool_]) -> Array:
    """Return `scale` (n,) as float64 if it is positive, and 1 where not `scalable`.

    Raises
    ------
    InputError
        Otherwise.
    """
    s = as_float64("scale", scale, 1)
    allowed = np.asarray(scalable, dtype=bool)
    if s.shape != allowed.shape:
        raise InputError(f"scale has shape {s.shape}; {allowed.shape} needed")
    if not (s > 0).all():
        raise InputError("every scale must be > 0")
    wrong = np.flatnonzero(~allowed & (s != 1.0))
    if wrong.size:
        raise InputError(
            f"{wrong.size} states, the first in row {wrong[0]}, have an activation that is not "
            "positively homogeneous (as ReLU is); their scale must be 1"
        )
    return s


def some_rows(rows: Sequence[int], limit: int = 8) -> str:
    """Return the first row numbers as text: "3, 7, 12, ..."."""
    return ", ".join(map(str, rows[:limit])) + (", ..." if len(rows) > limit else "")
