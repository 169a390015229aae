"""A network with the equivalents of its modules in their place, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cimf.network.equivalents import (
    AttentionLayers,
    ConvolvedLayer,
    Equivalent,
    TransposedLayer,
)
from cimf.network.recurrent import RecurrentCell, RecurrentLayers

EQUIVALENTS: tuple[type[Equivalent], ...] = (
    AttentionLayers,
    ConvolvedLayer,
    RecurrentCell,
    RecurrentLayers,
    TransposedLayer,
)


def kind_of(module: nn.Module) -> type[Equivalent] | None:
    """Return the class of a module's equivalent, if it has one."""
    return next((kind for kind in EQUIVALENTS if kind.takes(module)), None)


def expand(net: nn.Module) -> tuple[nn.Module, list[tuple[nn.Module, str, nn.Module]]]:
    """Put equivalents in the place of the modules that have one.

    Returns
    -------
    net : nn.Module
        The same object, but where it has an equivalent itself.
    replaced : list of (parent, name, module)
        What stood where.
    """
    kind = kind_of(net)
    if kind is not None:
        return kind(net), []
    made: dict[nn.Module, Equivalent] = {}
    replaced = []
    for parent in list(net.modules()):
        for name, module in parent._modules.items():
            kind = None if module is None else kind_of(module)
            if module is not None and kind is not None:
                if module not in made:
                    made[module] = kind(module).train(module.training)
                replaced.append((parent, name, module))
    for parent, name, module in replaced:
        parent._modules[name] = made[module]
    return net, replaced


@contextmanager
def expanded(net: nn.Module) -> Iterator[nn.Module]:
    """Give a network with equivalents; afterwards its modules are back, with their weights."""
    out, replaced = expand(net)
    try:
        yield out
    finally:
        with torch.no_grad():
            if isinstance(out, Equivalent) and out is not net:
                out.write(net)
            for parent, name, module in replaced:
                equivalent = parent._modules[name]
                parent._modules[name] = module
                if isinstance(equivalent, Equivalent):
                    equivalent.write(module)


@contextmanager
def by_modules() -> Iterator[None]:
    """Run the block without torch's fused transformer layers: they read weights, call no module."""
    mha: Any = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)
