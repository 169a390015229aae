"""How many weights every row keeps: budgets from a target sparsity of the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError

Counts = list[NDArray[np.int64]]

# How a target sparsity is spread over layers and rows, see `Survey.allocate`.
ALLOCATIONS = ("output", "error", "uniform")


def uniform(sizes: Sequence[tuple[int, int]], left: int) -> Counts:
    """Return the same share for every row: `left` weights in all; sizes (rows, columns) per layer.

    Rounding leftovers go to the rows in order, one each.
    """
    total = sum(r * n for r, n in sizes)
    ideal = np.concatenate([np.full(r, left * n / total) for r, n in sizes])
    # A share that is a whole number may have been computed just below it.
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    short = left - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:short]] += 1
    return _split(counts, [r for r, _ in sizes])


def by_price(increase: Sequence[NDArray[np.float64]], left: int) -> Counts:
    """Return the counts that minimise the predicted loss: drop where it costs least.

    Parameters
    ----------
    increase : sequence of (r, N)
        Per layer: predicted increase of the loss at each drop, in each row's own order.
    left : int
        Weights that are kept in all rows together.

    Notes
    -----
    A later drop may be cheaper than an earlier one; the running maximum of a row's prices makes
    its loss curve convex, so that the cheapest drops overall respect every row's order.
    """
    prices, owners, first = [], [], 0
    for layer in increase:
        r, n = layer.shape
        price = np.maximum.accumulate(layer, axis=1)
        prices.append(price.ravel())
        owners.append(np.repeat(np.arange(first, first + r), n))
        first += r
    price = np.concatenate(prices)
    # A stable sort: equal prices, as of dead columns, go in the order of the network.
    drop = len(price) - left
    dropped = np.concatenate(owners)[np.argsort(price, kind="stable")[:drop]]
    sizes = np.concatenate([np.full(len(layer), layer.shape[1]) for layer in increase])
    counts = sizes - np.bincount(dropped, minlength=first)
    return _split(counts, [len(layer) for layer in increase])


def given_counts(counts: Any, sizes: Sequence[tuple[int, int]]) -> Counts:
    """Return counts from outside as arrays; sizes (rows, columns) per layer.

    Raises
    ------
    InputError
        Not one array of integers per layer, one per row, between 0 and the columns.
    """
    if not isinstance(counts, Sequence | np.ndarray) or len(counts) != len(sizes):
        raise InputError(f"allocation must be a name or {len(sizes)} arrays, one per layer")
    out = []
    for k, (given, (r, n)) in enumerate(zip(counts, sizes, strict=True)):
        value = np.asarray(given)
        if (
            value.shape != (r,)
            or value.dtype.kind not in "iu"
            or (value < 0).any()
            or (value > n).any()
        ):
            raise InputError(
                f"allocation[{k}] must be {r} integers from 0 to {n}, one per row of the layer"
            )
        out.append(value.astype(np.int64))
    return out


def _split(counts: NDArray[np.int64], rows: Sequence[int]) -> Counts:
    return np.split(counts, np.cumsum(rows)[:-1])
