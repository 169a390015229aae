"""One trace of a torch network: its graph, layers and states, and how it is run.

Names are loaded on first use: activations and state blocks need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cimf.network.capture import capture_states as capture_states
    from cimf.network.capture import iter_states as iter_states
    from cimf.network.states import Reconstruction as Reconstruction
    from cimf.network.states import States as States

_HOMES = {
    "Reconstruction": "cimf.network.states",
    "States": "cimf.network.states",
    "capture_states": "cimf.network.capture",
    "iter_states": "cimf.network.capture",
}

__all__ = ["Reconstruction", "States", "capture_states", "iter_states"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cimf.network' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
