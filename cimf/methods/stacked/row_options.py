"""What all ways to find the rows may be told, checked before there is anything to solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import check_switches
from cimf.methods.stacked.designs import DESIGNS
from cimf.solve.rows import check_limits
from formulations.columns import as_float64


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How exactly the rows are solved and how the outputs are fitted.

    Attributes
    ----------
    tol : float
        Relative gap at which a row is certified.
    refit : bool
        Fit (C, D) to the states that the sparse model itself reaches on the calibration samples
        (True), or to the captured states, problem (5) literally (False).
    output_inputs : bool
        Let D use all inputs. By default D holds only the bias, so that no accuracy comes from a
        linear map of the input.
    keep_going : bool
        Report rows whose certificate fails instead of raising.
    n_jobs : int, optional
        As `cimf.solve_path`.

    Raises
    ------
    InputError
        A switch that is no bool; as `cimf.solve_path` for tol and n_jobs.
    """

    tol: float = 1e-9
    refit: bool = True
    output_inputs: bool = False
    keep_going: bool = False
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        check_switches(self, "refit", "output_inputs", "keep_going")
        check_limits(self.tol, self.n_jobs)

    @property
    def decisive(self) -> dict[str, Any]:
        """What can change a number: all but the number of workers."""
        names = [field.name for field in fields(self) if field.name != "n_jobs"]
        return {name: getattr(self, name) for name in names}

    def levels(self, kappas: Sequence[float | None], design: str) -> list[float]:
        """Refuse kappas and a design that no network could make right; return the kappas.

        For those who have work to do before they have a `Reference`.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class BallOptions(RowOptions):
    """How rows in an l1 ball of radius kappa are solved.

    Attributes
    ----------
    allow_ill_posed : bool
        Permit kappa > 1 where the design has feedback: well-posedness is then not implied.
    """

    allow_ill_posed: bool = False

    no_ball: ClassVar[bool] = False
    """Whether the problem makes sense without the ball, kappa None or infinite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switches(self, "allow_ill_posed")

    def levels(self, kappas: Sequence[float | None], design: str) -> list[float]:
        """Return the kappas, infinity where there is no ball.

        Raises
        ------
        InputError
            An unknown design; kappa negative, NaN, infinite or given twice; kappa > 1 with feedback
            unless allowed.
        """
        check_design(design)
        given = [np.inf if kappa is None and self.no_ball else kappa for kappa in kappas]
        levels = as_float64("kappas", given, 1, finite=not self.no_ball)
        if not levels.size or not (levels >= 0).all():
            raise InputError(f"kappas must be one or more numbers >= 0, got {list(kappas)}")
        check_once(levels.tolist())
        allowed = not DESIGNS[design].feedback or self.allow_ill_posed
        if levels.max() > 1 and not allowed:
            raise InputError(
                f"kappa = {levels.max():g} with design {design!r}: above 1 the bound does not "
                "imply a unique equilibrium. Use kappa <= 1, or the design 'causal' (well-posed "
                "for any kappa), or allow_ill_posed=True and read the report",
                options=["allow_ill_posed"],
            )
        return levels.tolist()


def check_once(kappas: Sequence[float]) -> None:
    """Refuse kappas that are given twice.

    Raises
    ------
    InputError
    """
    if len(set(kappas)) < len(kappas):
        raise InputError(f"every kappa may be given once, got {list(kappas)}")


def check_rescale(rescale: object) -> None:
    """Refuse units that there are not.

    Raises
    ------
    InputError
    """
    if not isinstance(rescale, bool) and rescale != "layers":
        raise InputError(f"rescale must be True, False or 'layers', got {rescale!r}")


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
