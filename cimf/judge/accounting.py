"""How many non-zeros a model has, against which total: four denominators, each stated.

The numerator counts exact zeros only; nothing is rounded to zero. A sparsity may be negative: an
implicit model can have more non-zeros than the network it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cimf.errors import InputError
from formulations.columns import as_array, as_float64

# What each sparsity is measured against, in the words that tables print.
DENOMINATORS = {
    "network_weights": "weights of the network (its matrices, biases left out on both sides)",
    "network_parameters": "weights and biases of the network (biases counted on both sides)",
    "admissible": "entries that the row design allows in (A, B, C, D)",
    "dense": "all entries of (A, B, C, D)",
}


@dataclass(frozen=True)
class BlockCount:
    """Non-zeros of the rows of one block (one activation of the network, or the outputs).

    Attributes
    ----------
    name : str
    rows : int
    weights, biases : int
        Non-zeros outside and inside the bias column.
    admissible : int
        Entries that the design allows in these rows, the bias column included.
    emptied : tuple[int, ...]
        Rows of the model (0 is the top row of A) in which every weight is zero.
    """

    name: str
    rows: int
    weights: int
    biases: int
    admissible: int
    emptied: tuple[int, ...]


@dataclass(frozen=True)
class NonZeros:
    """Non-zeros of (A, B, C, D) and the totals they are compared with.

    Attributes
    ----------
    per_row : (n + q,) int
        Non-zero weights of each row of (A, B), then of each row of (C, D); biases left out.
    blocks : tuple[BlockCount, ...]
        The blocks of states from top to bottom, then "output".
    network_weights, network_parameters : int or None
        Of the network that the model was made from; None where there is none.
    dense : int
        (n + q)(n + p).
    """

    per_row: NDArray[np.int64]
    blocks: tuple[BlockCount, ...]
    network_weights: int | None
    network_parameters: int | None
    dense: int

    @property
    def weights(self) -> int:
        """Non-zeros of (A, B, C, D) outside the bias column."""
        return sum(block.weights for block in self.blocks)

    @property
    def biases(self) -> int:
        """Non-zeros in the bias column of B and D."""
        return sum(block.biases for block in self.blocks)

    @property
    def admissible(self) -> int:
        """Entries that the row design allows."""
        return sum(block.admissible for block in self.blocks)

    @property
    def emptied(self) -> tuple[int, ...]:
        """Rows in which every weight is zero: such a state is constant."""
        return tuple(row for block in self.blocks for row in block.emptied)

    @property
    def sparsity(self) -> dict[str, float]:
        """1 - non-zeros / total for each of `DENOMINATORS`; NaN where the total is unknown."""
        every = self.weights + self.biases
        pairs = {
            "network_weights": (self.weights, self.network_weights),
            "network_parameters": (every, self.network_parameters),
            "admissible": (every, self.admissible),
            "dense": (every, self.dense),
        }
        return {
            name: 1.0 - count / total if total else float("nan")
            for name, (count, total) in pairs.items()
        }


def count_nonzeros(
    states: ArrayLike,
    outputs: ArrayLike,
    *,
    bias: bool,
    blocks: Sequence[tuple[str, int, int]] = (),
    admissible: tuple[ArrayLike, ArrayLike] | None = None,
    network_weights: int | None = None,
    network_parameters: int | None = None,
) -> NonZeros:
    """Count the non-zeros of an implicit model.

    Parameters
    ----------
    states : (n, N)
        The rows (A, B), N = n + p.
    outputs : (q, N)
        The rows (C, D).
    bias : bool
        Whether the last column multiplies the constant input 1.
    blocks : sequence of (name, start, stop)
        Which state rows belong together; they cover 0 ... n without overlap. Default: one block.
    admissible : ((n, N) bool, (q, N) bool), optional
        Entries that the row design allows. Default: all.
    network_weights, network_parameters : int, optional
        Totals of the network that the model was made from.

    Raises
    ------
    InputError
        Wrong shapes, NaN, blocks that do not cover the rows, a non-zero outside `admissible`.
    """
    top, bottom = as_float64("states", states, 2), as_float64("outputs", outputs, 2)
    if top.shape[1] != bottom.shape[1] or top.shape[1] < top.shape[0]:
        raise InputError(
            f"states {top.shape} and outputs {bottom.shape} are not (n, N) and (q, N), N >= n"
        )
    n, q = len(top), len(bottom)
    coef = np.vstack([top, bottom])
    if admissible is None:
        allowed = np.ones(coef.shape, dtype=bool)
    else:
        parts = [as_array("admissible", part).astype(bool) for part in admissible]
        if parts[0].shape != top.shape or parts[1].shape != bottom.shape:
            raise InputError("admissible must have the shapes of states and outputs")
        allowed = np.vstack(parts)
        if (coef[~allowed] != 0).any():
            raise InputError("the model has non-zeros outside the admissible pattern")
    spans = [*(blocks or [("states", 0, n)]), ("output", n, n + q)]
    covered = sorted((start, stop) for _, start, stop in spans if stop > start)
    edges = [0, *(stop for _, stop in covered)]
    if [start for start, _ in covered] != edges[:-1] or edges[-1] != n + q:
        raise InputError(f"blocks must cover rows 0 to {n} without overlap, got {list(blocks)}")
    weight_columns = slice(None, -1 if bias else None)
    per_row = np.count_nonzero(coef[:, weight_columns], axis=1)
    with_bias = np.count_nonzero(coef, axis=1)
    counted = tuple(
        BlockCount(
            name=name,
            rows=stop - start,
            weights=int(per_row[start:stop].sum()),
            biases=int((with_bias - per_row)[start:stop].sum()),
            admissible=int(allowed[start:stop].sum()),
            emptied=tuple(int(row) for row in start + np.flatnonzero(per_row[start:stop] == 0)),
        )
        for name, start, stop in spans
    )
    return NonZeros(per_row, counted, network_weights, network_parameters, coef.size)
