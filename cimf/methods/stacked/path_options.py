"""The options of a path of row problems, checked before there is anything to solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import check_switches
from cimf.methods.stacked.designs import DESIGNS
from cimf.solve.conic.backends import backend_named, candidates
from cimf.solve.rows import METHODS, check_limits
from formulations.columns import as_float64


@dataclass(frozen=True)
class PathOptions:
    """How the rows are solved and the outputs fitted; checked when it is made.

    Attributes
    ----------
    method : str
        As `cimf.solve_path`; or "cvxpy", which solves every row by `backend`.
    backend : str
        "auto", "mosek" or "clarabel", for method "cvxpy".
    tol : float
        Relative gap at which a row is certified.
    refit : bool
        Fit (C, D) to the states that the sparse model itself reaches on the calibration samples
        (True), or to the captured states, problem (5) literally (False).
    output_inputs : bool
        Let D use all inputs. By default D holds only the bias, so that no accuracy comes from a
        linear map of the input.
    allow_ill_posed : bool
        Permit kappa > 1 where the design has feedback: well-posedness is then not implied.
    keep_going : bool
        Report rows whose certificate fails instead of raising.
    n_jobs : int, optional
        As `cimf.solve_path`.

    Raises
    ------
    InputError
        Unknown names; a backend without method "cvxpy"; a switch that is no bool; as
        `cimf.solve_path` for tol and n_jobs.
    BackendError
        The named backend does not work here.
    """

    method: str = "auto"
    backend: str = "auto"
    tol: float = 1e-9
    refit: bool = True
    output_inputs: bool = False
    allow_ill_posed: bool = False
    keep_going: bool = False
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        known = ["auto", *METHODS, "cvxpy"]
        if self.method not in known:
            raise UnknownNameError("method", self.method, known)
        if self.backend != "auto":
            backend_named(self.backend)
            if self.method != "cvxpy":
                raise InputError(
                    "backend is used by method='cvxpy' only", options=["backend", "method"]
                )
            candidates(self.backend)
        check_switches(self, "refit", "output_inputs", "allow_ill_posed", "keep_going")
        check_limits(self.tol, self.n_jobs)

    @property
    def decisive(self) -> dict[str, Any]:
        """What can change a number: all but the number of threads."""
        return {name: value for name, value in asdict(self).items() if name != "n_jobs"}


def check_path(kappas: Sequence[float], design: str, options: PathOptions) -> list[float]:
    """Refuse kappas and a design that no network could make right; return the kappas.

    For those who have work to do before they have a `Reference`.

    Raises
    ------
    InputError
        An unknown design; kappa negative, NaN, infinite or given twice; kappa > 1 with feedback
        unless allowed.
    """
    check_design(design)
    levels = as_float64("kappas", kappas, 1)
    if not levels.size or (levels < 0).any():
        raise InputError(f"kappas must be one or more numbers >= 0, got {list(kappas)}")
    if len(np.unique(levels)) < len(levels):
        raise InputError(f"every kappa may be given once, got {list(kappas)}")
    allowed = not DESIGNS[design].feedback or options.allow_ill_posed
    if levels.max() > 1 and not allowed:
        raise InputError(
            f"kappa = {levels.max():g} with design {design!r}: above 1 the bound does not imply a "
            "unique equilibrium. Use kappa <= 1, or the design 'causal' (well-posed for any "
            "kappa), or allow_ill_posed=True and read the report",
            options=["allow_ill_posed"],
        )
    return levels.tolist()


def check_design(design: str) -> None:
    """Refuse an unknown design, and the one that makes a network sparse instead.

    Raises
    ------
    InputError
    """
    if design == "layered":
        raise InputError(
            "design 'layered' gives a sparse network, not an implicit model: "
            "cimf.prune(net, batches, sparsity=0.8)"
        )
    if design not in DESIGNS:
        raise UnknownNameError("design", design, DESIGNS)
