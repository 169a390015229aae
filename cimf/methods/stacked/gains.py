"""The total sensitivity of an implicit model, and its derivatives by the magnitudes of its weights.

Outputs that answer to inputs moving by up to u move by at most S u entry by entry, with
S = |C| (I - L |A|)^{-1} L |B| + |D| and L the Lipschitz constants of the activations. Their sum is

    T(W) = 1' (|C| r + |D| u),    r = L (|A| r + |B| u)             forward: what each state moves,
                                  l = L (|A|' l + |C|' 1)           adjoint: what moves the outputs,

and dT / d|W_ij| = l_i r_j, with r continued by u over the inputs and l by ones over the outputs.
For a block-triangular A the T of one block's rows is linear in their magnitudes while the other
rows stand; with feedback the same weights are its linearisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.model.perturbation import StateGain
from cimf.network.state_blocks import Block, lipschitz_rows

Array = NDArray[np.float64]


class Gains(NamedTuple):
    """T, l (n + q,) and r (N,) of a model W = [[A, B], [C, D]]; all infinite if not well-posed."""

    total: float
    adjoint: Array
    forward: Array


@dataclass(frozen=True)
class Motion:
    """What moves, and what is counted.

    Attributes
    ----------
    blocks : tuple of Block
    inputs : (p,)
        u >= 0, by how much each input moves; 0 for the bias.
    states : (n,)
        Movement that is added to every state.
    counted : (n,)
        What a movement of every state counts beside that of the outputs, which count 1.
    """

    blocks: tuple[Block, ...]
    inputs: Array
    states: Array
    counted: Array

    @classmethod
    def of_inputs(cls, blocks: tuple[Block, ...], inputs: Array) -> Motion:
        """Return the inputs alone, T as the module has it."""
        none = np.zeros(sum(block.stop - block.start for block in blocks))
        return cls(blocks, inputs, none, none)

    def gains(self, W: Array) -> Gains:
        """Return T, l and r of W (n + q, N)."""
        n = len(self.states)
        magnitude, lipschitz = np.abs(W), lipschitz_rows(self.blocks, n)
        A, B, C, D = magnitude[:n, :n], magnitude[:n, n:], magnitude[n:, :n], magnitude[n:, n:]
        try:
            forward, backward = StateGain(A, self.blocks), StateGain(A.T, self.blocks)
        except InputError:  # no unique equilibrium is proved
            shape = np.full(len(W), np.inf), np.full(W.shape[1], np.inf)
            return Gains(np.inf, *shape)
        source = lipschitz * (B @ self.inputs) + self.states
        moved = forward.radius(source[:, None])[:, 0]
        heard = lipschitz * (C.sum(axis=0) + self.counted)
        felt = backward.radius(heard[:, None])[:, 0]
        total = C.sum(axis=0) @ moved + D.sum(axis=0) @ self.inputs + self.counted @ moved
        return Gains(
            float(total),
            np.concatenate([felt, np.ones(len(C))]),
            np.concatenate([moved, self.inputs]),
        )
