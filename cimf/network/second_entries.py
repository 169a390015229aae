"""What stands beside the input in a batch: a label, or an input that would be left out unseen."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cimf.errors import InputError
from cimf.network.batches import run
from cimf.network.copies import working_copy
from cimf.network.layers import working_dtype


@torch.no_grad()
def second_entries(net: nn.Module, batches: Sequence[Any], inputs: Any) -> tuple[str, ...]:
    """Return a note where a network could take what its batches have beside the input.

    A bare pair is an input with its label. A network with another input that may be left out would
    run without it, and nothing would show.

    Parameters
    ----------
    net : nn.Module
        A `plain_copy`.
    batches : sequence
        As they were given.
    inputs : Tensor or Inputs
        The first of them as it was read; with several inputs nothing is left out.

    Raises
    ------
    InputError
        It cannot be a label: neither one number per sample, nor of the shape of an output, with or
        without the axis of its classes; or there are more than two entries.
    """
    first, names = batches[0], _further(net)
    bare = isinstance(first, tuple | list) and len(first) > 1 and isinstance(inputs, Tensor)
    if not bare or not names or first[1] is None:
        return ()
    taken = (
        f"the network's forward also takes {', '.join(map(repr, names[:3]))}: give the inputs of a "
        "network with several as a tuple in a pair with any label, [((x, y), None), ...], or as a "
        "dict by keyword"
    )
    if len(first) > 2:
        raise InputError(
            f"the batches have {len(first)} entries, the first of which would be the "
            f"only input, and {taken}. A single input with its label is a pair"
        )
    shape = tuple(first[1].shape) if isinstance(first[1], Tensor | np.ndarray) else None
    sample = inputs[:2]
    reference = working_copy(net, working_dtype(net))
    outputs = [u for u in tree_leaves(run(reference, sample, "given")) if _is_tensor(u)]
    if shape is not None and not any(_labels(first[1], tuple(u.shape[1:])) for u in outputs):
        raise InputError(
            f"the second entries of the pairs, of shape {shape[1:]} per sample and "
            f"type {first[1].dtype}, are no labels of outputs of shape "
            f"{', '.join(str(tuple(u.shape[1:])) for u in outputs)}, and {taken}. Leave them out "
            "where they are neither, [(x, None), ...]"
        )
    return (f"the second entries of the pairs are taken as labels, no inputs; {taken}",)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _further(net: nn.Module) -> list[str]:
    """Return the arguments after the first of a forward that could be tensors."""
    given = list(inspect.signature(net.forward).parameters.values())[1:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in given if p.kind in named and p.default in (None, p.empty)]


def _labels(second: Any, output: tuple[int, ...]) -> bool:
    """Whether an array may hold labels of an output, by its shape and type."""
    own = tuple(second.shape[1:])
    if all(n == 1 for n in own) or own == output:
        return True
    mask = second.dtype in (torch.bool, np.dtype(bool))
    return own in (output[:-1], output[1:]) and not mask
