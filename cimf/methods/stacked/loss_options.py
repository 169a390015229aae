"""The options of a loss of `formulations` in the main job, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from cimf.errors import InputError, UnknownNameError
from cimf.methods.stacked.row_options import BallOptions
from cimf.solve.conic.backends import candidates
from formulations.constraint_set import ConstraintSet
from formulations.fits import LogisticFit, SoftmaxFit, SquaredFit, as_fit
from formulations.loss import Loss
from formulations.losses import LOSSES, as_loss
from formulations.sets import as_set

# Losses of the main job that are no formulation.
_OTHERS = ("sensitivity",)


@dataclass(frozen=True)
class LossOptions(BallOptions):
    """Which loss the rows of (A, B) minimise, in which sets, and how they are solved.

    Attributes
    ----------
    loss : str, Loss, function, or a list of these
        A name in `formulations.LOSSES`; an instance, also a sum ``0.5 * L1() + mine``; a function
        of CVXPY expressions, (a, b) or (a, b, row) of one row or (A, B, C, D), where C and D have
        no rows.
    sets : the same for `formulations.SETS`, one or several
    lam : float
        Multiplier of the loss, beside 1/2 of the squared errors summed over the samples: (3) of the
        paper with lam1 = 1 / (2 lam).
    fit : str or Fit
        What the errors of the states cost, with the factor 1/2: a name in `formulations.FITS` or an
        instance; "huber", "absolute" and "quantile" hold the states of all samples in memory, in
        the units of `rescale`. Default: least squares, on moments.
    backend : str
        "auto" (MOSEK, else Clarabel), or the name of a solver that CVXPY has.
    tol : float
        Asked of the backend; a row is certified at max(tol, 1e-7).
    n_jobs : int, optional
        Processes, as `cimf.solve_cvxpy`.
    refit, output_inputs, allow_ill_posed, keep_going
        As `BallOptions`.

    Raises
    ------
    InputError
        Unknown names, what is no loss or set, lam negative or not finite; as `BallOptions`.
    BackendError
        The named backend does not work here.
    """

    loss: Any = "zero"
    sets: Any = ()
    lam: float = 1.0
    fit: Any = "least-squares"
    backend: str = "auto"

    no_ball: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise UnknownNameError("loss", self.loss, [*_OTHERS, *LOSSES])
        if not (isinstance(self.lam, Real) and 0.0 <= float(self.lam) < np.inf):
            raise InputError(f"lam must be a number >= 0, got {self.lam!r}", options=["lam"])
        if self.backend != "auto":
            candidates(self.backend)
        super().__post_init__()
        object.__setattr__(self, "lam", float(self.lam))
        object.__setattr__(self, "fit", as_fit(self.fit))
        if isinstance(self.fit, LogisticFit | SoftmaxFit):
            raise InputError(
                "the states are no labels: fit 'huber', 'absolute' or 'quantile'", options=["fit"]
            )
        object.__setattr__(self, "loss", as_loss(self.loss))
        several = isinstance(self.sets, Sequence) and not isinstance(self.sets, str)
        sets = self.sets if several else (self.sets,)
        object.__setattr__(self, "sets", tuple(as_set(given) for given in sets))

    @property
    def name(self) -> str:
        """The loss in words, such as "L1 + mine"."""
        return _name(self.loss)

    @property
    def set_names(self) -> list[str]:
        """The sets in words."""
        return [_name(s) for s in self.sets]

    @property
    def decisive(self) -> dict[str, Any]:
        """What can change a number, terms by what they print as."""
        found = {**super().decisive, "loss": _text(self.loss), "fit": repr(self.fit)}
        if self.squares:
            del found["fit"]
        return {**found, "sets": [_text(s) for s in self.sets]}

    @property
    def squares(self) -> bool:
        """Whether the fit is least squares, which needs moments alone."""
        return isinstance(self.fit, SquaredFit)


def _name(term: Loss | ConstraintSet) -> str:
    return term.name.removeprefix(f"{term.kind} ")


def _text(term: Loss | ConstraintSet) -> str:
    """Return the term with its numbers where it is a record, else its name."""
    return repr(term) if hasattr(term, "__dataclass_fields__") else _name(term)
