"""From a trained network to a certified sparse implicit model: the paper's Algorithm 2.

For every state i, in units x~ = x / s that make the network itself feasible,

    minimise 1/2 ||z~_i - A_i X~ - B_i U||^2   subject to   sum_j |A_ij| + sum_k |B_ik| <= kappa

over the columns that the row design allows, the bias left free; then (C, D) by least squares,
problem (5). All rows share one Gram matrix, and every row carries a certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress, repeat
from numbers import Real
from typing import Any

from cimf.errors import CertificateError, InputError
from cimf.judge import Solution
from cimf.methods.base import as_record
from cimf.methods.stacked.assemble import Sparsified
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.loss_options import LossOptions
from cimf.methods.stacked.loss_rows import loss_models
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.row_options import BallOptions, RowOptions, check_design, check_rescale
from cimf.methods.stacked.row_problems import RowProblems
from cimf.methods.stacked.sensitivity_model import sensitivity_models
from cimf.methods.stacked.sensitivity_options import SensitivityOptions
from cimf.methods.stacked.tie_break import own_rows, prefer_own_rows
from cimf.solve import solve_path
from cimf.solve.conic.cvxpy_rows import solve_path_cvxpy
from cimf.statistics import Gram

# What `sparsify` takes beside the options.
_BESIDE = ("kappa", "design", "rescale", "loss", "sets", "test")


def sparsify(
    net: Any,
    batches: Iterable[Any],
    kappa: float | None = 0.5,
    design: str = "full",
    rescale: Rescale = True,
    *,
    loss: Any = None,
    sets: Any = (),
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
    kappa : float or None
        Bound on the l1 norm of every row of (A, B), the bias left out, in rescaled units. With
        loss "sensitivity": the share of the network's sensitivity that the model may have. None:
        no ball, or budget, where a loss stands in its place.
    design : str
        A key of `cimf.methods.stacked.designs.DESIGNS`: "full", "no-self-loop", "causal" or
        "predecessors".
    rescale : bool or "layers"
        Measure every state in units in which the network itself is feasible at 0.99 (Theorem 8),
        so that the ball does not forbid the network; "layers": one unit for all states of a layer.
        The model comes back in the network's units.
    loss : str, Loss or function, optional
        None: the rows match the states inside the ball. "sensitivity": they match states and
        outputs, each by its effect on the outputs, with the total sensitivity 1' S u bounded, S the
        bound |dY| <= S |dU| (see `cimf.methods.stacked.least_sensitivity`); units play no part.
        Anything else, as `formulations` takes it: the rows minimise 1/2 of the squared errors of
        the (rescaled) states, summed over the samples, plus ``lam`` (default 1) times the loss of
        (A, B), inside the ball (see `LossOptions` and `cimf.methods.stacked.loss_rows`). With
        ``fit="huber"``, "absolute" or "quantile" the errors cost that instead of their squares.
    sets : as in `formulations`, optional
        Convex sets, one or several, that the rows of (A, B) are in as well.
    test : iterable, optional
        Held-out batches; (input, integer label) pairs give accuracies.
    **options
        Attributes of `PathOptions`; of `SensitivityOptions` with loss "sensitivity"; of
        `LossOptions` (lam, fit, backend, ...) with another loss, with sets or a fit.

    Returns
    -------
    Sparsified
        ``.model`` and ``.report``.

    Raises
    ------
    InputError
        An unknown keyword; several kappas.
    CimfError
        As the options, `Reference.capture` and `sparsify_path`.
    """
    check_design(design)
    check_rescale(rescale)
    how = row_options(loss, sets, options)
    if isinstance(how, BallOptions) and not (
        isinstance(kappa, Real) or (kappa is None and how.no_ball)
    ):
        raise InputError(
            f"kappa must be one number, got {kappa!r}; several share one pass over the rows: "
            "cimf.sparsify_path(Reference.capture(net, batches, test), [0.1, 0.5])"
        )
    how.levels([kappa], design)
    reference = Reference.capture(net, batches, test)
    try:
        return sparsify_path(reference, [kappa], design, rescale, how)[0]
    except CertificateError as error:
        error.result = error.result[0]
        raise


def row_options(loss: Any, sets: Any, options: Mapping[str, Any]) -> RowOptions:
    """Return the options of `sparsify` as the record of the loss.

    Raises
    ------
    InputError, UnknownNameError
        As `PathOptions`, `SensitivityOptions` and `LossOptions`; sets beside the sensitivity.
    """
    no_sets = isinstance(sets, Sequence) and not sets
    if isinstance(loss, str) and loss == "sensitivity":
        if not no_sets:
            raise InputError("the loss 'sensitivity' takes no sets")
        return as_record(SensitivityOptions, options, "option", _BESIDE)
    if loss is None and no_sets and "fit" not in options:
        if "lam" in options:
            raise InputError(
                "lam is the multiplier of a loss: give one, for example 'l1'",
                options=["loss", "lam"],
            )
        return as_record(PathOptions, options, "option", _BESIDE)
    given = {"loss": "zero" if loss is None else loss, "sets": sets}
    return as_record(LossOptions, {**options, **given}, "option", _BESIDE)


def sparsify_path(
    reference: Reference,
    kappas: Sequence[float | None],
    design: str = "full",
    rescale: Rescale = True,
    options: RowOptions | None = None,
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
    options : PathOptions, LossOptions or SensitivityOptions, optional
        Their class says what the rows minimise. Default: `PathOptions`, the plain ball.
    moments : Moments, optional
        What the rows are solved on. Default: the moments of the calibration samples of
        `reference`, to which (C, D) are fitted in any case. Not for the sensitivity.
    progress
        As `cimf.solve_path`.

    Raises
    ------
    InputError
        As `levels` of the options (an unknown design, an impossible kappa); moments of another
        network or in other units; a network that was changed after its capture.
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
    kappas: Sequence[float | None],
    design: str,
    rescale: Rescale,
    options: RowOptions | None = None,
    *,
    moments: Moments | None = None,
    progress: Callable[[int], None] | None = None,
    wanted: Iterable[bool] = repeat(True),
) -> Iterator[Sparsified]:
    """Yield the models of `sparsify_path` as they are done, certified or not; as there else.

    Parameters
    ----------
    wanted : iterable of bool
        Which kappas have a model to be yielded. The others take part in the pass that all share:
        without them its rounding, and so the last bits of the rows, would be another.
    """
    options = options or PathOptions()
    levels = options.levels(kappas, design)
    reference.check_unchanged()
    models = _MODELS[type(options)]
    yield from models(reference, levels, wanted, design, rescale, options, moments, progress)


def raise_if_failed(results: Sequence[Sparsified]) -> None:
    """Raise for the first kappa with a row that is not certified; the error carries all results."""
    for found in results:
        try:
            found.report.solution.raise_if_failed()
        except CertificateError as error:
            told = CertificateError(
                f"kappa = {found.report.kappa:g}: {error}. Nothing is lost: `result` of this error "
                "holds what was computed; keep_going=True returns it, and tol= is the tolerance",
                options=["keep_going", "tol"],
            )
            told.solution, told.result = error.solution, tuple(results)
            raise told from None


def _ball_models(
    reference: Reference,
    levels: list[float],
    wanted: Iterable[bool],
    design: str,
    rescale: Rescale,
    options: PathOptions,
    moments: Moments | None,
    progress: Callable[[int], None] | None,
) -> Iterator[Sparsified]:
    """Yield the models of the plain ball, from one pass over the rows for all kappas."""
    problem = RowProblems.of(reference, design, rescale, moments)
    own = own_rows(reference, problem.moments.scale) if problem.rescaled else None
    gram, weights, tol = problem.moments.gram, problem.weights, options.tol
    solutions: Sequence[Solution]
    if options.method == "cvxpy":
        solutions = solve_path_cvxpy(
            gram, levels, weights=weights, backend=options.backend, tol=tol, progress=progress
        )
    else:
        solutions = solve_path(
            gram, levels, weights=weights, method=options.method, tol=tol,
            n_jobs=options.n_jobs, progress=progress,
        )  # fmt: skip
    for kappa, solution in compress(zip(levels, solutions, strict=True), wanted):
        if own is not None:
            solution = prefer_own_rows(solution, own, gram, kappa, weights)
        yield problem.sparsified(kappa, solution, options, _inactive(solution, gram, kappa))


def _inactive(solution: Solution, gram: Gram, kappa: float) -> int:
    """Return in how many rows the ball is slack, or a larger one would gain nothing."""
    tol = solution.certificate.tol
    slack = solution.certificate.norm < kappa * (1.0 - tol)
    worthless = solution.lam * kappa <= tol * 0.5 * gram.target_sq
    return int((slack | worthless).sum()) if kappa > 0 else 0


# By the class of the options: (reference, kappas, wanted, design, rescale, options, moments,
# progress) -> one model per wanted kappa. A new way to find the rows is options with `levels`, and
# a line.
_MODELS: dict[type[RowOptions], Callable[..., Iterator[Sparsified]]] = {
    PathOptions: _ball_models,
    SensitivityOptions: sensitivity_models,
    LossOptions: loss_models,
}
