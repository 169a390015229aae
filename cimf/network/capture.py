"""From a network and batches to its states."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from cimf.errors import CaptureError
from cimf.network.activations import Activation
from cimf.network.batches import iter_batches
from cimf.network.cut import Network, run, trace_network
from cimf.network.graph import KeepPrecision, as_output
from cimf.network.probe import TOLERANCE, Probe, probe
from cimf.network.state_blocks import Block, apply_blocks
from cimf.network.states import Reconstruction, States

# Batches are run in pieces of this many samples, to bound the memory of the activations.
_PIECE = 1024
# Samples on which forward passes that symbolic tracing cannot follow, and hooks, are run.
_SAMPLE = 8


def capture_states(
    net: nn.Module,
    batches: Any,
    *,
    activations: Mapping[type[nn.Module], Activation | str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> States:
    """Run a network and return the states of all samples.

    The network may be any torch module whose nonlinearities are elementwise and known
    (`cimf.ACTIVATIONS`): in-place and functional activations, modules used twice, residual
    additions, convolutions, batch norm and dropout in eval mode, average pooling, reshapes,
    concatenations.
    Everything runs on a float64 copy in eval mode on the CPU, so the states are exact to rounding
    whatever the dtype, mode or device of the network, and the network itself is left untouched.

    Parameters
    ----------
    net : torch.nn.Module
        Called with one tensor (b, ...), it returns one tensor (b, ...).
    batches : iterable, or one tensor
        Input tensors (b, ...), or (input, label) pairs whose labels are ignored: a list, a
        generator, a DataLoader. Sizes b may differ. A single tensor or numpy array is all samples.
    activations : mapping of module type to activation, optional
        Modules of your own that apply one known activation elementwise.
    progress : callable, optional
        Called with the number of samples captured so far after every batch.

    Returns
    -------
    States
        U (p, m) with a last row of ones, X and Z (n, m), Y (q, m); `reconstruction` holds the
        errors of the checks below.

    Raises
    ------
    CaptureError
        The network cannot be represented (the message names the layer and the reason), or the
        states fail a check: X = phi(Z), Y equal to the network's output, every piece between
        nonlinearities affine and independent of the other samples, everything finite.
    InputError
        No batches, an empty batch, NaN or infinity, a shape that changes between batches.
    """
    return States.concatenate(iter_states(net, batches, activations=activations, progress=progress))


def iter_states(
    net: nn.Module,
    batches: Any,
    *,
    activations: Mapping[type[nn.Module], Activation | str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[States]:
    """Yield the states batch by batch, for statistics that need not hold all samples at once.

    Parameters and errors as `capture_states`. For example::

        for states in iter_states(net, loader):
            gram.update(states.design(), states.Z.T)
    """
    inputs = iter_batches(batches, torch.float64, "input", piece=_PIECE)
    first = next(inputs)
    network = trace_network(net, activations, first[:_SAMPLE])
    found = probe(network, first.shape[1:])
    if not found.blocks:
        raise CaptureError(
            "the network has no nonlinearity: it is an affine map of its input, and there are no "
            "states to match"
        )
    done = 0
    for u in itertools.chain([first], inputs):
        yield _capture_batch(network, found, u)
        done += u.shape[0]
        if progress is not None:
            progress(done)


def _capture_batch(network: Network, found: Probe, u: torch.Tensor) -> States:
    opened = run(network, u)
    X, Z = (_stack(tensors) for tensors in (opened.x, opened.z))
    Y = _rows(opened.y)
    with torch.no_grad(), KeepPrecision(torch.float64):
        plain = as_output(network.reference(u.clone()), len(u))
    _check_finite(found.blocks, X, Z, Y)
    errors = Reconstruction(
        activation=_check_activations(found.blocks, X, Z),
        output=_check_output(Y, _rows(plain)),
        affinity=found.affinity,
        independence=found.independence,
    )
    U = np.concatenate([_rows(u), np.ones((1, u.shape[0]))])
    return States(U, X, Z, Y, found.blocks, True, errors, found.output_predecessors)


def _rows(value: torch.Tensor) -> np.ndarray:
    """Return a tensor (k, ...) as an array (features, k)."""
    return value.reshape(value.shape[0], -1).numpy().T


def _stack(values: list[torch.Tensor]) -> np.ndarray:
    """Return the blocks as rows, the last one on top."""
    return np.concatenate([_rows(value) for value in reversed(values)])


def _check_finite(blocks: tuple[Block, ...], X: np.ndarray, Z: np.ndarray, Y: np.ndarray) -> None:
    for block in reversed(blocks):  # in order of execution: the first is the cause
        if not (np.isfinite(Z[block.rows]).all() and np.isfinite(X[block.rows]).all()):
            raise CaptureError(
                f"block {block.name!r} has NaN or infinite states: check the weights and the inputs"
            )
    if not np.isfinite(Y).all():
        raise CaptureError("the network's output has NaN or infinite values")


def _check_activations(blocks: tuple[Block, ...], X: np.ndarray, Z: np.ndarray) -> float:
    worst = 0.0
    difference = np.abs(apply_blocks(blocks, Z) - X)
    for block in blocks:
        error = difference[block.rows].max(initial=0.0) / max(
            1.0, np.abs(X[block.rows]).max(initial=0.0)
        )
        if not error <= TOLERANCE:
            raise CaptureError(
                f"block {block.name!r}: the network's states differ from {block.activation} of its "
                f"pre-activations by {error:.1e}"
            )
        worst = max(worst, float(error))
    return worst


def _check_output(Y: np.ndarray, plain: np.ndarray) -> float:
    if Y.shape != plain.shape:
        raise CaptureError(
            f"the traced network returns {Y.shape}, the network itself {plain.shape}"
        )
    error = np.abs(Y - plain).max(initial=0.0) / max(1.0, np.abs(plain).max(initial=0.0))
    if not error <= TOLERANCE:
        raise CaptureError(
            f"the traced network differs from the network itself by {error:.1e}: its forward pass "
            "or a hook does something that tracing does not see, or reads what was changed in place"
        )
    return float(error)
