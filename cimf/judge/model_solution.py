"""Solutions of problems in A, B, C, D, or in any variables, that carry their certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import CertificateError


@dataclass(frozen=True, repr=False)
class ModelSolution:
    """A point, what it is worth, and a bound on how much better any other point can be.

    Attributes
    ----------
    values : Mapping of str to array
        By variable name: A (n, n), B (n, p), C (q, n), D (q, p), those that the problem has.
    objective : float
        Recomputed in float64 at `values`.
    bound : float
        Lower bound on the optimal value, from a dual point (`cone_certificate`). It speaks of all
        feasible points within `radius` times the size of the solution.
    gap : float
        (objective - bound) / scale. Slightly negative only where `values` violate a constraint.
    scale : float
        What the gap is relative to: sum_i lam_i ||z_i||^2 for (3)-(5), the loss at the
        least-squares solution for (2), max(1, |objective|) for other problems.
    violations : Mapping of str to float
        Each constraint's relative violation ("ball", "matching", the sets by name).
    radius : float
    raw_objective : float
        At the backend's own point, before it was moved inside the constraints and rounded.
    backend, status : tuple of str
        Who solved each part, and its own word on it.
    iterations : tuple of int
    parts : tuple of tuple of int
        The rows of W in each part: one part if solved whole, one per row if separable.
    bounds : tuple of float
        The lower bound of each part; -infinity where its backend failed.
    seconds : Mapping of str to float
        "build", "solve", "certify": wall clock, of several processes their sum.
    tol : float
        What `passed` refers to.
    """

    values: Mapping[str, NDArray[np.float64]]
    objective: float
    bound: float
    gap: float
    scale: float
    violations: Mapping[str, float]
    radius: float
    raw_objective: float
    backend: tuple[str, ...]
    status: tuple[str, ...]
    iterations: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    bounds: tuple[float, ...]
    seconds: Mapping[str, float]
    tol: float

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in self.values.items())
        word = "certified" if self.passed else "not certified"
        return (
            f"ModelSolution({shapes}; objective {self.objective:.6g}, {word}: gap {self.gap:.1e}, "
            f"violation {self.violation:.1e} at tol={self.tol:g})"
        )

    @property
    def violation(self) -> float:
        """The largest relative violation."""
        return max(self.violations.values(), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether gap and violation are within the tolerance."""
        return abs(self.gap) <= self.tol and self.violation <= self.tol

    def __getattr__(self, name: str) -> Any:
        """Return the value of a variable: `solution.A`."""
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"no field and no variable is called {name!r}")
        return values[name]

    def raise_if_failed(self) -> ModelSolution:
        """Return self; raise `CertificateError`, which carries self, if it is not certified."""
        if not self.passed:
            error = CertificateError(
                f"not certified at tolerance {self.tol:g}: relative gap {self.gap:.3g}, violations "
                + ", ".join(f"{name} {value:.3g}" for name, value in self.violations.items())
            )
            error.solution = self
            raise error
        return self
