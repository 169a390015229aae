"""From a trained network to a certified sparse implicit model: the paper's Algorithm 2.

For every state i, in units x~ = x / s that make the network itself feasible,

    minimise 1/2 ||z~_i - A_i X~ - B_i U||^2   subject to   sum_j |A_ij| + sum_k |B_ik| <= kappa

over the columns that the row design allows, the bias left free; then (C, D) by least squares,
problem (5). All rows share one Gram matrix, and every row carries a certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from cimf.errors import InputError, UnknownNameError, warn_outside
from cimf.judge import Solution, count_nonzeros
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.designs import DESIGNS, row_problems
from cimf.methods.stacked.model_report import Report, block_errors, evaluate
from cimf.methods.stacked.output_rows import output_columns, with_outputs
from cimf.methods.stacked.tie_break import own_rows, prefer_own_rows
from cimf.model import ImplicitModel
from cimf.solve import solve_path
from cimf.solve.conic.backends import backend_named, candidates
from cimf.solve.conic.cvxpy_rows import solve_path_cvxpy
from cimf.solve.rows import METHODS, check_limits
from cimf.statistics import Gram
from formulations.columns import as_float64

_UNSHARED = (
    "the model has more weights than the network, because (A, B) repeats the shared weights of its "
    "convolutions: cimf.prune keeps the sharing"
)


@dataclass(frozen=True)
class PathOptions:
    """How the rows of a path are solved and its models made.

    Attributes
    ----------
    method : str
        As `cimf.solve_path`; or "cvxpy", which solves every row by `backend`.
    backend : str
        "auto", "mosek" or "clarabel", for method "cvxpy".
    tol : float
        Relative gap at which a row is certified.
    refit : bool
        Fit (C, D) to the states that the sparse model itself reaches on the calibration samples
        (True), or to the captured states, problem (5) literally (False).
    output_inputs : bool
        Let D use all inputs. By default D holds only the bias, so that no accuracy comes from a
        linear map of the input.
    allow_ill_posed : bool
        Permit kappa > 1 where the design has feedback: well-posedness is then not implied.
    keep_going : bool
        Report rows whose certificate fails instead of raising.
    n_jobs : int, optional
        As `cimf.solve_path`.
    """

    method: str = "auto"
    backend: str = "auto"
    tol: float = 1e-9
    refit: bool = True
    output_inputs: bool = False
    allow_ill_posed: bool = False
    keep_going: bool = False
    n_jobs: int | None = None

    def check(self, kappas: Sequence[float], design: str) -> list[float]:
        """Refuse what no network could make right, before any work; return the kappas.

        Raises
        ------
        InputError, BackendError
            As `sparsify_path`.
        """
        if design == "layered":
            raise InputError(
                'design "layered" is a method of cimf.prune: cimf.prune(net, batches, sparsity=0.8)'
            )
        if design not in DESIGNS:
            raise UnknownNameError("design", design, DESIGNS)
        _check_solver(self.method, self.backend)
        check_limits(self.tol, self.n_jobs)
        return _check_kappas(kappas, design, self.allow_ill_posed)

    @property
    def decisive(self) -> dict[str, Any]:
        """What can change a number: all but the number of threads."""
        return {name: value for name, value in asdict(self).items() if name != "n_jobs"}


DEFAULTS = PathOptions()


@dataclass(frozen=True)
class Sparsified:
    """A sparse implicit model, in the network's units, and what is known about it."""

    model: ImplicitModel
    report: Report


def sparsify(
    net: Any,
    batches: Iterable[Any],
    kappa: float | None = None,
    design: str = "full",
    rescale: bool | None = None,
    *,
    test: Iterable[Any] | None = None,
    **options: Any,
) -> Sparsified:
    """Return the certified sparse implicit model of a trained network at one kappa.

    Parameters
    ----------
    net : torch.nn.Module
        A trained network whose nonlinearities are elementwise.
    batches : iterable
        Calibration samples: input tensors, or (input, label) pairs whose labels are ignored.
    kappa : float
        Bound on the l1 norm of every row of (A, B), the bias left out, in rescaled units; one
        number, several go to `sparsify_path`. Default: 0.5.
    design : str
        A key of `cimf.methods.stacked.designs.DESIGNS`: "full", "no-self-loop" or "causal".
    rescale : bool
        Measure every state in units in which the network itself is feasible at 0.99 (Theorem 8),
        so that the ball does not forbid the network. The model comes back in the network's units.
        Default: True.
    test : iterable, optional
        Held-out batches; (input, integer label) pairs give accuracies.
    **options
        The fields of `PathOptions`, and `progress`.

    Returns
    -------
    Sparsified
        ``.model`` and ``.report``.

    Raises
    ------
    InputError
        An unknown keyword, or one that the design does not use.
    CimfError
        As `Reference.capture` and `sparsify_path`.
    """
    progress = options.pop("progress", None)
    chosen = _path_options("cimf.sparsify", options, {"kappa", "rescale", "test", "progress"})
    kappa, rescale = 0.5 if kappa is None else kappa, rescale is None or rescale
    if not isinstance(kappa, Real):
        raise InputError(
            f"kappa must be one number, got {kappa!r}; several share one pass over the rows: "
            "cimf.sparsify_path(Reference.capture(net, batches, test), [0.1, 0.5])"
        )
    levels = chosen.check([float(kappa)], design)
    reference = Reference.capture(net, batches, test)
    return next(iter_path(reference, levels, design, rescale, chosen, progress))


def sparsify_path(
    reference: Reference,
    kappas: Sequence[float],
    design: str = "full",
    rescale: bool = True,
    *,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> tuple[Sparsified, ...]:
    """Return one certified sparse implicit model per kappa, from one pass over the rows.

    Parameters
    ----------
    reference : Reference
        The captured network, ``Reference.capture(net, batches, test)``.
    kappas, design, rescale
        As `sparsify`.
    progress
        As `cimf.solve_path`.
    **options
        The fields of `PathOptions`.

    Raises
    ------
    InputError
        Unknown names; a backend without method "cvxpy"; kappa negative, NaN, infinite or given
        twice; kappa > 1 with feedback unless allowed.
    BackendError
        The named backend does not work here.
    CertificateError
        If a row is not certified, unless `keep_going`.
    """
    chosen = _path_options("cimf.sparsify_path", options, {"progress"})
    levels = chosen.check(kappas, design)
    return tuple(iter_path(reference, levels, design, rescale, chosen, progress))


def iter_path(
    reference: Reference,
    levels: Sequence[float],
    design: str,
    rescale: bool,
    options: PathOptions,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Sparsified]:
    """Yield the models of `sparsify_path` as they are done; the arguments have been checked."""
    states, notes = reference.calibration, _notes(reference, rescale)
    if states.n_samples < states.n_columns:
        notes.append(
            f"{states.n_samples} calibration samples for {states.n_columns} columns: rows can fit "
            "the samples by chance; give more samples"
        )
        warn_outside(notes[-1])
    rescale = rescale and bool(states.scalable.any())
    scale = reference.scale if rescale else np.ones(states.n_states)
    allowed = DESIGNS[design].allowed(states)
    gram, weights = row_problems(states.scaled(scale), allowed)
    tol = options.tol
    if options.method == "cvxpy":
        solutions: Sequence[Solution] = solve_path_cvxpy(
            gram, levels, weights=weights, backend=options.backend, tol=tol, progress=progress
        )
    else:
        solutions = solve_path(
            gram,
            levels,
            weights=weights,
            method=options.method,
            tol=tol,
            n_jobs=options.n_jobs,
            progress=progress,
        )
    own = own_rows(reference) if rescale else None
    output_pattern = np.broadcast_to(
        output_columns(states, options.output_inputs), (states.n_outputs, states.n_columns)
    )
    units = scale[:, None] / np.concatenate([scale, np.ones(states.n_inputs)])
    for kappa, solution in zip(levels, solutions, strict=True):
        if not options.keep_going:
            solution.raise_if_failed()
        if own is not None:
            solution = prefer_own_rows(solution, own, gram, kappa, weights)
        model, wide, more = with_outputs(
            reference,
            solution.coef * units,
            options.refit,
            options.output_inputs,
            tol if rescale else None,
        )
        nonzeros = count_nonzeros(
            np.hstack([model.A, model.B]),
            np.hstack([model.C, model.D]),
            bias=states.bias,
            blocks=[(block.name, block.start, block.stop) for block in states.blocks],
            admissible=(allowed, output_pattern),
            network_weights=reference.network_weights,
            network_parameters=reference.network_parameters,
        )
        if reference.convolutional and nonzeros.sparsity["network_weights"] < -1.0:
            more.append(_UNSHARED)
        report = Report(
            design=design,
            rescale=rescale,
            kappa=kappa,
            solution=solution,
            inactive=_inactive(solution, gram, kappa),
            nonzeros=nonzeros,
            wellposedness=model.wellposedness(),
            state_error=block_errors(
                states.blocks, states.Z, model.A @ states.X + model.B @ states.U
            ),
            evaluation=evaluate(model, reference, wide),
            dense_accuracy=reference.dense_accuracy,
            control_accuracy=reference.control_accuracy,
            notes=(*notes, *more),
        )
        yield Sparsified(model, report)


def _path_options(caller: str, options: Mapping[str, Any], own: set[str]) -> PathOptions:
    """Return the record; `own` are the caller's keywords that are no fields of it."""
    known = {field.name for field in fields(PathOptions)}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"{caller} keyword", name, own | known)
    return PathOptions(**options)


def _check_solver(method: str, backend: str) -> None:
    """Refuse unknown names, and a backend that the method would not use or that does not work."""
    known = ["auto", *METHODS, "cvxpy"]
    if method not in known:
        raise UnknownNameError("method", method, known)
    if backend == "auto":
        return
    backend_named(backend)
    if method != "cvxpy":
        raise InputError("backend is used by method='cvxpy' only", options=["backend", "method"])
    candidates(backend)


def _inactive(solution: Solution, gram: Gram, kappa: float) -> int:
    """Return in how many rows the ball is slack, or a larger one would gain nothing."""
    tol = solution.certificate.tol
    slack = solution.certificate.norm < kappa * (1.0 - tol)
    worthless = solution.lam * kappa <= tol * 0.5 * gram.target_sq
    return int((slack | worthless).sum()) if kappa > 0 else 0


def _notes(reference: Reference, rescale: bool) -> list[str]:
    """Return what a reader must know about the network, whatever the kappa."""
    notes = []
    scalable = reference.calibration.scalable
    if reference.half_precision:
        notes.append(
            f"weights were {reference.half_precision}: captured in float64 from the rounded weights"
        )
    if rescale and not scalable.any():
        notes.append(
            "no state was rescaled: no activation of the network is positively homogeneous"
        )
    elif rescale and not scalable.all():
        notes.append(
            f"{np.count_nonzero(~scalable)} states keep their units: their activation is not "
            "positively homogeneous"
        )
    return notes


def _check_kappas(kappas: Sequence[float], design: str, allow_ill_posed: bool) -> list[float]:
    """Return the kappas as floats, or say which one cannot be used and why."""
    levels = as_float64("kappas", kappas, 1)
    if not levels.size or (levels < 0).any():
        raise InputError(f"kappas must be one or more numbers >= 0, got {list(kappas)}")
    if len(np.unique(levels)) < len(levels):
        raise InputError(f"every kappa may be given once, got {list(kappas)}")
    if levels.max() > 1 and DESIGNS[design].feedback and not allow_ill_posed:
        raise InputError(
            f"kappa = {levels.max():g} with design {design!r}: above 1 the bound does not imply a "
            "unique equilibrium. Use kappa <= 1, or the design 'causal' (well-posed for any "
            "kappa), or allow_ill_posed=True and read the report",
            options=["allow_ill_posed"],
        )
    return levels.tolist()
