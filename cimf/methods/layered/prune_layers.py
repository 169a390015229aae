"""Sparse networks by structured state matching: the layered method.

For every row i of every layer, in topological order, with the student's patches M and the
teacher's pre-activations z_i (minus what else is added to the student's),

    choose a support S_i of k_i columns, then minimise over S_i
    ||M a - z_i||^2 + d sum_j ||M_j||^2 (a_j - w_ij)^2,

w_i the network's own row. The counts k_i come from a target sparsity of the whole network. The
one-shot baselines differ in how they choose S_i and k_i, and in whether they refit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cimf.errors import InputError, UnknownNameError
from cimf.judge import Certificate
from cimf.methods.base import Outcome, Task, check_switches
from cimf.methods.layered import elimination
from cimf.methods.layered.allocation import ALLOCATIONS, Counts, given_counts
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.conjugate_gradients import fitted
from cimf.methods.layered.elimination import Groups, Matrix
from cimf.methods.layered.pattern import Pattern, pattern_counts
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.supports import (
    SUPPORTS,
    Choice,
    Convex,
    Rule,
    least_squares,
    takes_groups,
)
from cimf.methods.layered.survey import as_rows, damped_groups, dense_rows
from cimf.methods.pruning_report import LayerRecord
from cimf.network.layers import Layer, Rows
from cimf.network.patches import PatchGram


@dataclass(frozen=True, kw_only=True)
class LayeredOptions(Statistics):
    """Options of the layered method; the defaults are the most accurate that were measured.

    Attributes
    ----------
    structure : str, optional
        "channels": whole channels or neurons go, see `prune_channels`; the rest is refitted.
        "2:4", or another "N:M": of every M consecutive inputs a row reads at most N, see `Pattern`;
        layers whose inputs M does not divide stay dense, named in a warning.
    support : str or Rule
        A key of `SUPPORTS`: "auto" is "obs" where exact elimination is affordable, else "admm", as
        the report says layer by layer. Or a rule such as ``Convex("relative", 0.5)``, whose
        budget decides every row in place of a target sparsity.
    allocation : str, or counts per layer
        "output", "error" or "uniform", see `Survey.allocate`; or integer arrays (r,), one per layer
        in the order of the report, which say what every row keeps.
    swaps : bool
        Improve the supports by exact exchanges, except those of "admm".
    polish : bool
        Least squares on the support. False: the rule's own coefficients, else the network's.
    correct : bool
        Error correction: the student's states as regressors. False: the teacher's.
    keep : sequence of str
        Paths of layers that stay dense (they count in the sparsity). With a `Convex` budget, which
        decides every other row and refuses `allocation`, they are fitted by least squares, as the
        paper's (5) fits the outputs.
    progress : callable, optional
        Called with the number of layers that are done.
    """

    structure: str | None = None
    support: str | Rule = "auto"
    allocation: str | Counts = "output"
    swaps: bool = True
    polish: bool = True
    correct: bool = True
    keep: Sequence[str] = ()
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switches(self, "swaps", "polish", "correct")
        if isinstance(self.support, str) and self.support not in SUPPORTS:
            raise UnknownNameError("support", self.support, SUPPORTS)
        if isinstance(self.allocation, str) and self.allocation not in ALLOCATIONS:
            raise UnknownNameError("allocation", self.allocation, ALLOCATIONS)
        if self.budget and (not isinstance(self.allocation, str) or self.allocation != "output"):
            raise InputError("allocation is not used by a convex budget: it decides every row")
        if not isinstance(self.allocation, str) and self.keep:
            raise InputError("keep is not used by an allocation by counts: it decides every row")
        self._check_structure()

    def _check_structure(self) -> None:
        """Refuse options that a structure would not use."""
        chosen = self.allocation if isinstance(self.allocation, str) else "counts"
        if self.structure == "channels":
            if self.support != "auto" or not (self.swaps and self.polish):
                raise InputError(
                    'support, swaps and polish are not used by structure="channels": whole '
                    "channels are eliminated and the rest is refitted"
                )
            if chosen not in ("output", "error"):
                raise InputError(
                    f'structure="channels" takes allocation "output" or "error", got {chosen!r}'
                )
        elif self.pattern is not None:
            if chosen != "output":
                raise InputError(f"the pattern {self.pattern} decides every row: no allocation")
            if not takes_groups(self.rule):
                raise InputError(
                    f"the support rule {self.support!r} does not choose within groups, as the "
                    f'pattern {self.pattern} needs it: take "auto" or "magnitude"'
                )

    @property
    def pattern(self) -> Pattern | None:
        """The N:M pattern of the structure, if it is one."""
        if self.structure in (None, "channels"):
            return None
        return Pattern.parse(self.structure)

    @property
    def budget(self) -> bool:
        """Whether a convex budget decides every row, in place of a target sparsity."""
        return isinstance(self.support, Convex)

    @property
    def rule(self) -> Rule:
        """How the columns of a row are chosen."""
        return SUPPORTS[self.support] if isinstance(self.support, str) else self.support

    @property
    def rule_name(self) -> str:
        """What the report calls the rule."""
        if isinstance(self.support, str):
            return self.support
        return getattr(self.support, "__name__", type(self.support).__name__).lower()


def prune_layers(task: Task, sparsity: float | None, options: LayeredOptions) -> Outcome:
    """Return the network with sparse rows, layer by layer.

    Raises
    ------
    InputError, UnknownNameError
        A target that cannot be met.
    CaptureError
        The network cannot be matched; the message names the module.
    """
    calibration = Calibration.of(task, options.statistics)
    layers = calibration.graph.layers
    sizes = [(layer.n_rows, layer.n_columns) for layer in layers]
    if options.pattern is not None:
        return solve_pattern(calibration, options.pattern, options)
    if sparsity is None:  # a convex budget: its rule does not look at the counts
        calibration.named(options.keep)
        counts = [np.full(r, n) for r, n in sizes]
    elif isinstance(options.allocation, str):
        counts = calibration.counts(sparsity, options.allocation, options.keep)
    else:
        counts = given_counts(options.allocation, sizes)
    outcome = solve_layers(calibration, counts, options)
    if options.allocation == "output" and sparsity is not None:
        outcome = replace(outcome, warnings=(*outcome.warnings, *calibration.survey.notes))
    return outcome


def solve_pattern(calibration: Calibration, pattern: Pattern, options: LayeredOptions) -> Outcome:
    """Return the network whose rows keep a pattern.

    Raises
    ------
    InputError, UnknownNameError
        No layer takes the pattern, an unknown path in `keep`.
    """
    layers = calibration.graph.layers
    calibration.named(options.keep)
    groups = pattern.by_layer(layers, options.keep)
    outcome = solve_layers(calibration, pattern_counts(layers, groups), options, groups)
    left = pattern.left_dense(layers, options.keep)
    return replace(outcome, warnings=(*outcome.warnings, *left))


def solve_layers(
    calibration: Calibration,
    counts: Sequence[NDArray[Any]],
    options: LayeredOptions,
    groups: Mapping[str, Groups] | None = None,
) -> Outcome:
    """Return the network whose rows keep so many weights.

    Parameters
    ----------
    counts : list of (r,) int64 or (r, N') bool
        One array per layer of the graph: how many weights every row keeps, or which columns (a row
        that keeps none is zero).
    groups : mapping of str to Groups, optional
        By layer: columns that share a budget, where there are any.
    """
    graph = calibration.graph
    budget = {layer.path: count for layer, count in zip(graph.layers, counts, strict=True)}
    rows: dict[str, tuple[Tensor, Tensor | None]] = {}
    records: list[LayerRecord] = []

    def solve(layer: Layer, statistics: PatchGram) -> tuple[Tensor, Tensor | None]:
        found = None if groups is None else groups.get(layer.path)
        coef, record = _solve_layer(layer, statistics, budget[layer.path], found, options)
        records.append(record)
        if options.progress is not None:
            options.progress(len(records))
        rows[layer.path] = as_rows(coef, int(layer.has_bias))
        return rows[layer.path]

    mismatch = propagate(
        graph,
        calibration.inputs,
        solve,
        options,
        correct=options.correct,
        counting=calibration.counting,
    )
    return outcome_of(calibration, rows, records, mismatch)


def outcome_of(
    calibration: Calibration,
    rows: Rows,
    records: Sequence[LayerRecord],
    mismatch: Mapping[str, float],
) -> Outcome:
    """Return the network with its rows, checked, and what is known of its layers."""
    network = calibration.graph.export(rows)
    calibration.check_export(network, rows)
    layers = tuple(replace(record, mismatch=mismatch[record.path]) for record in records)
    return Outcome(network, layers, calibration.notes, tuple(_few_samples(layers)))


def _few_samples(records: Sequence[LayerRecord]) -> list[str]:
    """Name the layers that have more columns than samples."""
    few = [record.path for record in records if record.samples < record.columns]
    if not few:
        return []
    return [
        f"fewer calibration samples (times positions) than columns in {', '.join(few)}: these rows "
        "can fit the samples by chance; give more samples, or more damping"
    ]


def _solve_layer(
    layer: Layer,
    statistics: PatchGram,
    counts: NDArray[Any],
    groups: Groups | None,
    options: LayeredOptions,
) -> tuple[Matrix, LayerRecord]:
    """Solve the rows of one layer, group by group; return them with the bias, and the record."""
    free, n_jobs = int(layer.has_bias), options.n_jobs
    dense = dense_rows(layer)
    size = layer.n_rows // layer.groups
    coef = np.empty_like(dense)
    choices: list[Choice] = []
    held = options.budget and layer.path in options.keep
    rule: Any = least_squares if held else options.rule
    if groups is not None:
        rule = partial(rule, groups=groups)
    exchanges, gaps = np.zeros(layer.n_rows, np.int64), np.full(layer.n_rows, np.nan)
    for g, problem in enumerate(damped_groups(layer, statistics, options.damping)):
        part = slice(g * size, (g + 1) * size)
        given = counts.dtype == bool
        choice = (
            Choice(counts[part], rule="given")
            if given
            else rule(problem, dense[part], counts[part], free, n_jobs)
        )
        if not isinstance(choice, Choice):
            raise InputError(
                f"the support rule returned a {type(choice).__name__}; a Choice is needed "
                "(cimf.methods.layered.supports)"
            )
        choices.append(choice)
        mask = choice.mask
        by_admm = choice.rule == "admm"
        if options.swaps and not given and not by_admm:
            mask, exchanges[part] = elimination.swapped(
                problem, mask, free, n_jobs=n_jobs, groups=groups
            )
        if options.polish:
            fit = partial(fitted, n_free=free) if by_admm else elimination.polished
            coef[part], gaps[part] = fit(problem, mask, n_jobs=n_jobs)
        else:
            own = dense[part] if choice.coef is None else choice.coef
            coef[part] = np.where(mask, own, 0.0)
    certificates = [choice.solution.certificate for choice in choices if choice.solution]
    return coef, layer_record(
        layer, statistics.n_samples, coef, certificates, exchanges, gaps,
        support=choices[0].rule or options.rule_name,
    )  # fmt: skip


def layer_record(
    layer: Layer,
    samples: int,
    coef: Matrix,
    certificates: Sequence[Certificate],
    exchanges: Any = 0,
    polish_gaps: Any = np.nan,
    *,
    support: str,
) -> LayerRecord:
    """Return the record of a layer's rows (r, N'), without its mismatch."""
    size = layer.n_rows // layer.groups
    weight = coef[:, : layer.n_columns]
    kernel = layer.n_columns // (layer.module.weight.shape[1] or 1)
    # A row holds channel after channel, each with its kernel: a channel is read where any row of
    # its group has a weight at any of the kernel's places.
    read = (weight != 0).reshape(layer.groups, size, -1, kernel).any(axis=(1, 3))
    return LayerRecord(
        path=layer.path,
        kind=type(layer.module).__name__,
        rows=layer.n_rows,
        columns=layer.n_columns,
        samples=samples,
        kept=int(np.count_nonzero(weight)),
        support=support,
        emptied=tuple(int(i) for i in np.flatnonzero(~weight.any(axis=1))),
        unread=int((~read).sum()),
        exchanges=int(np.sum(exchanges)),
        certified=sum(int(certificate.passed.sum()) for certificate in certificates),
        solved=sum(certificate.passed.size for certificate in certificates),
        worst_gap=float(np.fmax.reduce([c.worst_gap for c in certificates], initial=np.nan)),
        polish_gap=float(np.fmax.reduce(np.ravel(polish_gaps), initial=np.nan)),
    )
