"""The matrices A, B, C, D of a network with layers, stored: scipy.sparse, one layer at a time.

The network is cut open at its nonlinearities. A source (the input, or the states of one
nonlinearity) reaches only the affine piece up to the next nonlinearities, so its columns are read
off by running that piece alone on unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from cimf.errors import CaptureError
from cimf.model.convert import UNIT, linear_part
from cimf.network.cut import Network
from cimf.network.state_blocks import Block

# Numbers in the activations of one batch of unit vectors: 128 MB in float64.
_BATCH_NUMBERS = 2**24
# A stored non-zero: its value and its 4-byte column.
_BYTES = 12


@dataclass(frozen=True)
class Piece:
    """What depends directly on one source.

    Attributes
    ----------
    source : fx.Node
    start, width : int
        Its columns in (A, B): start <= j < start + width.
    nodes : tuple of fx.Node
        What is computed from it before the next nonlinearities, in order.
    targets : tuple of (fx.Node, int)
        Values that are rows of (Z, Y), and their first row.
    """

    source: fx.Node
    start: int
    width: int
    nodes: tuple[fx.Node, ...]
    targets: tuple[tuple[fx.Node, int], ...]


class Reader:
    """Reads columns of the matrix with rows (Z, Y) and columns (X, U).

    Parameters
    ----------
    network : Network
    blocks : sequence of Block
        In row order, the last nonlinearity on top.
    shape : tuple of int
        Of one input sample.
    """

    def __init__(self, network: Network, blocks: tuple[Block, ...], shape: tuple[int, ...]) -> None:
        self.n_states = sum(block.stop - block.start for block in blocks)
        self.chunk = max(1, min(512, _BATCH_NUMBERS // max(1, self.n_states)))
        zeros = [
            torch.zeros(self.chunk, *block.shape, dtype=torch.float64) for block in blocks[::-1]
        ]
        u = torch.zeros(self.chunk, *shape, dtype=torch.float64)
        self._network, self._lane = network, network.lane(u, zeros)
        with torch.no_grad():
            for node in network.graph.nodes:
                self._lane[node] = output = network.graph.evaluate(node, self._lane)
        self.n_outputs = output[0].numel()
        self.pieces = tuple(_pieces(network, blocks, math.prod(shape)))

    @torch.no_grad()
    def columns(self, piece: Piece, index: NDArray[np.intp]) -> Any:
        """Return columns of a piece as CSC, shape (n + q, k); at most `chunk` of them."""
        env, count = self._lane, len(index)
        kept = {node: env[node] for node in (piece.source, *piece.nodes)}
        constant = [(_rows(env[node])[:1].T, start) for node, start in piece.targets]
        unit = torch.zeros_like(kept[piece.source])
        unit.view(self.chunk, -1)[torch.arange(count), torch.from_numpy(index)] = UNIT
        env[piece.source] = unit
        for node in piece.nodes:
            env[node] = self._network.graph.evaluate(node, env)
        none = np.zeros(0, np.int32)
        parts = [(np.zeros(0), none, none)]
        for (node, _), (zero, start) in zip(piece.targets, constant, strict=True):
            found = linear_part(_rows(env[node])[:count].T, zero)
            i, j = np.nonzero(found)
            parts.append((found[i, j], (i + start).astype(np.int32), j.astype(np.int32)))
        env.update(kept)
        data, row, column = (np.concatenate(values) for values in zip(*parts, strict=True))
        size = (self.n_states + self.n_outputs, count)
        return scipy.sparse.coo_array((data, (row, column)), shape=size).tocsc()

    def nonzeros(self, samples: int = 32) -> int:
        """Return the estimated number of non-zeros, from evenly spaced columns of every source."""
        total = 0.0
        for piece in self.pieces:
            count = min(samples, self.chunk, piece.width)
            index = np.linspace(0, piece.width - 1, count).astype(np.intp)
            total += self.columns(piece, index).nnz * piece.width / max(count, 1)
        return round(total)

    def read(self) -> Any:
        """Return the whole matrix as CSR, shape (n + q, n + p - 1)."""
        parts = {
            piece.start: scipy.sparse.hstack(
                [
                    self.columns(piece, np.arange(first, min(first + self.chunk, piece.width)))
                    for first in range(0, piece.width, self.chunk)
                ],
                format="csc",
            )
            for piece in self.pieces
            if piece.width
        }
        return scipy.sparse.hstack([parts[start] for start in sorted(parts)], format="csr")


def read_matrices(
    network: Network,
    blocks: tuple[Block, ...],
    shape: tuple[int, ...],
    offset: NDArray[np.float64],
    memory_limit: float,
) -> tuple[Any, Any, Any, Any]:
    """Return A (n, n), B (n, p), C (q, n), D (q, p) as CSR; the last input is the constant 1.

    Parameters
    ----------
    network, blocks, shape
        As `Reader`.
    offset : (n + q, 1)
        (Z, Y) where all states and inputs are zero.
    memory_limit : float
        Bytes that the four matrices may take; building them takes about four times as much.

    Raises
    ------
    CaptureError
        More non-zeros than that, by an estimate made before anything is built.
    """
    reader = Reader(network, blocks, shape)
    n, count = reader.n_states, reader.nonzeros()
    if _BYTES * count > memory_limit:
        raise CaptureError(
            f"A, B, C, D of {n:,} states have about {count:,} non-zeros, "
            f"{1e-9 * _BYTES * count:.3g} GB as sparse matrices; memory_limit is "
            f"{1e-9 * memory_limit:.3g} GB. Raise it (building takes about four times as much), or "
            "use the operators, which store nothing"
        )
    whole = scipy.sparse.hstack([reader.read(), scipy.sparse.csr_array(offset)], format="csr")
    return whole[:n, :n], whole[:n, n:], whole[n:, :n], whole[n:, n:]


def _pieces(network: Network, blocks: tuple[Block, ...], n_inputs: int) -> Iterator[Piece]:
    graph = network.graph
    n_states = sum(block.stop - block.start for block in blocks)
    start = dict(zip(network.cuts, (block.start for block in blocks[::-1]), strict=True))
    widths = [(graph.source, n_states, n_inputs)]
    widths += [
        (node, block.start, block.stop - block.start)
        for node, block in zip(network.cuts, blocks[::-1], strict=True)
    ]
    for origin, first, width in widths:
        reached, nodes, targets = {origin}, [], []
        for node in graph.nodes:
            if node is origin or not reached.intersection(node.all_input_nodes):
                continue
            if node in start:
                value: Any = node.args[0] if node.args else node.kwargs["input"]
                targets.append((value, start[node]))
            elif node.op == "output":
                targets.append((node.all_input_nodes[0], n_states))
            else:
                reached.add(node)
                nodes.append(node)
        yield Piece(origin, first, width, tuple(nodes), tuple(targets))


def _rows(value: Tensor) -> NDArray[np.float64]:
    return value.reshape(value.shape[0], -1).numpy()
