"""What dropping weights will cost, layer by layer: the loss curves that budgets are made from.

The predicted loss of row i with k weights dropped is ``scale_l s_i L_i(k)``: L_i(k) is the row's
mean squared error by Optimal Brain Surgeon on the teacher's states, s_i the sensitivity of the
output to the row's errors taken as uncorrelated over positions (`output_sensitivity`), and scale_l
corrects that assumption by a measurement: the layer is sparsified alone, and the mean squared
change of the network's output divided by the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cimf.errors import UnknownNameError
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.allocation import ALLOCATIONS, Counts, by_price, uniform
from cimf.methods.layered.block_elimination import block_elimination
from cimf.methods.layered.conjugate_gradients import fitted
from cimf.methods.layered.cost import exact_is_affordable
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.sensitivity import Counting, output_sensitivity
from cimf.methods.layered.statistics_options import Statistics
from cimf.network.batches import Batch, joined
from cimf.network.layers import Layer, LayerGraph
from cimf.network.patches import PatchGram
from cimf.statistics import Gram

# Samples on which sensitivities and responses are measured.
_PROBES = 250
# Rounding errors of a forward pass, in units of the dtype's, relative to the output. Changes of the
# output below say nothing about what caused them.
_ROUNDINGS = 16
# Sensitivities that fewer samples carry say nothing about the others: with softmax outputs so
# saturated that one of 250 samples has a gradient, that one would decide.
_FEW = 0.02


@dataclass
class LayerCurves:
    """Statistics of one layer on the teacher's states.

    Attributes
    ----------
    problems : tuple of Gram
        One per group, damped.
    n_free : int
        Free columns.
    sensitivity : (r,)
        Of the output to the row, see `output_sensitivity`.
    carried : float
        By which share of the samples: (sum_n s_n)^2 / (n sum_n s_n^2), s_n summed over the rows.
    """

    problems: tuple[Gram, ...]
    n_free: int
    sensitivity: NDArray[np.float64]
    carried: float
    n_jobs: int | None = None

    @cached_property
    def _dropped(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        drop = rows.elimination if self._exact else block_elimination
        parts = [drop(problem, self.n_free, self.n_jobs) for problem in self.problems]
        order, increase = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        return order, increase / self.problems[0].n_samples

    @property
    def _exact(self) -> bool:
        first = self.problems[0]
        return exact_is_affordable(first.n_targets, first.n_features - self.n_free)

    def fit(self, problem: Gram, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the least squares (r, N') of one of the problems on supports."""
        if self._exact:
            return rows.polished(problem, mask, self.n_jobs)[0]
        return fitted(problem, mask, self.n_free, self.n_jobs)[0]

    @property
    def order(self) -> NDArray[np.int64]:
        """Order of dropping in each row, shape (r, N)."""
        return self._dropped[0]

    @property
    def increase(self) -> NDArray[np.float64]:
        """Increase of the row's mean squared error at each drop, shape (r, N)."""
        return self._dropped[1]

    @property
    def price(self) -> NDArray[np.float64]:
        """Predicted loss of each drop before the measured scale, shape (r, N)."""
        return self.increase * self.sensitivity[:, None]


@dataclass
class Survey:
    """Loss curves of all matched layers of a network, usable for any target sparsity."""

    graph: LayerGraph
    curves: list[LayerCurves]
    probe: Batch
    n_jobs: int | None = None

    @classmethod
    def take(
        cls,
        graph: LayerGraph,
        batches: Sequence[Batch],
        how: Statistics,
        counting: Counting | None = None,
    ) -> Survey:
        """Measure the curves on the teacher's states; the arguments are those of `propagate`."""
        found: dict[str, tuple[Gram, ...]] = {}

        def collect(layer: Layer, statistics: PatchGram) -> None:
            found[layer.path] = damped_groups(layer, statistics, how.damping)

        propagate(graph, batches, collect, how, counting=counting)
        probe = joined(batches)[:_PROBES]
        sensitivity = output_sensitivity(graph, [probe], how.metric)
        curves = [
            LayerCurves(
                found[layer.path],
                int(layer.has_bias),
                s.mean(axis=0),
                _carried(s.sum(axis=1)),
                how.n_jobs,
            )
            for layer, s in zip(graph.layers, sensitivity, strict=True)
        ]
        return cls(graph, curves, probe, how.n_jobs)

    def allocate(self, rule: str, left: int, keep: Sequence[str] = ()) -> Counts:
        """Return how many weights every row keeps, `left` in all.

        Parameters
        ----------
        rule : str
            "uniform": the same share in every row. "error": least sum of the rows' errors over
            their layer's variance. "output": least predicted change of the output, with measured
            scales; as "error" where the output has no gradient, see `blind`.
        keep : sequence of str
            Paths of layers that stay dense.
        """
        layers, curves = self.graph.layers, self.curves
        open_ = [k for k, layer in enumerate(layers) if layer.path not in keep]
        if rule == "output" and self.blind:
            rule = "error"
        rest = left - sum(layer.n_weights for layer in layers if layer.path in keep)
        if rule == "uniform":
            found = uniform([(layers[k].n_rows, layers[k].n_columns) for k in open_], rest)
        elif rule == "error":
            found = by_price([curves[k].increase / self.variance(k) for k in open_], rest)
        elif rule == "output":
            scales = self.scales(1.0 - left / self.graph.n_weights)
            found = by_price([curves[k].price * scales[k] for k in open_], rest)
        else:
            raise UnknownNameError("allocation", rule, ALLOCATIONS)
        counts = [np.full(layer.n_rows, layer.n_columns) for layer in layers]
        for k, value in zip(open_, found, strict=True):
            counts[k] = value
        return counts

    def variance(self, k: int) -> float:
        """Mean variance of a layer's targets."""
        total = samples = 0.0
        for problem in self.curves[k].problems:
            total += float((problem.target_sq / problem.n_samples).sum())
            if self.graph.layers[k].has_bias:
                total -= float(np.square(problem.corr[:, -1] / problem.n_samples).sum())
            samples += problem.n_targets
        return max(total / samples, np.finfo(float).tiny)

    def scales(self, sparsity: float) -> list[float]:
        """Return measured over predicted change of the output, each layer sparsified alone."""
        out = []
        for k, (layer, curve) in enumerate(zip(self.graph.layers, self.curves, strict=True)):
            counts = by_price([curve.price], round((1.0 - sparsity) * layer.n_weights))[0]
            width = layer.n_columns
            predicted = sum(curve.price[i, : width - n].sum() for i, n in enumerate(counts))
            kept = rows.last_columns(curve.order, counts, curve.n_free)
            out.append(self.scale(k, kept, predicted))
        return out

    def scale(self, k: int, kept: NDArray[np.bool_], predicted: float) -> float:
        """Return measured over predicted change of the output, layer k alone keeping columns."""
        return (self._response(k, kept) + self._rounding) / (predicted + self._rounding)

    @cached_property
    def blind(self) -> tuple[str, ...]:
        """Paths of layers whose influence on the output its gradient does not tell.

        So it is behind argmax, rounding, a sign, or a saturated activation. Either hardly any
        sample has a gradient, or rows without one move the output: those of one layer are emptied
        at a time.
        """
        if not any(curve.sensitivity.any() for curve in self.curves):
            return tuple(layer.path for layer in self.graph.layers)
        found = []
        for k, (layer, curve) in enumerate(zip(self.graph.layers, self.curves, strict=True)):
            silent = curve.sensitivity == 0.0
            emptied = np.ones((layer.n_rows, layer.n_columns + curve.n_free), dtype=bool)
            emptied[silent, : layer.n_columns] = False
            if 0.0 < curve.carried < _FEW or (
                silent.any() and self._response(k, emptied) > self._rounding
            ):
                found.append(layer.path)
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said about the allocation "output"."""
        if not self.blind:
            return ()
        return (
            f"the output has no gradient with respect to {', '.join(self.blind)}, or hardly any "
            '(argmax, rounding, a sign, or saturation), so the allocation "output" cannot price '
            'weights there: "error" was used',
        )

    @cached_property
    def _output(self) -> Tensor:
        """The network's output on the probe, float64."""
        with torch.no_grad():
            return self.graph.run(self.probe).double()

    @cached_property
    def _rounding(self) -> float:
        """Mean squared change of the output that rounding errors explain."""
        unit = _ROUNDINGS * torch.finfo(self.graph.dtype).eps
        energy = float(self._output.square().sum()) / len(self.probe)
        return max(unit**2 * energy, np.finfo(float).tiny)

    @torch.no_grad()
    def _response(self, k: int, mask: NDArray[np.bool_]) -> float:
        """Return the mean squared change of the output when layer k alone keeps columns (r, N').

        Rows that keep everything stay as they are.
        """
        layer, curve, output = self.graph.layers[k], self.curves[k], self._output
        free, size = curve.n_free, layer.n_rows // layer.groups
        parts = [
            curve.fit(problem, mask[g * size : (g + 1) * size])
            for g, problem in enumerate(curve.problems)
        ]
        own = dense_rows(layer)
        coef = np.where(mask.all(axis=1, keepdims=True), own, np.concatenate(parts))
        change = self.graph.run(self.probe, {layer.path: as_rows(coef, free)}).double() - output
        return float(change.square().sum()) / len(self.probe)


def _carried(sensitivity: NDArray[np.float64]) -> float:
    """Return which share of the samples (n,) a sum over them rests on; 0 where all are zero."""
    largest = sensitivity.max()
    if largest == 0.0:
        return 0.0
    share = sensitivity / largest
    return float(share.sum() ** 2 / (len(share) * np.square(share).sum()))


def damped_groups(layer: Layer, statistics: PatchGram, damping: float) -> tuple[Gram, ...]:
    """Return the damped row problems of a layer, one per group."""
    size = layer.n_rows // layer.groups
    dense = dense_rows(layer)
    return tuple(
        rows.damped(
            statistics.group(g), dense[g * size : (g + 1) * size], damping, int(layer.has_bias)
        )
        for g in range(layer.groups)
    )


def dense_rows(layer: Layer) -> NDArray[np.float64]:
    """Return a copy of the present rows of a layer, the bias in the last column, shape (r, N')."""
    weight = layer.weight.numpy()
    if not layer.has_bias:
        return weight.copy()  # in float64 it is the module's own memory
    return np.column_stack([weight, layer.module.bias.double().numpy()])


def as_rows(coef: NDArray[np.float64], n_free: int) -> tuple[Tensor, Tensor | None]:
    """Split rows (r, N') into weight (r, N) and bias (r,)."""
    value = torch.from_numpy(coef)
    return (value[:, :-1], value[:, -1]) if n_free else (value, None)
