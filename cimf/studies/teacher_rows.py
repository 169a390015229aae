"""The paper's row problems of a network, literal: on the trained network's own states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cimf.methods.base import Task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.supports import Convex
from cimf.methods.layered.survey import as_rows, damped_groups, dense_rows
from cimf.network.layers import Layer
from cimf.network.patches import PatchGram
from cimf.statistics import Gram
from cimf.studies.kappa_steps import STATISTICS

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LayerRows:
    """The rows of one group of one layer.

    Attributes
    ----------
    layer : Layer
    gram : Gram
        Patches that the layer reads, N columns and the bias, against its r pre-activations.
    own : (r, N')
        The network's own rows.
    """

    layer: Layer
    gram: Gram
    own: Array

    @property
    def weights(self) -> Array:
        """Weights of the l1 ball, (N',): the bias is free."""
        weights = np.ones(self.own.shape[1])
        weights[self.layer.n_columns :] = 0.0
        return weights

    def radii(self, budget: str, kappa: float) -> Array:
        """Return the radius of every ball, (r,): budgets as `Convex`."""
        return Convex(budget, kappa).radii(np.tile(self.weights, (len(self.own), 1)), self.own)

    def first(self, rows: int | None) -> LayerRows:
        """Return the first so many rows."""
        return LayerRows(self.layer, self.gram.rows(slice(rows)), self.own[:rows])


def teacher_rows(task: Task) -> list[LayerRows]:
    """Return the row problems of every layer but the last, which has no ball."""
    calibration = Calibration.of(task, STATISTICS)
    found: list[LayerRows] = []

    def collect(layer: Layer, patches: PatchGram) -> None:
        if layer is calibration.graph.layers[-1]:
            return
        grams = damped_groups(layer, patches, STATISTICS.damping)
        parts = np.split(dense_rows(layer), len(grams))
        found.extend(LayerRows(layer, g, own) for g, own in zip(grams, parts, strict=True))

    propagate(
        calibration.graph, calibration.inputs, collect, STATISTICS, counting=calibration.counting
    )
    return found


def network_of(task: Task, problems: Sequence[LayerRows], coef: Sequence[Array]) -> nn.Module:
    """Return the network with these rows, one array (r, N') per problem; others as they are."""
    parts: dict[Layer, list[Array]] = {}
    for problem, rows in zip(problems, coef, strict=True):
        parts.setdefault(problem.layer, []).append(rows)
    return task.graph.export(
        {
            layer.path: as_rows(np.concatenate(rows), int(layer.has_bias))
            for layer, rows in parts.items()
        }
    )
