"""METHODS: name -> method. A new one is a function and a line here; tables ask for them by name."""

from __future__ import annotations

from typing import Any

from cimf.methods.base import Method, Pruned, Task, run_method
from cimf.methods.baselines.one_shot import BASELINES
from cimf.methods.gates.prune_gates import GatesOptions, prune_gates
from cimf.methods.layered.prune_channels import prune_layered
from cimf.methods.layered.prune_layers import LayeredOptions
from cimf.methods.layered.prune_sensitivity import SensitivityBudget, prune_sensitivity
from cimf.methods.structured.mla import MlaOptions, prune_mla
from cimf.methods.structured.spr import SprOptions, prune_spr
from cimf.methods.structured.sss import SssOptions, prune_sss
from formulations.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    {
        "layered": Method(
            "cimf: exact Optimal Brain Surgeon per row with exchanges, ADMM where rows are wide, "
            "error correction and an allocation by the effect on the output (docs/layered.md)",
            prune_layered,
            LayeredOptions,
            controlled=("sparsity", "budget", "pattern"),
        ),
        "sensitivity": Method(
            "cimf: rows of least sensitivity, layer by layer; the bound of El Ghaoui et al. 2021, "
            "Implicit deep learning (docs/robustness.md)",
            prune_sensitivity,
            SensitivityBudget,
            needs=("gradients",),
            controlled=("sparsity", "budget"),
        ),
        **BASELINES,
        "gates": Method(
            "Gallego-Posada et al. 2022, Controlled sparsity via constrained optimization; gates "
            "of Louizos et al. 2018",
            prune_gates,
            GatesOptions,
            needs=("labels", "gradients"),
            controlled=("sparsity", "budget"),
        ),
        "sss": Method(
            "Huang and Wang 2018, Data-driven sparse structure selection for deep neural networks",
            prune_sss,
            SssOptions,
            needs=("labels", "gradients"),
        ),
        "spr": Method(
            "Cacciola et al. 2022, Deep neural networks pruning via the structured perspective "
            "regularization",
            prune_spr,
            SprOptions,
            needs=("labels", "gradients"),
        ),
        "mla": Method(
            "Hu et al. 2019, Multi-loss-aware channel pruning of deep networks; as described by "
            "Tsai, Gao and El Ghaoui 2024, section 4",
            prune_mla,
            MlaOptions,
            needs=("labels", "gradients"),
        ),
    },
)


def prune_task(
    task: Task, sparsity: float | None = None, method: str = "layered", **options: Any
) -> Pruned:
    """Return a task's network pruned by a method; as `cimf.prune`, without test data.

    Methods and targets on one task share what they compute alike.
    """
    found = METHODS[method]
    return run_method(task, method, found, sparsity, found.checked(method, sparsity, options))
