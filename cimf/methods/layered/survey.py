"""What dropping weights will cost, layer by layer: the loss curves that budgets are made from.

The predicted loss of row i with k weights dropped is ``scale_l s_i L_i(k)``: L_i(k) is the row's
mean squared error by Optimal Brain Surgeon on the teacher's states, s_i the sensitivity of the
output to the row's errors taken as uncorrelated over positions (`output_sensitivity`), and scale_l
corrects that assumption by a measurement: the layer is sparsified alone, and the mean squared
change of the network's output divided by the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cimf.errors import UnknownNameError
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.allocation import Counts, by_price, uniform
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.sensitivity import output_sensitivity
from cimf.network.layers import Layer, LayerGraph
from cimf.network.patches import PatchGram
from cimf.statistics import Gram

# Samples on which sensitivities and responses are measured.
_PROBES = 250


@dataclass
class LayerCurves:
    """Statistics of one layer on the teacher's states.

    Attributes
    ----------
    problems : tuple of Gram
        One per group, damped.
    order : (r, N) int64
        Order of dropping in each row.
    increase : (r, N)
        Increase of the row's mean squared error at each drop.
    sensitivity : (r,)
        Of the output to the row, see `output_sensitivity`.
    """

    problems: tuple[Gram, ...]
    order: NDArray[np.int64]
    increase: NDArray[np.float64]
    sensitivity: NDArray[np.float64]

    @property
    def price(self) -> NDArray[np.float64]:
        """Predicted loss of each drop before the measured scale, shape (r, N)."""
        return self.increase * self.sensitivity[:, None]


@dataclass
class Survey:
    """Loss curves of all matched layers of a network, usable for any target sparsity."""

    graph: LayerGraph
    curves: list[LayerCurves]
    probe: Tensor
    n_jobs: int | None = None

    @classmethod
    def take(
        cls,
        graph: LayerGraph,
        batches: Sequence[Tensor],
        *,
        damping: float,
        positions: int | None,
        precision: torch.dtype,
        metric: str = "output",
        counting: Mapping[str, Sequence[Tensor]] | None = None,
        n_jobs: int | None = None,
    ) -> Survey:
        """Measure the curves on the teacher's states; as `sparsify_layers` and `propagate`."""
        found: dict[str, tuple[tuple[Gram, ...], NDArray[np.int64], NDArray[np.float64]]] = {}

        def collect(layer: Layer, statistics: PatchGram) -> None:
            free = int(layer.has_bias)
            problems = damped_groups(layer, statistics, damping)
            parts = [rows.elimination(problem, free, n_jobs) for problem in problems]
            order, increase = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
            found[layer.path] = problems, order, increase / statistics.n_samples

        propagate(
            graph, batches, collect, positions=positions, precision=precision, counting=counting
        )
        probe = torch.cat(list(batches))[:_PROBES]
        sensitivity = output_sensitivity(graph, [probe], metric)
        curves = [
            LayerCurves(*found[layer.path], s)
            for layer, s in zip(graph.layers, sensitivity, strict=True)
        ]
        return cls(graph, curves, probe, n_jobs)

    def allocate(self, rule: str, keep: int, fixed: Sequence[str] = ()) -> Counts:
        """Return how many weights every row keeps, `keep` in all.

        Parameters
        ----------
        rule : str
            "uniform": the same share in every row. "error": least sum of the rows' errors over
            their variance. "output": least predicted change of the output, with measured scales.
        fixed : sequence of str
            Paths of layers that stay dense.
        """
        layers, curves = self.graph.layers, self.curves
        open_ = [k for k, layer in enumerate(layers) if layer.path not in fixed]
        rest = keep - sum(layer.n_weights for layer in layers if layer.path in fixed)
        if rule == "uniform":
            found = uniform([(layers[k].n_rows, layers[k].n_columns) for k in open_], rest)
        elif rule == "error":
            found = by_price([curves[k].increase / self._variance(k) for k in open_], rest)
        elif rule == "output":
            scales = self.scales(1.0 - keep / self.graph.n_weights)
            found = by_price([curves[k].price * scales[k] for k in open_], rest)
        else:
            raise UnknownNameError("allocation", rule, ["uniform", "error", "output"])
        counts = [np.full(layer.n_rows, layer.n_columns) for layer in layers]
        for k, value in zip(open_, found, strict=True):
            counts[k] = value
        return counts

    def _variance(self, k: int) -> float:
        """Mean variance of a layer's targets."""
        total = samples = 0.0
        for problem in self.curves[k].problems:
            total += float((problem.target_sq / problem.n_samples).sum())
            if self.graph.layers[k].has_bias:
                total -= float(np.square(problem.corr[:, -1] / problem.n_samples).sum())
            samples += problem.n_targets
        return max(total / samples, np.finfo(float).tiny)

    @torch.no_grad()
    def scales(self, sparsity: float) -> list[float]:
        """Return measured over predicted change of the output, each layer sparsified alone."""
        output = self.graph.module(self.probe)
        out = []
        for layer, curve in zip(self.graph.layers, self.curves, strict=True):
            counts = by_price([curve.price], round((1.0 - sparsity) * layer.n_weights))[0]
            width = layer.n_columns
            predicted = sum(curve.price[i, : width - k].sum() for i, k in enumerate(counts))
            free = int(layer.has_bias)
            mask = rows.last_columns(curve.order, counts, free)
            size = layer.n_rows // layer.groups
            coef = np.concatenate(
                [
                    rows.polished(problem, mask[g * size : (g + 1) * size], self.n_jobs)[0]
                    for g, problem in enumerate(curve.problems)
                ]
            )
            change = self.graph.run(self.probe, {layer.path: as_rows(coef, free)}) - output
            measured = float(change.double().square().sum()) / len(self.probe)
            out.append(measured / predicted if predicted > 0 else 1.0)
        return out


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
    """Return the present rows of a layer with the bias in the last column, shape (r, N')."""
    weight = layer.weight.numpy()
    if not layer.has_bias:
        return weight
    return np.column_stack([weight, layer.module.bias.double().numpy()])


def as_rows(coef: NDArray[np.float64], n_free: int) -> tuple[Tensor, Tensor | None]:
    """Split rows (r, N') into weight (r, N) and bias (r,)."""
    value = torch.from_numpy(coef)
    return (value[:, :-1], value[:, -1]) if n_free else (value, None)
