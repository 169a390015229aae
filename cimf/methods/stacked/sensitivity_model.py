"""From the rows of least sensitivity to a model with its report, within the budget to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError, warn_outside
from cimf.judge import Solution, certify
from cimf.methods.stacked.assemble import Rows, Sparsified, assembled, network_notes
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.found import FoundSensitivity
from cimf.methods.stacked.gains import Motion
from cimf.methods.stacked.least_sensitivity import Fitted, SensitivityProblem
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.output_rows import Outputs, fit_problem
from cimf.methods.stacked.sensitivity_options import SensitivityOptions
from cimf.model import ImplicitModel
from cimf.statistics import Gram

Array = NDArray[np.float64]

# Steps by 4 to a lam at which the rows of (C, D) meet the budget, and halvings of the interval of
# log lam after that: to 1e-4 of lam.
_HALVINGS = 20
# Left over of a budget by a model that is warned about.
_FAR = 0.5
# A row passes at this gap, or at `tol` where that is larger, as with every other loss. Weights of
# states that hardly reach the outputs are near the rounding of the moments' gradient: 1.1e-9 for
# one of 106 rows of the digits' MLP at the budget 0.1.
_MARK = 1e-7


def sensitivity_models(
    reference: Reference,
    levels: list[float],
    wanted: Iterable[bool],
    design: str,
    rescale: Rescale,
    options: SensitivityOptions,
    moments: Moments | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Sparsified]:
    """Yield the models of the wanted budgets, shares of the network's sensitivity.

    NaN: no budget, but the multiplier `options.lam`.

    Parameters
    ----------
    rescale : bool
        Plays no part: errors are weighed by their effect on the outputs.
    reference, wanted, design, moments, progress
        As `iter_path`.

    Raises
    ------
    InputError
        As `SensitivityProblem.of`; moments, which do not have the outputs.
    """
    if moments is not None:
        raise InputError("the sensitivity needs the samples: moments of the states do not do")
    problem = SensitivityProblem.of(reference, design, options)
    for kappa in compress(levels, wanted):
        yield _least_sensitive(problem, reference, kappa, design, options)
        if progress is not None:
            progress(reference.calibration.layout.n_states)


def _least_sensitive(
    problem: SensitivityProblem,
    reference: Reference,
    kappa: float,
    design: str,
    options: SensitivityOptions,
) -> Sparsified:
    """Return the model of one budget."""
    exact = Motion.of_inputs(problem.motion.blocks, problem.motion.inputs)
    network = exact.gains(problem.start).total
    if np.isnan(kappa):
        assert options.lam is not None  # refused by `SensitivityOptions.levels`
        budget, fitted = np.inf, problem.descend(options.lam)
    else:
        # With the floors of `motion` the network is above its own sensitivity.
        budget = kappa * (network if kappa < 1.0 else problem.motion.gains(problem.start).total)
        fitted = problem.within(budget)
    layout = reference.calibration.layout
    n = layout.n_states
    notes = network_notes(reference, rescale=False)
    allowed = np.isfinite(problem.mask)  # by the design, or because the network has them
    used = np.asarray(allowed[n:].any(axis=0))
    A, B = fitted.W[:n, :n], fitted.W[:n, n:]
    parts, state_error, usable = fit_problem(
        reference.calibration, A, B, used, options.refit and fitted.lam > 0
    )
    W = fitted.W
    if options.refit and fitted.lam > 0:
        if usable < min(reference.calibration.n_samples, layout.n_columns):
            notes.append("too few samples reached an equilibrium: (C, D) fit the captured states")
        else:
            W = _refitted(problem, fitted, Gram.from_arrays(parts[0].T, parts[1].T), used, budget)
    silent = exact.gains(W).adjoint[:n] == 0
    if silent.any():
        W = W.copy()
        W[:n][silent] = 0.0
        notes.append(
            f"{int(silent.sum())} states reach no output: their rows are empty, which changes "
            "neither outputs nor sensitivity, and leaves nothing to prove of them"
        )
    model = ImplicitModel(W[:n, :n], W[:n, n:], W[n:, :n], W[n:, n:], layout.blocks, layout.bias)
    gram = problem.gram.rows(slice(0, n))
    # Of rows that are empty because nothing reads them there is nothing to prove: their weights
    # were the floors alone, and so small that rounding of the moments decided (gaps of 1e-7).
    mark = max(options.tol, _MARK)
    solved = np.where(silent[:, None], 0.0, fitted.solved[:n])
    solution = _solution(gram, fitted, solved, _silenced(fitted.slopes[:n], silent), mark)
    weights = _silenced(problem.slopes(fitted.W)[:n], silent)
    last = certify(
        gram, np.where(silent[:, None], 0.0, fitted.W[:n]), lam=fitted.lam, weights=weights,
        tol=mark,
    )  # fmt: skip
    found = FoundSensitivity(
        network=network,
        model=exact.gains(W).total,
        lam=fitted.lam,
        rounds=len(fitted.history) - 1,
        shortened=int((fitted.solved != fitted.W)[:n].any(axis=1).sum()),
        stationarity=last.worst_gap,
    )
    if np.isfinite(budget) and found.model < (1.0 - _FAR) * kappa * network:
        notes.append(
            f"the sensitivity is {found.model / network:.2g} of the network's, the budget "
            f"{kappa:g}: at a slightly smaller penalty it is above, and rows are emptied at once; "
            "give a larger budget"
        )
        warn_outside(notes[-1])
    rows = Rows(
        design,
        rescale=False,
        kappa=kappa,
        allowed=allowed[:n],
        solution=solution,
        inactive=n if fitted.lam == 0 else 0,
        loss=found,
    )
    return assembled(reference, rows, Outputs(model, None, state_error, notes), allowed[n:])


def _silenced(slopes: Array, silent: NDArray[np.bool_]) -> Array:
    """Return weights that exclude every column of the silent rows."""
    return np.where(silent[:, None], np.inf, slopes)


def _solution(gram: Gram, fitted: Fitted, coef: Array, slopes: Array, tol: float) -> Solution:
    """Return the solved rows with the certificate of the problems that they solve."""
    n = len(slopes)
    certificate = certify(gram, coef, lam=fitted.lam, weights=slopes, tol=tol)
    name = "network" if fitted.lam == 0 else "exact"
    return Solution(coef, certificate, np.full(n, name), np.zeros(n, dtype=np.int64))


def _refitted(
    problem: SensitivityProblem, fitted: Fitted, gram: Gram, used: NDArray[np.bool_], budget: float
) -> Array:
    """Return W with (C, D) fitted to the states that the model itself reaches.

    The rows of (C, D) alone: T is linear in their magnitudes. Their multiplier is lam, or what
    meets the budget where that is larger.
    """
    n = len(problem.motion.states)
    slopes = problem.slopes(fitted.W)[n:, used]

    def with_rows(lam: float) -> tuple[Array, float]:
        W = fitted.W.copy()
        W[n:] = 0.0
        W[n:, used] = problem.solve(gram, lam, slopes)
        return W, problem.motion.gains(W).total

    W, total = with_rows(fitted.lam)
    if total <= budget:
        return W
    low, high = fitted.lam, fitted.lam
    for _ in range(_HALVINGS):
        high *= 4.0
        W, total = with_rows(high)
        if total <= budget:
            break
    else:  # floors keep all of them above it, but not the rows that were fitted
        return fitted.W
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        trial, total = with_rows(middle)
        if total <= budget:
            W, high = trial, middle
        else:
            low = middle
    return W
