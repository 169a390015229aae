"""The options of the sensitivity objective, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from cimf.errors import InputError, UnknownNameError
from cimf.methods.stacked.row_options import RowOptions, check_design, check_once

# By how much an input is taken to move.
INPUTS = ("range", "unit")


@dataclass(frozen=True)
class SensitivityOptions(RowOptions):
    """How the sensitivity is weighed and the rows are solved; checked when it is made.

    Attributes
    ----------
    lam : float, optional
        Penalty on the sensitivity, beside 1/2 of the squared errors summed over the samples,
        instead of the budget kappa.
    inputs : str
        "range": every input moves by its range on the calibration samples, so one that never moves
        costs (almost) nothing; "unit": every input moves by 1.
    tol, refit, output_inputs, keep_going, n_jobs
        As `RowOptions`; a row is certified at max(tol, 1e-7); what is refitted are the weighted
        rows of (C, D), within the budget.

    Raises
    ------
    InputError
        Unknown names, numbers that cannot be meant, a switch that is no bool.
    """

    lam: float | None = None
    inputs: str = "range"

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise UnknownNameError("inputs", self.inputs, INPUTS)
        if self.lam is not None and not (
            isinstance(self.lam, Real) and 0.0 < float(self.lam) < np.inf
        ):
            raise InputError(f"lam must be a positive number, got {self.lam!r}")
        super().__post_init__()

    @property
    def decisive(self) -> dict[str, Any]:
        """What can change a number."""
        return {**super().decisive, "loss": "sensitivity"}

    def levels(self, kappas: Sequence[float | None], design: str) -> list[float]:
        """Return the budgets, NaN where a penalty decides; refuse both.

        Raises
        ------
        InputError
            An unknown design; a budget that is no positive number, or given twice, or beside a
            penalty.
        """
        check_design(design)
        if self.lam is not None:
            if list(kappas) != [None]:
                raise InputError(
                    "give either a budget kappa or a penalty lam, with kappa=None", options=["lam"]
                )
            return [np.nan]
        for kappa in kappas:
            if not (isinstance(kappa, Real) and 0.0 < float(kappa) < np.inf):
                raise InputError(
                    "kappa must be a positive number, the share of the network's sensitivity that "
                    f"the model may have, got {kappa!r}"
                )
        levels = [float(kappa) for kappa in kappas if kappa is not None]
        if not levels:
            raise InputError("kappas must be one or more positive numbers, got none")
        check_once(levels)
        return levels
