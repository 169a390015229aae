"""The options of the sensitivity objective, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import check_switches
from cimf.solve.rows import check_limits

# By how much an input is taken to move.
INPUTS = ("range", "unit")


@dataclass(frozen=True)
class SensitivityOptions:
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
        As `PathOptions`; what is refitted are the weighted rows of (C, D), within the budget.

    Raises
    ------
    InputError
        Unknown names, numbers that cannot be meant, a switch that is no bool.
    """

    lam: float | None = None
    inputs: str = "range"
    tol: float = 1e-9
    refit: bool = True
    output_inputs: bool = False
    keep_going: bool = False
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        if self.inputs not in INPUTS:
            raise UnknownNameError("inputs", self.inputs, INPUTS)
        if self.lam is not None and not (
            isinstance(self.lam, Real) and 0.0 < float(self.lam) < np.inf
        ):
            raise InputError(f"lam must be a positive number, got {self.lam!r}")
        check_switches(self, "refit", "output_inputs", "keep_going")
        check_limits(self.tol, self.n_jobs)


def check_budget(kappa: object, options: SensitivityOptions) -> float | None:
    """Return the budget; refuse one that cannot be meant, or one beside a penalty.

    Raises
    ------
    InputError
    """
    if options.lam is not None:
        if kappa is not None:
            raise InputError("give either a budget kappa or a penalty lam, with kappa=None")
        return None
    if not (isinstance(kappa, Real) and 0.0 < float(kappa) < np.inf):
        raise InputError(
            f"kappa must be a positive number, the share of the network's sensitivity that the "
            f"model may have, got {kappa!r}"
        )
    return float(kappa)
