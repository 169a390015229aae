"""What a sparse network is: per layer and in all, against four denominators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from cimf.judge import DENOMINATORS
from cimf.methods.layered.elimination import Matrix
from cimf.methods.layered.supports import Choice
from cimf.network.layers import Layer, LayerGraph
from cimf.network.state_blocks import some_rows


class LayerRecord:
    """One layer of the result.

    Attributes
    ----------
    path, kind : str
        The module and its type.
    rows, columns, samples : int
        Output channels, weights per row, samples times positions.
    kept : int
        Non-zero weights, biases left out.
    emptied : tuple of int
        Rows without any non-zero weight.
    unread : int
        Input channels that no row reads.
    exchanges : int
        Exact exchanges that improved the supports.
    certified, solved : int
        Rows of the convex problem behind the supports that passed their certificate, of how many;
        0 of 0 where the rule is not convex.
    worst_gap : float
        Largest relative duality gap of those rows (NaN where there are none).
    polish_gap : float
        Largest relative excess of the least squares on the supports, recomputed (NaN: no polish).
    mismatch : float
        Mean squared error of the student's pre-activation over the teacher's variance.
    """

    def __init__(self, layer: Layer, samples: int) -> None:
        self.path, self.kind = layer.path, type(layer.module).__name__
        self.rows, self.columns, self.samples = layer.n_rows, layer.n_columns, samples
        self.kept = self.unread = self.exchanges = self.certified = self.solved = 0
        self.emptied: tuple[int, ...] = ()
        self.worst_gap = self.polish_gap = math.nan
        self.mismatch = math.nan
        self._kernel = layer.n_columns // (layer.module.weight.shape[1] or 1)
        self._seen = 0

    def add(self, coef: Matrix, choice: Choice, exchanges: np.ndarray, gap: np.ndarray) -> None:
        """Add the rows of one group."""
        weight = coef[:, : self.columns]
        self.kept += int(np.count_nonzero(weight))
        empty = np.flatnonzero(~weight.any(axis=1)) + self._seen
        self.emptied += tuple(int(i) for i in empty)
        self._seen += len(weight)
        used = weight.any(axis=0).reshape(-1, self._kernel).any(axis=1)
        self.unread += int((~used).sum())
        self.exchanges += int(exchanges.sum())
        if choice.solution is not None:
            certificate = choice.solution.certificate
            self.solved += certificate.passed.size
            self.certified += int(certificate.passed.sum())
            self.worst_gap = float(np.fmax(self.worst_gap, certificate.worst_gap))
        self.polish_gap = float(np.fmax(self.polish_gap, gap.max(initial=0.0)))

    @property
    def sparsity(self) -> float:
        """Share of the layer's weights that is zero."""
        return 1.0 - self.kept / (self.rows * self.columns)


@dataclass(frozen=True)
class Evaluation:
    """The sparse network on test samples.

    Attributes
    ----------
    samples : int
    output_error : float
        ||Y_sparse - Y_network||_F / ||Y_network||_F.
    accuracy, dense_accuracy : float or None
        Of the sparse network and of the network itself, where the samples have labels.
    """

    samples: int
    output_error: float
    accuracy: float | None
    dense_accuracy: float | None

    def __str__(self) -> str:
        text = (
            f"on {self.samples:,} test samples: output error {self.output_error:.4f} (relative, "
            "against the network)"
        )
        if self.accuracy is not None:
            text += f", accuracy {self.accuracy:.2%}, the network itself {self.dense_accuracy:.2%}"
        return text


@dataclass(frozen=True)
class LayeredReport:
    """Everything about one sparse network.

    Attributes
    ----------
    layers : tuple of LayerRecord
        In the order in which they were solved.
    target : float or None
        The sparsity that was asked for.
    nonzeros : dict of str to (int, int)
        For each key of `cimf.judge.DENOMINATORS`: non-zeros and total. Of the parameters, all that
        are no matched weights (embeddings, norms, biases) count as non-zero. "admissible" and
        "dense" count the matched part of (A, B, C, D), every weight as often as the weight sharing
        repeats it; the states are the outputs of all layers but the last.
    seconds : float
    notes : tuple of str
    evaluation : Evaluation or None
        On test samples, where there were any.
    """

    layers: tuple[LayerRecord, ...]
    target: float | None
    nonzeros: dict[str, tuple[int, int]]
    seconds: float
    notes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None

    @classmethod
    def build(
        cls,
        graph: LayerGraph,
        network: nn.Module,
        records: Sequence[LayerRecord],
        target: float | None,
        seconds: float,
        notes: Sequence[str],
    ) -> LayeredReport:
        """Count the non-zeros of the network that is returned, not those of the row problems."""
        weights = total = 0
        for layer in graph.layers:
            weight = network.get_parameter(f"{layer.path}.weight")
            weights += int(weight.count_nonzero())
            total += weight.numel()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        entries = admissible = 0
        for layer in graph.layers:
            rows = network.get_parameter(f"{layer.path}.weight").flatten(1)
            kept = (rows != 0).cpu().numpy()
            places = math.prod(layer.output_shape) if layer.has_bias else 0
            entries += int(kept.sum(axis=0) @ layer.repeats) + places
            admissible += layer.n_rows * int(layer.repeats.sum()) + places
        outputs = [math.prod(layer.output_shape) for layer in graph.layers]
        states = sum(outputs)
        inputs = math.prod(graph.layers[0].input_shape) + 1
        nonzeros = {
            "network_weights": (weights, total),
            "network_parameters": (parameters - total + weights, parameters),
            "admissible": (entries, admissible),
            "dense": (entries, states * (states - outputs[-1] + inputs)),
        }
        return cls(tuple(records), target, nonzeros, seconds, tuple(notes))

    @property
    def sparsity(self) -> dict[str, float]:
        """1 - non-zeros / total for each denominator."""
        return {name: 1.0 - count / total for name, (count, total) in self.nonzeros.items()}

    def __str__(self) -> str:
        width = max(len("layer"), *(len(r.path) for r in self.layers)) + 2
        lines = [
            f"{'layer':<{width}}{'rows':>6}{'columns':>9}{'kept':>10}{'sparsity':>10}{'swaps':>7}"
            f"{'certified':>11}{'worst gap':>11}{'mismatch':>10}{'empty':>7}{'unread':>8}"
        ]
        for r in self.layers:
            certified = f"{r.certified}/{r.solved}" if r.solved else "-"
            gap = f"{r.worst_gap:.0e}" if r.solved else "-"
            lines.append(
                f"{r.path:<{width}}{r.rows:>6}{r.columns:>9}{r.kept:>10,}{r.sparsity:>10.1%}"
                f"{r.exchanges:>7}{certified:>11}{gap:>11}{r.mismatch:>10.4f}{len(r.emptied):>7}"
                f"{r.unread:>8}"
            )
        digits = max(len(f"{total:,}") for _, total in self.nonzeros.values())
        lines += [
            f"sparsity {1 - count / total:>6.2%}: {count:>{digits},} of {total:>{digits},} "
            f"{DENOMINATORS[name]}"
            for name, (count, total) in self.nonzeros.items()
        ]
        if self.evaluation is not None:
            lines.append(str(self.evaluation))
        lines += [
            f"layer {r.path}: {len(r.emptied)} emptied rows: {some_rows(r.emptied)}"
            for r in self.layers
            if r.emptied
        ]
        unread = [f"{r.unread} of layer {r.path}" for r in self.layers if r.unread]
        if unread:
            lines.append(f"input channels that no row reads: {', '.join(unread)}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
