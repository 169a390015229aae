"""Sparse networks whose outputs move less when their inputs do, layer by layer.

For every layer, in topological order, with the student's patches M and the teacher's
pre-activations z_i (minus what else is added to the student's), its rows minimise

    F = sum_i w_i / (2 m) ||M a_i - z_i||^2 + lam T

(damped as in `cimf.methods.layered.prune_layers`), m the samples times positions, w_i the mean
squared effect of row i on the outputs, summed over the positions, so that both terms are squared
changes of the outputs. T is the total sensitivity of the whole network
(`cimf.network.magnitude`) with the rows found so far, and the network's own behind them. It is
linear in the magnitudes of one layer: the rows of a layer are the weighted l1 problems
Q(lam m g_ij / w_i), g = dT / d|W|, and each is certified.

What is monotone: within a layer F does not rise from the network's own rows to the new ones (with a
maximum pooling, where T is convex and not linear, steps are halved until it does not). An input of
the layer that nothing moves any more is a constant, and left to the bias. From layer to layer the
misfits are of other statistics, because the student's states have changed, so there is no one
objective that falls; what is kept is the budget, which a search over lam meets.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cimf.errors import CaptureError, InputError
from cimf.judge import Certificate
from cimf.methods.base import Outcome, Task
from cimf.methods.layered.calibration import Calibration, first_batches
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.prune_layers import layer_record, outcome_of
from cimf.methods.layered.sensitivity import output_sensitivity
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.survey import as_rows, damped_groups, dense_rows
from cimf.methods.penalty_search import within
from cimf.methods.pruning_report import LayerRecord
from cimf.network.batches import one_tensor
from cimf.network.layers import Layer, LayerGraph, Rows
from cimf.network.magnitude import MagnitudeNetwork
from cimf.network.patches import PatchGram
from cimf.solve import solve_rows

Array = NDArray[np.float64]

# Samples on which the effects are measured, and on which lam is searched before all take part.
_PROBES = 250
# A slope below this share of the network's largest in the layer counts as this share, an effect
# below that of the layer's mean likewise: no weight is free by accident.
_FLOOR = 1e-6
# Relative gap at which a row counts as solved: the states are float32. Where targets hardly vary
# beside their mean, 1e-9 is below the rounding of the uncentred moments.
_TOL = 1e-6
# A budget is met within this share of itself from below; a sparsity within this share of all
# weights.
_CLOSE, _CLOSE_SPARSITY = 0.05, 1e-3
# Left over of a budget by a result that is warned about.
_FAR = 0.5
# By how much lam changes until the budget is enclosed, and where few samples have told its size.
_STRIDE, _STRIDE_AFTER = 3.0, 1.3
# Halvings of a step before a layer's rows stay as they are; F is told apart to a share.
_HALVINGS, _ROUNDING = 10, 1e-9


@dataclass(frozen=True, kw_only=True)
class SensitivityBudget(Statistics):
    """Options of the layered method of least sensitivity.

    Attributes
    ----------
    kappa : float, optional
        T of the result over T of the network, at most: 1 or more gives the network itself. None:
        lam is searched for the target sparsity.
    """

    kappa: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kappa is not None and not (
            isinstance(self.kappa, Real) and 0.0 < float(self.kappa) < np.inf
        ):
            raise InputError(
                f"kappa must be a positive number, the share of the network's sensitivity that the "
                f"result may have, got {self.kappa!r}"
            )

    @property
    def budget(self) -> bool:
        """Whether a share of the sensitivity is asked for, in place of a target sparsity."""
        return self.kappa is not None


class Descent(NamedTuple):
    """One pass over the layers at one lam.

    Attributes
    ----------
    lam : float
        Penalty on T beside half the mean squared change of the outputs.
    total : float
        What the budget is on: T, or the non-zeros.
    rows, records, mismatch
        As in `cimf.methods.layered.prune_layers`.
    values : dict of str to (float, float)
        F of every layer, at the rows it had and at those it got.
    shortened : tuple of str
        Layers that did not go all the way to the certified rows.
    """

    lam: float
    total: float
    rows: dict[str, tuple[Tensor, Tensor | None]]
    records: tuple[LayerRecord, ...]
    mismatch: dict[str, float]
    values: dict[str, tuple[float, float]]
    shortened: tuple[str, ...]


class LayerSensitivity:
    """What the rows of least sensitivity of a network are made from.

    Raises
    ------
    CaptureError
        Something has no known bound; the outputs have no gradient.
    InputError
        No input moves.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration, graph = calibration, calibration.graph
        inputs = one_tensor(calibration.inputs, "the bound of the sensitivity")
        high = torch.stack([u.amax(0) for u in inputs]).amax(0)
        low = torch.stack([u.amin(0) for u in inputs]).amin(0)
        self.moves = high - low
        self.magnitude = MagnitudeNetwork(graph, self.moves)
        self.network = self.magnitude.total()
        self._probe = torch.cat(first_batches(inputs, _PROBES))[:_PROBES]
        metric = calibration.statistics.metric
        effects = [s.mean(axis=0) for s in output_sensitivity(graph, [self._probe], metric)]
        largest = max(float(effect.max()) for effect in effects)
        if largest == 0.0:
            raise CaptureError("the outputs have no gradient: no row is known to have an effect")
        self.effects = {
            layer.path: np.maximum(effect, _FLOOR * (effect.mean() or largest))
            for layer, effect in zip(graph.layers, effects, strict=True)
        }
        self.floors = {
            layer.path: _FLOOR * (self.magnitude.slopes(layer).max() or 1.0)
            for layer in graph.layers
        }

    @cached_property
    def scale(self) -> float:
        """The lam at which the network's own T costs as much as all that the outputs do."""
        with torch.no_grad():
            output = self.calibration.graph.run(self._probe).double()
        energy = float(output.square().sum()) / len(output)
        return (energy or 1.0) / (2.0 * self.network)

    def descend(
        self, lam: float, options: SensitivityBudget, samples: int | None = None
    ) -> Descent:
        """Return the rows of all layers at one lam, from the first batches or from all."""
        graph, batches = self.calibration.graph, self.calibration.inputs
        rows: dict[str, tuple[Tensor, Tensor | None]] = {}
        records: list[LayerRecord] = []
        values: dict[str, tuple[float, float]] = {}
        shortened: list[str] = []

        def solve(layer: Layer, statistics: PatchGram) -> tuple[Tensor, Tensor | None]:
            step = _Step(self, layer, statistics, lam, rows, options)
            solved, certificates = step.solve()
            coef, values[layer.path] = step.accepted(solved)
            if coef is not solved:
                shortened.append(layer.path)
            rows[layer.path] = as_rows(coef, int(layer.has_bias))
            samples = statistics.n_samples
            records.append(layer_record(layer, samples, coef, certificates, support="sensitivity"))
            return rows[layer.path]

        mismatch = propagate(
            graph,
            batches if samples is None else first_batches(batches, samples),
            solve,
            options,
            counting=self.calibration.counting,
        )
        total = self.magnitude.total(rows) if options.budget else sum(r.kept for r in records)
        return Descent(lam, total, rows, tuple(records), mismatch, values, tuple(shortened))


class _Step:
    """One layer at one lam, beside the rows of the layers before it: its problems by group."""

    def __init__(
        self, problem: LayerSensitivity, layer: Layer, statistics: PatchGram, lam: float,
        rows: Rows, options: SensitivityBudget,
    ) -> None:  # fmt: skip
        self.layer, self.lam, self.rows, self.n_jobs = layer, lam, rows, options.n_jobs
        self.total = problem.magnitude.total
        self.share = problem.effects[layer.path] / statistics.n_samples
        self.grams = damped_groups(layer, statistics, options.damping)
        size = layer.n_rows // layer.groups
        self.parts = [slice(g * size, (g + 1) * size) for g in range(layer.groups)]
        slopes = problem.magnitude.slopes(layer, rows)
        # What nothing moves any more is a constant, and left to the bias where there is one.
        still = slopes.reshape(layer.groups, size, -1).max(axis=1) == 0.0
        self.still = np.repeat(still & layer.has_bias, size, axis=0)
        weights = np.maximum(slopes, problem.floors[layer.path]) / self.share[:, None]
        weights[self.still] = np.inf
        self.weights = np.pad(weights, ((0, 0), (0, int(layer.has_bias))))

    def start(self) -> Array:
        """Return the network's own rows, with what does not move in the bias."""
        own = dense_rows(self.layer)
        for gram, part, still in zip(
            self.grams, self.parts, self._by_group(self.still), strict=True
        ):
            if still.any():
                mean = gram.gram[-1, :-1] / gram.gram[-1, -1]
                own[part, -1] += (own[part, :-1] * still) @ mean
                own[part, :-1][still] = 0.0
        return own

    def solve(self) -> tuple[Array, list[Certificate]]:
        """Return the certified rows (r, N')."""
        coefs, certificates = [], []
        for gram, weights in zip(self.grams, self._by_group(self.weights), strict=True):
            found = solve_rows(gram, lam=self.lam, weights=weights, tol=_TOL, n_jobs=self.n_jobs)
            found.raise_if_failed()
            coefs.append(found.coef)
            certificates.append(found.certificate)
        return np.concatenate(coefs), certificates

    def value(self, coef: Array) -> float:
        """Return F with these rows of the layer."""
        misfits = [
            0.5 * (np.einsum("ij,ij->i", a @ gram.gram, a) + gram.target_sq)
            - np.einsum("ij,ij->i", a, gram.corr)
            for gram, a in zip(self.grams, self._by_group(coef), strict=True)
        ]
        misfit = float(self.share @ np.maximum(np.concatenate(misfits), 0.0))
        changed = {**self.rows, self.layer.path: as_rows(coef, int(self.layer.has_bias))}
        return misfit + self.lam * self.total(changed)

    def accepted(self, solved: Array) -> tuple[Array, tuple[float, float]]:
        """Return how far to go to the solved rows, and F before and after."""
        own = self.start()
        before = self.value(own)
        for step in 0.5 ** np.arange(_HALVINGS):
            trial = solved if step == 1.0 else own + step * (solved - own)
            after = self.value(trial)
            if after <= before * (1.0 + _ROUNDING):
                return trial, (before, after)
        return own, (before, before)

    def _by_group(self, values: Any) -> list[Any]:
        return [values[part] for part in self.parts]


def prune_sensitivity(task: Task, sparsity: float | None, options: SensitivityBudget) -> Outcome:
    """Return the network with rows of least sensitivity, within its budget or at its sparsity.

    Raises
    ------
    CaptureError
        The network cannot be matched, or something in it has no known bound; the message names it.
    CertificateError
        A row is not certified.
    """
    calibration = Calibration.of(task, options.statistics)
    problem = task.once(("sensitivity", options.statistics), lambda: LayerSensitivity(calibration))
    if options.kappa is not None and options.kappa >= 1.0:
        own = copy.deepcopy(calibration.graph.original)
        return Outcome(own, notes=(*calibration.notes, "kappa is 1 or more: the network itself"))
    if options.kappa is not None:
        budget, close = options.kappa * problem.network, _CLOSE
    else:
        assert sparsity is not None  # refused by `Method.checked`
        budget = float(calibration.left(sparsity, ()))
        close = _CLOSE_SPARSITY * calibration.graph.n_weights / max(budget, 1.0)
    stages: list[tuple[int | None, float]] = [(None, _STRIDE)]
    if task.n_samples > 2 * _PROBES:
        stages = [(_PROBES, _STRIDE), (None, _STRIDE_AFTER)]
    lam = problem.scale
    for samples, stride in stages:
        fit = partial(problem.descend, options=options, samples=samples)
        found = within(fit, budget, lam, close, stride)
        lam = found.lam
    outcome = outcome_of(calibration, found.rows, found.records, found.mismatch)
    # Counted once more, on the weights of the network that is returned.
    graph = LayerGraph(outcome.network, calibration.inputs[0][:8])
    total = MagnitudeNetwork(graph, problem.moves).total()
    notes = [
        f"total sensitivity {total:.4g}, {total / problem.network:.4f} of the network's "
        f"{problem.network:.4g}, to inputs that move by their range on the calibration samples; "
        f"lam {found.lam:.3g}"
    ]
    if found.shortened:
        notes.append(
            f"steps were shortened, their rows lie between the network's and those that are proved "
            f"optimal: {', '.join(found.shortened)}"
        )
    warned = list(outcome.warnings)
    if options.budget and found.total < (1.0 - _FAR) * budget:
        warned.append(
            f"the sensitivity is {total / problem.network:.2g} of the network's, the budget "
            f"{options.kappa:g}: at a slightly smaller penalty it is above. Layers are emptied at "
            "once; give a larger budget, or a sparsity"
        )
    return replace(outcome, notes=(*outcome.notes, *notes), warnings=tuple(warned))
