"""Columns eliminated by least squares before a gap is taken."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

# Rounding of v' g_F, in units of eps |F| (||z|| + sum_k ||M_k|| |a_k|), see `FreeBlock`.
_HIDDEN = 16.0


class FreeBlock:
    """Elimination of the free columns F, shared by all rows with the same free columns."""

    def __init__(self, g: NDArray[np.float64], free: NDArray[np.bool_]) -> None:
        self.index = np.flatnonzero(free)
        self.full_rank = True
        if self.index.size:
            self.cross = g[self.index]  # (|F|, N)
            block = self.cross[:, self.index]
            # Unit diagonal first: a free column of scale 1e-8 is not noise beside one of scale 1.
            root = np.sqrt(np.diagonal(block))
            self.scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
            value, vector = scipy.linalg.eigh(block * np.outer(self.scale, self.scale))
            keep = value > np.finfo(np.float64).eps * self.index.size * max(value[-1], 0.0)
            self.full_rank = bool(keep.all())
            self.root = (self.scale[:, None] * vector[:, keep]) / np.sqrt(value[keep])
            self.lost = self.scale[:, None] * vector[:, ~keep]

    def half(self, g: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return h with h'h = g_F' pinv(G_FF) g_F, for g (N,)."""
        return np.asarray(self.root.T @ g[self.index]) if self.index.size else np.zeros(0)

    def eliminate(
        self, gradient: NDArray[np.float64], size: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the reduced gradient and the excess 1/2 g_F' pinv(G_FF) g_F, row by row.

        The excess is infinite where a direction that the inverse leaves out has a slope beyond
        rounding; `size` (r,) is ||z|| + sum_k ||M_k|| |a_k|.
        """
        if not self.index.size:
            return gradient, np.zeros(gradient.shape[0])
        reduced = np.empty_like(gradient)
        excess = np.empty(gradient.shape[0])
        for i, g in enumerate(gradient):  # row by row: bits independent of the other rows
            half = self.half(g)
            excess[i] = 0.5 * float(half @ half)
            slope = np.abs(self.lost.T @ g[self.index]).max(initial=0.0)
            if slope > _HIDDEN * np.finfo(np.float64).eps * self.index.size * size[i]:
                excess[i] = np.inf
            reduced[i] = g - (self.root @ half) @ self.cross
        return reduced, excess
