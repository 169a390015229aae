"""The front door: every problem of a suite is put to a solver and every answer is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cimf.errors import InputError
from cimf.verification.graded_problem import Problem
from cimf.verification.interface import Interface, Solver
from cimf.verification.scorecard import Report
from cimf.verification.suites import problems
from cimf.verification.verdict import Verdict, judge, settled


def verify(
    solver: Solver,
    suite: str | Sequence[Problem] = "default",
    *,
    interface: str | None = None,
    tol: float = 1e-6,
    exact_zeros: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Judge a solver of min 1/2 ||M a - z||^2 subject to sum_j |a_j| <= kappa.

    Parameters
    ----------
    solver : callable
        ``solver(design (m, N), target (m,), kappa)`` or ``solver(gram (N, N), corr (N,), kappa)``,
        gram = M'M and corr = M'z; returns coefficients (N,). It may take, by keyword, `bounded`,
        `weights` and `signs`, each (N,), with the meanings of `cimf.solve_rows`; problems that
        need one that it does not take are skipped. Whatever it raises is reported, not raised.
    suite : str or sequence of Problem
        "default", "degenerate", "adversarial", "states", "quick", one family, or own problems.
    interface : {"design", "gram"}, optional
        Which of the two forms. Default: read from the name of the first parameter.
    tol : float
        Objective excess (of 1/2 ||z||^2) and violation (of kappa) that pass. The ground truth
        is certified at 1e-9.
    exact_zeros : bool
        Whether an accurate answer without a single exact zero off the support fails.
    progress : callable, optional
        Called with the number of problems done.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        An unknown suite or interface, no problems, a callable whose parameters say nothing.
    CertificateError
        If the ground truth of an own problem cannot be certified.
    """
    if not tol > 0:
        raise InputError(f"tol must be positive, got {tol}")
    if isinstance(suite, str):
        name, chosen = suite, problems(suite)
    else:
        name, chosen = "own problems", list(suite)
    if not chosen:
        raise InputError("the suite holds no problems")
    called = Interface.of(solver, interface)
    # Compilation and imports are timed for nobody.
    _ = Problem("warm-up", np.eye(2), np.ones(2), 1.0).truth
    for problem in [p for p in chosen if not called.missing(p)][:1]:
        called.call(problem)
    found: list[tuple[Verdict, list[str]]] = []
    for done, problem in enumerate(chosen, start=1):
        missing = called.missing(problem)
        if missing:
            detail = f"the solver takes no {missing}"
            found.append((Verdict(problem, "skipped", detail=detail), []))
        else:
            found.append(judge(problem, called.call(problem), tol, exact_zeros))
        if progress is not None:
            progress(done)
    title = getattr(solver, "__name__", type(solver).__name__)
    return Report(title, name, called.kind, tol, settled(found))
