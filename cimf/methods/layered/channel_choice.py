"""Which channels go: the cheapest per weight that goes with them, until a target is met.

What a channel costs is exact for its readers: with A the inverse of a reader's G on the columns
that are left and W = C A its least-squares rows, dropping the columns B of a channel raises the
weighted error sum_i s_i ||M w_i - z_i||^2 by tr((A_BB)^-1 W_B' S W_B), everything else refitted.
All rows of a layer lose the same columns, so one inverse serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.methods.layered import elimination
from cimf.methods.layered.elimination import Mask
from cimf.network.channel_flow import Index, TiedChannels
from cimf.network.layers import Layer
from cimf.statistics import Gram


class Reader:
    """The rows of one layer, from which blocks of columns go.

    Parameters
    ----------
    gram : Gram
        Damped statistics of all rows.
    price : (r,)
        s_i: what a unit of squared error of each row costs.
    """

    def __init__(self, gram: Gram, price: NDArray[np.float64]) -> None:
        self.inverse = elimination.inverse(gram.gram)
        self.coef = gram.corr @ self.inverse
        self.price = price.copy()

    def costs(self, blocks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what each of several blocks of columns (blocks, k) costs, (blocks,)."""
        inner = np.linalg.pinv(self.inverse[blocks[:, :, None], blocks[:, None, :]], hermitian=True)
        part = (np.sqrt(self.price)[:, None] * self.coef).T[blocks]  # (blocks, k, r)
        return np.einsum("bij,bij->b", inner, part @ part.swapaxes(1, 2))

    def drop(self, block: Index) -> None:
        """Leave the columns of a block out, the others refitted."""
        inner = np.linalg.pinv(self.inverse[np.ix_(block, block)], hermitian=True)
        gain = self.inverse[:, block] @ inner
        self.coef -= self.coef[:, block] @ gain.T
        self.inverse -= gain @ self.inverse[block]

    def ignore(self, rows: Index) -> None:
        """Count no error of rows that are gone."""
        self.price[rows] = 0.0


def flat_columns(layer: Layer, channels: Index) -> Index:
    """Return the columns of a layer's rows that read input channels, a whole kernel for each."""
    kernel = layer.n_columns // int(layer.module.weight.shape[1])
    return (channels[:, None] * kernel + np.arange(kernel)).ravel()


class Prices(Protocol):
    """What taking out a group costs."""

    def price(self, k: int, freed: int) -> float:
        """Return the price of group k, with which `freed` weights go."""

    def remove(self, k: int) -> None:
        """Take group k out."""


class Effects:
    """Exact costs in the readers' least-squares problems, per weight that goes.

    Parameters
    ----------
    readers : mapping of str to Reader
        By layer, for all layers that read a group.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        groups: Sequence[TiedChannels],
        readers: Mapping[str, Reader],
    ) -> None:
        self.groups, self.readers = groups, readers
        self.blocks = {
            path: {
                k: flat_columns(layers[path], group.columns[path])
                for k, group in enumerate(groups)
                if path in group.columns
            }
            for path in readers
        }
        self.parts: dict[str, dict[int, float]] = {}
        for path in readers:
            self._update(path)

    def _update(self, path: str) -> None:
        """Compute the costs of all groups in one reader anew."""
        by_size: dict[int, list[int]] = {}
        for k, block in self.blocks[path].items():
            by_size.setdefault(len(block), []).append(k)
        self.parts[path] = {}
        for own in by_size.values():
            costs = self.readers[path].costs(np.stack([self.blocks[path][k] for k in own]))
            self.parts[path].update(zip(own, costs.tolist(), strict=True))

    def price(self, k: int, freed: int) -> float:
        """Return the cost of group k per weight."""
        return sum(self.parts[path][k] for path in self.groups[k].columns) / freed

    def remove(self, k: int) -> None:
        """Drop the columns of group k, and stop counting its rows' errors."""
        group = self.groups[k]
        for path, reader in self.readers.items():
            if path in group.columns:
                reader.drop(self.blocks[path].pop(k))
            if path in group.rows:
                reader.ignore(group.rows[path])
            if path in group.columns or path in group.rows:
                self._update(path)


class Scores:
    """Prices that stay what they are, whatever goes: (groups,)."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values

    def price(self, k: int, freed: int) -> float:
        """Return the score of group k."""
        return float(self.values[k])

    def remove(self, k: int) -> None:
        """Nothing changes."""


class Removal:
    """Which rows and columns of each layer are left while groups go.

    Attributes
    ----------
    rows, columns : dict of str to bool array
        By layer: output channels (r,), and columns of the rows (N,).
    left : dict of str to [int, int]
        How many of each.
    zeros : int
        Weights that are gone.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers, self.zeros = layers, 0
        self.rows = {path: np.ones(layer.n_rows, bool) for path, layer in layers.items()}
        self.columns = {path: np.ones(layer.n_columns, bool) for path, layer in layers.items()}
        self.left = {path: [layer.n_rows, layer.n_columns] for path, layer in layers.items()}

    def freed(self, group: TiedChannels) -> int:
        """Return how many weights go with a group; 0 where it would empty a layer."""
        total = 0
        for path in {**group.rows, **group.columns}:
            rows, columns = self.left[path]
            gone, read = self._sizes(group, path)
            if gone == rows or read == columns:
                return 0
            total += gone * columns + read * rows - gone * read
        return total

    def _sizes(self, group: TiedChannels, path: str) -> tuple[int, int]:
        """Return how many rows and columns of a layer belong to a group."""
        layer = self.layers[path]
        kernel = layer.n_columns // int(layer.module.weight.shape[1])
        return len(group.rows.get(path, ())), kernel * len(group.columns.get(path, ()))

    def remove(self, group: TiedChannels) -> None:
        """Take a group out."""
        self.zeros += self.freed(group)
        for path in {**group.rows, **group.columns}:
            gone, read = self._sizes(group, path)
            self.left[path][0] -= gone
            self.left[path][1] -= read
        for path, index in group.rows.items():
            self.rows[path][index] = False
        for path, index in group.columns.items():
            self.columns[path][flat_columns(self.layers[path], index)] = False

    def kept(self, path: str) -> Mask:
        """Return which columns every row of a layer keeps, (r, N'), the free ones with the row."""
        layer = self.layers[path]
        columns = np.append(self.columns[path], np.ones(int(layer.has_bias), bool))
        return np.outer(self.rows[path], columns)


def remove_cheapest(
    layers: Mapping[str, Layer], groups: Sequence[TiedChannels], prices: Prices, goal: int
) -> tuple[Removal, int]:
    """Take out the groups of smallest price until so many weights are gone.

    A group goes only where that brings the number closer to the goal: in the end it is missed by
    at most half of what the smallest group left would free. No layer is emptied.

    Returns
    -------
    removal : Removal
    count : int
        Groups that are gone.

    Raises
    ------
    InputError
        All groups that may go do not reach the goal.
    """
    removal, left = Removal(layers), list(range(len(groups)))
    while removal.zeros < goal:
        freed = {k: count for k in left if (count := removal.freed(groups[k]))}
        if not freed:
            total = sum(layer.n_weights for layer in layers.values())
            raise InputError(
                f"whole channels reach a sparsity of {removal.zeros / total:.1%} at most, every "
                f"layer keeping one; the target is {goal / total:.1%}",
                options=["sparsity"],
            )
        missing = goal - removal.zeros
        closer = [k for k, count in freed.items() if count < 2 * missing]
        if not closer:
            break
        k = min(closer, key=lambda k: prices.price(k, freed[k]))
        removal.remove(groups[k])
        prices.remove(k)
        left.remove(k)
    return removal, len(groups) - len(left)


def magnitudes(
    layers: Mapping[str, Layer], groups: Sequence[TiedChannels], by_layer: bool
) -> NDArray[np.float64]:
    """Return the mean square of the weights of each group's rows, (groups,).

    Parameters
    ----------
    by_layer : bool
        Their ranks instead, as shares of the groups of the same layers: every layer loses the same
        share.
    """
    score = np.zeros(len(groups))
    same: dict[tuple[str, ...], list[int]] = {}
    for k, group in enumerate(groups):
        rows = [layers[path].weight.numpy()[index].ravel() for path, index in group.rows.items()]
        score[k] = np.square(np.concatenate(rows)).mean()
        same.setdefault(tuple(group.rows), []).append(k)
    if by_layer:
        for own in same.values():
            score[own] = (np.argsort(np.argsort(score[own], kind="stable")) + 0.5) / len(own)
    return score
