"""How a user's solver is called: which arrays it takes, and what came back."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.verification.graded_problem import Problem

Array = NDArray[np.float64]
Solver = Callable[..., Any]

DESIGN, GRAM = "design", "gram"
_NAMES = {
    DESIGN: ("design", "M", "m", "X", "x", "A", "data", "features", "matrix"),
    GRAM: ("gram", "G", "g", "K", "Q", "xtx", "XtX", "gram_matrix", "hessian"),
}
# How the class of a failure starts that is an exception; its name follows.
RAISES = "raises "
_STRUCTURE = ("bounded", "weights", "signs")


@dataclass(frozen=True)
class Answer:
    """What a solver returned for one problem.

    Attributes
    ----------
    coef : (N,) or None
        None where there is no vector to judge.
    failure : str
        The class of failure that needs no judging ("raises ValueError", ...), or "".
    detail : str
    seconds : float
        Wall clock of the call.
    """

    coef: Array | None
    failure: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Interface:
    """The calling convention of a solver.

    Attributes
    ----------
    solver : callable
    kind : {"design", "gram"}
        ``solver(design (m, N), target (m,), kappa)`` or ``solver(gram (N, N), corr (N,), kappa)``.
    keywords : tuple of str
        Those of "bounded", "weights", "signs" that it takes, each (N,) as in `cimf.solve_rows`.
    """

    solver: Solver
    kind: str
    keywords: tuple[str, ...]

    @classmethod
    def of(cls, solver: Solver, kind: str | None = None) -> Interface:
        """Read the convention from the names of the parameters; `kind` overrides.

        Raises
        ------
        InputError
            If it is no function of three arguments, or its first parameter says neither design
            nor gram.
        """
        try:
            parameters = list(inspect.signature(solver).parameters.values())
        except (TypeError, ValueError) as error:
            raise InputError(f"the parameters of {solver!r} cannot be read: {error}") from error
        places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(places) < 3 and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
            raise InputError(
                "a solver takes (design, target, kappa) or (gram, corr, kappa); this one takes "
                f"({', '.join(p.name for p in parameters)})"
            )
        if kind is None:
            first = places[0].name if places else ""
            found = [name for name, known in _NAMES.items() if first in known]
            if not found:
                raise InputError(
                    f"the first parameter {first!r} does not say whether the solver takes the data "
                    "or its moments: name it 'design' or 'gram', or pass interface="
                )
            kind = found[0]
        if kind not in _NAMES:
            raise InputError(f"interface must be 'design' or 'gram', got {kind!r}")
        named = {p.name for p in parameters if p not in places[:3]}
        return cls(solver, kind, tuple(name for name in _STRUCTURE if name in named))

    def missing(self, problem: Problem) -> str:
        """Return the keyword that the problem needs and the solver does not take, or ""."""
        weights = problem.weights
        if "signs" not in self.keywords and problem.signs.any():
            return "signs"
        if "weights" not in self.keywords and not np.isin(weights, (0.0, 1.0)).all():
            return "weights"
        if not {"weights", "bounded"} & set(self.keywords) and (weights == 0.0).any():
            return "bounded"
        return ""

    def call(self, problem: Problem) -> Answer:
        """Call the solver on copies of the arrays; nothing that it does ends the run."""
        if self.kind == DESIGN:
            first, second = problem.design, problem.target
        else:
            first, second = problem.gram.gram, problem.gram.corr[0]
        given = (first.copy(), second.copy())
        structure = {name: getattr(problem, name).copy() for name in self.keywords}
        start = time.perf_counter()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                value = self.solver(*given, problem.kappa, **structure)
        except (Exception, SystemExit) as error:  # whatever a user's function raises is a finding
            kind = type(error).__name__
            text = f"{kind}: {error}".splitlines()[0]
            return Answer(None, f"{RAISES}{kind}", text, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        kept = [np.array_equal(given[0], first), np.array_equal(given[1], second)]
        kept += [np.array_equal(structure[name], getattr(problem, name)) for name in structure]
        if not all(kept):
            return Answer(None, "changes its inputs", "the arrays passed in were written", seconds)
        return _read(value, problem, seconds)


def _read(value: Any, problem: Problem, seconds: float) -> Answer:
    """Turn what was returned into coefficients (N,), or say why that is not possible.

    Of (coefficients, anything else) the first part is taken.
    """
    try:
        if value is None:
            raise TypeError("nothing")
        if isinstance(value, tuple) and value and np.ndim(_plain(value[0])) > 0:
            value = value[0]
        coef = np.asarray(_plain(value))
        if coef.dtype.kind == "c":
            raise TypeError("complex numbers")
        coef = coef.astype(np.float64)
    except Exception as error:  # conversions are the user's code too: __array__, .detach()
        detail = f"returned {type(value).__name__}, no array of numbers: {error}"
        return Answer(None, "wrong shape", detail, seconds)
    m, n = problem.design.shape
    if coef.shape not in ((n,), (1, n), (n, 1)):
        if coef.shape == (m,):
            detail = f"one coefficient per sample ({m}) instead of one per column ({n})"
            return Answer(None, "transposed design", detail, seconds)
        return Answer(None, "wrong shape", f"returned shape {coef.shape}, ({n},) needed", seconds)
    if not np.isfinite(coef).all():
        detail = f"{int((~np.isfinite(coef)).sum())} of {n} coefficients are NaN or infinite"
        return Answer(None, "not finite", detail, seconds)
    return Answer(coef.reshape(n), "", "", seconds)


def _plain(value: Any) -> Any:
    """Return a tensor without its gradient and a sparse array dense; anything else as it is."""
    if hasattr(value, "detach"):
        return value.detach().cpu().double().numpy()
    return value.toarray() if hasattr(value, "toarray") else value
