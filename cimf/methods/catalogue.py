"""METHODS: name -> method. A new one is a function and a line here; tables ask for them by name."""

from __future__ import annotations

from cimf.methods.base import Method
from cimf.methods.baselines.one_shot import BASELINES
from cimf.methods.layered.prune_layers import LayeredOptions, prune_layers
from formulations.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    {
        "layered": Method(
            "cimf: exact Optimal Brain Surgeon per row with exchanges, error correction and an "
            "allocation by the effect on the output (docs/layered.md)",
            prune_layers,
            LayeredOptions,
            controlled=("sparsity", "budget"),
        ),
        **BASELINES,
    },
)
