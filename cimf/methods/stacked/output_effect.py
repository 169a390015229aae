"""How much an error of each pre-activation costs at the outputs of the network, on its samples."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.model import ImplicitModel
from cimf.network.state_blocks import Block
from cimf.network.states import States

Array = NDArray[np.float64]

# Up to so many outputs every one is followed back; of more, as many independent normal mixtures.
_PROBES = 10
# The adjoint equilibrium of an implicit teacher is iterated to this relative change.
_CLOSE, _STEPS = 1e-6, 2000


def output_effect(model: ImplicitModel, states: States, seed: int = 0) -> Array:
    """Return sum_samples sum_k (dY_k / dZ_i)^2, shape (n,): exact, or its estimate.

    With G = dY' v / dZ, G = phi'(Z) * (A' G + C' v): the adjoint of X = phi(A X + B U).

    Parameters
    ----------
    model : ImplicitModel
        The network itself, in the order of `states`.
    states : States
        m samples.

    Raises
    ------
    InputError
        A model with feedback whose adjoint does not settle.
    """
    slope = _slopes(states.blocks, states.Z)
    q = model.n_outputs
    rng = np.random.default_rng(seed)
    found = np.zeros(model.n_states)
    backward = model.A.T.tocsr() if hasattr(model.A, "tocsr") else model.A.T
    for k in range(min(q, _PROBES)):
        v = np.eye(q)[:, [k]] if q <= _PROBES else rng.standard_normal((q, states.n_samples))
        source = np.broadcast_to(model.C.T @ v, slope.shape)
        found += np.square(_adjoint(backward, slope, source)).sum(axis=1)
    return found / (1.0 if q <= _PROBES else _PROBES)


def _adjoint(backward: Array, slope: Array, source: Array) -> Array:
    """Return G = slope * (backward G + source); for an acyclic A exact after its levels."""
    G = slope * source
    for _ in range(_STEPS):
        new = slope * (backward @ G + source)
        change = np.abs(new - G).max(initial=0.0)
        G = new
        if change <= _CLOSE * np.abs(G).max(initial=0.0):
            return G
    raise InputError("the outputs' dependence on the states does not settle: A has too much gain")


def _slopes(blocks: tuple[Block, ...], Z: Array) -> Array:
    """Return phi'(Z), (n, m)."""
    found = np.empty_like(Z)
    for block in blocks:
        z = torch.from_numpy(Z[block.rows]).requires_grad_()
        (slope,) = torch.autograd.grad(block.activation.torch(z).sum(), z)
        found[block.rows] = slope.numpy()
    return found
