"""The options of a path of row problems in the plain ball."""

from __future__ import annotations

from dataclasses import dataclass

from cimf.errors import InputError, UnknownNameError
from cimf.methods.stacked.row_options import BallOptions
from cimf.solve.conic.backends import candidates
from cimf.solve.conic.solver_settings import solver_named
from cimf.solve.rows import METHODS


@dataclass(frozen=True)
class PathOptions(BallOptions):
    """How the rows are solved and the outputs fitted; checked when it is made.

    Attributes
    ----------
    method : str
        As `cimf.solve_path`; or "cvxpy", which solves every row by `backend`.
    backend : str
        "auto" (MOSEK, else Clarabel) or the name of a solver that CVXPY has, for method "cvxpy".
    tol, refit, output_inputs, allow_ill_posed, keep_going, n_jobs
        As `BallOptions`.

    Raises
    ------
    InputError
        Unknown names; a backend without method "cvxpy"; as `BallOptions`.
    BackendError
        The named backend does not work here.
    """

    method: str = "auto"
    backend: str = "auto"

    def __post_init__(self) -> None:
        known = ["auto", *METHODS, "cvxpy"]
        if self.method not in known:
            raise UnknownNameError("method", self.method, known)
        if self.backend != "auto":
            solver_named(self.backend)
            if self.method != "cvxpy":
                raise InputError(
                    "backend is used by method='cvxpy' only", options=["backend", "method"]
                )
            candidates(self.backend)
        super().__post_init__()
