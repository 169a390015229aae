"""cimf: trained networks made sparse by convex optimisation, with certificates.

`prune` returns the same network with sparse weights. `sparsify` returns an implicit model
X = phi(A X + B U), Y = C X + D U: the rows of (A, B) solve constrained LASSO problems on captured
states, and every solution carries a certificate.

Names are loaded on first use (PEP 562), so `import cimf` is fast and pulls in neither torch nor
cvxpy.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cimf.errors import CimfError as CimfError
    from cimf.evaluate.main_job import prune as prune
    from cimf.evaluate.robustness import robustness as robustness
    from cimf.judge import Certificate as Certificate
    from cimf.judge import Solution as Solution
    from cimf.judge import certify as certify
    from cimf.methods.by_name import METHODS as METHODS
    from cimf.methods.multiply_adds import multiply_adds as multiply_adds
    from cimf.methods.stacked.captured import Reference as Reference
    from cimf.methods.stacked.loss_options import LossOptions as LossOptions
    from cimf.methods.stacked.path_options import PathOptions as PathOptions
    from cimf.methods.stacked.sparsify import sparsify as sparsify
    from cimf.methods.stacked.sparsify import sparsify_path as sparsify_path
    from cimf.model import ImplicitModel as ImplicitModel
    from cimf.network.activations import ACTIVATIONS as ACTIVATIONS
    from cimf.network.activations import Activation as Activation
    from cimf.network.capture import capture_states as capture_states
    from cimf.network.states import States as States
    from cimf.solve import solve_cvxpy as solve_cvxpy
    from cimf.solve import solve_path as solve_path
    from cimf.solve import solve_rows as solve_rows
    from cimf.solve.parameter_sweep import sweep as sweep
    from cimf.statistics import Gram as Gram
    from cimf.train.finetuning import finetune as finetune
    from cimf.train.sparse_pattern import keep_zeros as keep_zeros
    from cimf.train.sparse_pattern import release_zeros as release_zeros
    from cimf.verification import verify as verify

# Public name -> module that defines it.
_HOMES = {
    "ACTIVATIONS": "cimf.network.activations",
    "Activation": "cimf.network.activations",
    "Certificate": "cimf.judge",
    "CimfError": "cimf.errors",
    "Gram": "cimf.statistics",
    "ImplicitModel": "cimf.model",
    "LossOptions": "cimf.methods.stacked.loss_options",
    "METHODS": "cimf.methods.by_name",
    "PathOptions": "cimf.methods.stacked.path_options",
    "Reference": "cimf.methods.stacked.captured",
    "Solution": "cimf.judge",
    "States": "cimf.network.states",
    "capture_states": "cimf.network.capture",
    "certify": "cimf.judge",
    "finetune": "cimf.train.finetuning",
    "keep_zeros": "cimf.train.sparse_pattern",
    "multiply_adds": "cimf.methods.multiply_adds",
    "prune": "cimf.evaluate.main_job",
    "release_zeros": "cimf.train.sparse_pattern",
    "robustness": "cimf.evaluate.robustness",
    "solve_cvxpy": "cimf.solve",
    "solve_path": "cimf.solve",
    "solve_rows": "cimf.solve",
    "sparsify": "cimf.methods.stacked.sparsify",
    "sparsify_path": "cimf.methods.stacked.sparsify",
    "sweep": "cimf.solve.parameter_sweep",
    "verify": "cimf.verification",
}

__all__ = ["__version__", *_HOMES]

try:
    __version__ = version("cimf")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cimf' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
