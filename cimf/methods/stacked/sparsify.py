"""From a trained network to a certified sparse implicit model: the paper's Algorithm 2.

For every state i, in units x~ = x / s that make the network itself feasible,

    minimise 1/2 ||z~_i - A_i X~ - B_i U||^2   subject to   sum_j |A_ij| + sum_k |B_ik| <= kappa

over the columns that the row design allows, the bias left free; then (C, D) by least squares,
problem (5). All rows share one Gram matrix, and every row carries a certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import CertificateError, InputError, UnknownNameError, warn_outside
from cimf.judge import Solution
from cimf.methods.base import as_record
from cimf.methods.stacked.assemble import Rows, Sparsified, assembled, network_notes
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.designs import DESIGNS, column_weights
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.output_rows import Outputs, with_outputs
from cimf.methods.stacked.path_options import PathOptions, check_design, check_path
from cimf.methods.stacked.sensitivity_model import least_sensitive
from cimf.methods.stacked.sensitivity_options import SensitivityOptions, check_budget
from cimf.methods.stacked.tie_break import own_rows, prefer_own_rows
from cimf.solve import solve_path
from cimf.solve.conic.cvxpy_rows import solve_path_cvxpy
from cimf.statistics import Gram

# What `sparsify` takes beside the options.
_BESIDE = ("kappa", "design", "rescale", "loss", "test")


def sparsify(
    net: Any,
    batches: Iterable[Any],
    kappa: float | None = 0.5,
    design: str = "full",
    rescale: bool = True,
    *,
    loss: str | None = None,
    test: Iterable[Any] | None = None,
    **options: Any,
) -> Sparsified:
    """Return the certified sparse implicit model of a trained network at one kappa.

    The samples stream: memory holds their inputs, in their own dtype, and the moments of the
    states, but never the states of more than one chunk of samples (0.25 GB).

    Parameters
    ----------
    net : torch.nn.Module or ImplicitModel
        A trained network whose nonlinearities are elementwise; or an implicit teacher, whose
        states are its equilibria.
    batches : iterable
        Calibration samples: input tensors, or (input, label) pairs whose labels are ignored.
    kappa : float
        Bound on the l1 norm of every row of (A, B), the bias left out, in rescaled units. With
        loss "sensitivity": the share of the network's sensitivity that the model may have.
    design : str
        A key of `cimf.methods.stacked.designs.DESIGNS`: "full", "no-self-loop", "causal" or
        "predecessors".
    rescale : bool
        Measure every state in units in which the network itself is feasible at 0.99 (Theorem 8),
        so that the ball does not forbid the network. The model comes back in the network's units.
    loss : str, optional
        None: the rows match the states inside the ball. "sensitivity": they match states and
        outputs, each by its effect on the outputs, with the total sensitivity 1' S u bounded, S the
        bound |dY| <= S |dU| (see `cimf.methods.stacked.least_sensitivity`); units play no part.
    test : iterable, optional
        Held-out batches; (input, integer label) pairs give accuracies.
    **options
        Attributes of `PathOptions`; of `SensitivityOptions` with loss "sensitivity".

    Returns
    -------
    Sparsified
        ``.model`` and ``.report``.

    Raises
    ------
    InputError
        An unknown keyword; several kappas.
    CimfError
        As `PathOptions`, `Reference.capture` and `sparsify_path`.
    """
    check_design(design)
    if loss is not None:
        if loss != "sensitivity":
            raise UnknownNameError("loss", loss, ["sensitivity"])
        how = as_record(SensitivityOptions, options, "option", _BESIDE)
        budget = check_budget(kappa, how)
        return least_sensitive(Reference.capture(net, batches, test), budget, design, how)
    if not isinstance(kappa, Real):
        raise InputError(
            f"kappa must be one number, got {kappa!r}; several share one pass over the rows: "
            "cimf.sparsify_path(Reference.capture(net, batches, test), [0.1, 0.5])"
        )
    checked = as_record(PathOptions, options, "option", _BESIDE)
    check_path([float(kappa)], design, checked)
    reference = Reference.capture(net, batches, test)
    try:
        return sparsify_path(reference, [float(kappa)], design, rescale, checked)[0]
    except CertificateError as error:
        error.result = error.result[0]
        raise


def sparsify_path(
    reference: Reference,
    kappas: Sequence[float],
    design: str = "full",
    rescale: bool = True,
    options: PathOptions | None = None,
    *,
    moments: Moments | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Sparsified, ...]:
    """Return one certified sparse implicit model per kappa, from one pass over the rows.

    Parameters
    ----------
    reference : Reference
        The captured network, ``Reference.capture(net, batches, test)``.
    kappas, design, rescale
        As `sparsify`.
    options : PathOptions, optional
    moments : Moments, optional
        What the rows are solved on. Default: the moments of the calibration samples of
        `reference`, to which (C, D) are fitted in any case.
    progress
        As `cimf.solve_path`.

    Raises
    ------
    InputError
        An unknown design; kappa negative, NaN, infinite or given twice; kappa > 1 with feedback
        unless allowed; moments of another network or in other units; a network that was changed
        after its capture.
    CertificateError
        If a row is not certified, unless `options.keep_going`. Its `result` is the finished tuple,
        of all kappas, and its `solution` the rows of the kappa that failed.
    """
    results = tuple(
        iter_path(reference, kappas, design, rescale, options, moments=moments, progress=progress)
    )
    if not (options or PathOptions()).keep_going:
        raise_if_failed(results)
    return results


def iter_path(
    reference: Reference,
    kappas: Sequence[float],
    design: str,
    rescale: bool,
    options: PathOptions | None = None,
    *,
    moments: Moments | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Sparsified]:
    """Yield the models of `sparsify_path` as they are done, certified or not; as there else."""
    options = options or PathOptions()
    levels = check_path(kappas, design, options)
    reference.check_unchanged()
    problem = _RowProblems.of(reference, design, rescale, moments)
    solutions = problem.solve(levels, options, progress)
    for kappa, solution in zip(levels, solutions, strict=True):
        yield problem.sparsified(kappa, solution, options)


def raise_if_failed(results: Sequence[Sparsified]) -> None:
    """Raise for the first kappa with a row that is not certified; the error carries all results."""
    for found in results:
        try:
            found.report.solution.raise_if_failed()
        except CertificateError as error:
            told = CertificateError(
                f"kappa = {found.report.kappa:g}: {error}. Nothing is lost: `result` of this error "
                "holds what was computed; keep_going=True returns it, and tol= is the tolerance"
            )
            told.solution, told.result = error.solution, tuple(results)
            raise told from None


@dataclass(frozen=True)
class _RowProblems:
    """The row problems of one network and design, at any kappa.

    Attributes
    ----------
    allowed : (n, N) bool
        Columns that each row may use.
    weights : (N,) or (n, N)
        As `column_weights`.
    own : (n, N) or None
        The network's own rows, where units make them feasible.
    notes : list of str
        What holds for every kappa.
    """

    reference: Reference
    design: str
    moments: Moments
    allowed: NDArray[np.bool_]
    weights: NDArray[np.float64]
    own: NDArray[np.float64] | None
    notes: list[str]

    @classmethod
    def of(
        cls, reference: Reference, design: str, rescale: bool, moments: Moments | None
    ) -> _RowProblems:
        reference.check_feedback(design, DESIGNS[design].feedback)
        layout, notes = reference.calibration.layout, network_notes(reference, rescale)
        rescale = rescale and bool(layout.scalable.any())
        if moments is None:
            moments = Moments.of(reference, rescale)
        scale = reference.scale if rescale else np.ones(layout.n_states)
        moments.check(reference.digest, scale)
        n_samples = moments.gram.n_samples
        if n_samples < layout.n_columns:
            notes.append(
                f"{n_samples} calibration samples for {layout.n_columns} columns: rows can fit "
                "the samples by chance; give more samples"
            )
            warn_outside(notes[-1])
        allowed = DESIGNS[design].allowed(layout)
        weights = column_weights(layout, allowed)
        own = own_rows(reference) if rescale else None
        return cls(reference, design, moments, allowed, weights, own, notes)

    def solve(
        self,
        levels: list[float],
        options: PathOptions,
        progress: Callable[[int], None] | None,
    ) -> Sequence[Solution]:
        """Return one solution per level."""
        gram, weights, tol = self.moments.gram, self.weights, options.tol
        if options.method == "cvxpy":
            return solve_path_cvxpy(
                gram, levels, weights=weights, backend=options.backend, tol=tol, progress=progress
            )
        return solve_path(
            gram, levels, weights=weights, method=options.method, tol=tol,
            n_jobs=options.n_jobs, progress=progress,
        )  # fmt: skip

    def sparsified(self, kappa: float, solution: Solution, options: PathOptions) -> Sparsified:
        """Return the model of a solution, with its report."""
        reference, gram = self.reference, self.moments.gram
        layout = reference.calibration.layout
        own_tol = None
        if self.own is not None:
            own_tol = options.tol
            solution = prefer_own_rows(solution, self.own, gram, kappa, self.weights)
        scale = self.moments.scale
        units = scale[:, None] / np.concatenate([scale, np.ones(layout.n_inputs)])
        model, wide, state_error, more = with_outputs(
            reference, solution.coef * units, options.refit, options.output_inputs, own_tol
        )
        found = Outputs(model, wide, state_error, [*self.notes, *more])
        return assembled(
            reference,
            Rows(
                self.design, self.own is not None, kappa, self.allowed, solution,
                _inactive(solution, gram, kappa),
            ),
            found,
            options.output_inputs,
        )  # fmt: skip


def _inactive(solution: Solution, gram: Gram, kappa: float) -> int:
    """Return in how many rows the ball is slack, or a larger one would gain nothing."""
    tol = solution.certificate.tol
    slack = solution.certificate.norm < kappa * (1.0 - tol)
    worthless = solution.lam * kappa <= tol * 0.5 * gram.target_sq
    return int((slack | worthless).sum()) if kappa > 0 else 0
