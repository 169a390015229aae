"""The main job on a network: a method prunes it, held-out samples judge it."""

from __future__ import annotations

from typing import Any

from torch import nn

from cimf.evaluate.held_out import HeldOut
from cimf.methods.base import Pruned, Task, run_method
from cimf.methods.by_name import METHODS
from cimf.network.batches import as_list


def prune(
    net: nn.Module,
    batches: Any,
    sparsity: float | None = None,
    method: str = "layered",
    *,
    test: Any = None,
    train: Any = None,
    **options: Any,
) -> Pruned:
    """Return a network with sparse convolution and linear weights that matches the given one.

    Parameters
    ----------
    net : nn.Module
        A trained network, any dtype, device and mode; not modified.
    batches : iterable, or one tensor
        Calibration inputs (b, ...), or (input, label) pairs, whose labels reach only methods that
        need them.
    sparsity : float
        Share of the weights of convolutions and linear layers that is zero, in [0, 1). An N:M
        pattern sets it.
    method : str
        A key of `cimf.METHODS`; "layered" is the most accurate without labels.
    test : iterable, optional
        Held-out batches, which no method sees; (input, integer label) pairs give accuracies.
    train : iterable of (input, label) pairs, optional
        Labelled training data, for methods that need them. Default: `batches`, where those are
        pairs.
    **options
        Fields of ``cimf.METHODS[method].options``, checked before any work. structure="channels"
        removes whole channels, "2:4" (any "N:M") keeps at most two of every four inputs.

    Returns
    -------
    Pruned
        ``.network``, of the same class with exact zeros; ``.report``; ``.shrink()``, a plain and
        smaller network without the channels that nobody reads.

    Raises
    ------
    InputError, UnknownNameError
        Bad arguments, or a target that cannot be met.
    CaptureError
        The network cannot be traced or matched; the message names the module.

    Warns
    -----
    UserWarning
        Fewer samples (times positions) than columns in a layer, with the layers' names; a target
        that was missed by more than 0.001. The same sentences are notes of the report.
    """
    found = METHODS[method]
    record = found.checked(method, sparsity, options)
    task = as_task(net, batches, method, train)
    held_out = None if test is None else HeldOut(net, test)
    result = run_method(task, method, found, sparsity, record)
    return result if held_out is None else held_out.evaluated(result)


def as_task(net: nn.Module, batches: Any, method: str, train: Any = None) -> Task:
    """Return the task of a method; parameters and errors as `prune`."""
    found = METHODS[method]
    if "labels" in found.needs and train is None:
        batches = as_list("calibration", batches)
        train = batches if all(isinstance(batch, tuple | list) for batch in batches) else None
    found.check_data(method, train)
    return Task(net, batches, train)
