"""What a sparse network is: per layer and in all, against four denominators."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

from torch import Tensor, nn

from cimf.judge import DENOMINATORS
from cimf.network.expansion import expand
from cimf.network.exported import MATCHED
from cimf.network.layers import LayerGraph
from cimf.network.state_blocks import some_rows
from cimf.train.training_report import TrainingReport


@dataclass(frozen=True)
class LayerRecord:
    """One layer of the result, as the method that solved its rows knows it.

    Attributes
    ----------
    path, kind : str
        The module and its type.
    rows, columns, samples : int
        Output channels, weights per row, samples times positions.
    kept : int
        Non-zero weights, biases left out.
    support : str
        The rule that chose which: "obs", "admm", another key of `SUPPORTS`, or its name; "given".
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

    path: str
    kind: str
    rows: int
    columns: int
    samples: int
    kept: int
    support: str
    emptied: tuple[int, ...]
    unread: int
    exchanges: int
    certified: int
    solved: int
    worst_gap: float
    polish_gap: float
    mismatch: float = math.nan

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
class PruningReport:
    """Everything about one sparse network.

    Attributes
    ----------
    method : str
    target : float or None
        The sparsity of the matched weights that was asked for.
    matched : (int, int)
        Non-zeros and total of the weights that a method may prune: those of convolutions and
        linear layers that the network calls in eval mode.
    nonzeros : dict of str to (int, int)
        For each key of `cimf.judge.DENOMINATORS`: non-zeros and total. "network_weights" are the
        weights of all convolutions and linear layers, called or not. Of the parameters, all that
        are none of these (embeddings, norms, biases) count as non-zero. "admissible" and "dense"
        count the matched part of (A, B, C, D), every weight as often as the weight sharing repeats
        it; the states are the outputs of all layers but the last.
    seconds : float
    layers : tuple of LayerRecord
        In the order in which they were solved; empty where the method solves no row problems.
    notes : tuple of str
    evaluation : Evaluation or None
        On test samples, where there were any.
    training : tuple of TrainingReport
        What a method that trains did, stage by stage: loss and measures of every epoch.
    """

    method: str
    target: float | None
    matched: tuple[int, int]
    nonzeros: dict[str, tuple[int, int]]
    seconds: float
    layers: tuple[LayerRecord, ...] = ()
    notes: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    training: tuple[TrainingReport, ...] = ()

    @classmethod
    def build(
        cls,
        graph: LayerGraph,
        network: nn.Module,
        method: str,
        target: float | None,
        seconds: float,
    ) -> PruningReport:
        """Count the non-zeros of the network that is returned, not those of the row problems."""
        entries = admissible = weights = total = 0
        matrices = layer_weights(network)
        for layer in graph.layers:
            rows = matrices[layer.path].flatten(1)
            kept = (rows != 0).cpu().numpy()
            for call in layer.calls:
                places = math.prod(call.output_shape) if layer.has_bias else 0
                entries += int(kept.sum(axis=0) @ call.repeats) + places
                admissible += layer.n_rows * int(call.repeats.sum()) + places
            weights, total = weights + int(kept.sum()), total + kept.size
        every = sum(weight.numel() for weight in matrices.values())
        nonzero = weights + sum(int(matrices[path].count_nonzero()) for path in graph.uncalled)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        outputs = [math.prod(call.output_shape) for one in graph.layers for call in one.calls]
        states = sum(outputs)
        inputs = math.prod(graph.layers[0].input_shape) + 1
        nonzeros = {
            "network_weights": (nonzero, every),
            "network_parameters": (parameters - every + nonzero, parameters),
            "admissible": (entries, admissible),
            "dense": (entries, states * (states - outputs[-1] + inputs)),
        }
        notes: tuple[str, ...] = ()
        if graph.uncalled:
            notes = (
                f"not called in eval mode, and left as they are: {', '.join(graph.uncalled)} "
                f"({every - total:,} of {every:,} weights); the target is met by the other "
                f"{total:,}, {1.0 - weights / total:.2%} of which are zero",
            )
        return cls(method, target, (weights, total), nonzeros, seconds, notes=notes)

    @property
    def sparsity(self) -> dict[str, float]:
        """1 - non-zeros / total for each denominator."""
        return {name: 1.0 - count / total for name, (count, total) in self.nonzeros.items()}

    def _table(self) -> list[str]:
        """Return heading and rows; what a convex rule proves only where one was used."""
        width = max(len("layer"), *(len(r.path) for r in self.layers)) + 2
        wide = max(len("support"), *(len(r.support) for r in self.layers)) + 2
        proofs = any(r.solved for r in self.layers)
        lines = [
            f"{'layer':<{width}}{'rows':>6}{'columns':>9}{'kept':>10}{'sparsity':>10}{'support':>{wide}}{'swaps':>7}"
            + (f"{'certified':>11}{'worst gap':>11}" if proofs else "")
            + f"{'mismatch':>10}{'empty':>7}{'unread':>8}"
        ]
        for r in self.layers:
            proof = f"{f'{r.certified}/{r.solved}':>11}{r.worst_gap:>11.0e}" if proofs else ""
            lines.append(
                f"{r.path:<{width}}{r.rows:>6}{r.columns:>9}{r.kept:>10,}{r.sparsity:>10.1%}"
                f"{r.support:>{wide}}{r.exchanges:>7}{proof}{r.mismatch:>10.4f}{len(r.emptied):>7}{r.unread:>8}"
            )
        return lines

    def __str__(self) -> str:
        lines = self._table() if self.layers else [f"method {self.method}"]
        digits = max(len(f"{total:,}") for _, total in self.nonzeros.values())
        lines += [
            f"sparsity {1 - count / total:>6.2%}: {count:>{digits},} of {total:>{digits},} "
            f"{DENOMINATORS[name]}"
            for name, (count, total) in self.nonzeros.items()
        ]
        lines += [str(stage) for stage in self.training]
        lines += self._proved()
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

    def _proved(self) -> list[str]:
        """Say what was checked about the rows, and what was not."""
        lines = []
        solved, passed = sum(r.solved for r in self.layers), sum(r.certified for r in self.layers)
        if solved:
            lines.append(
                f"proved: {passed:,} of {solved:,} rows of the convex problems behind the supports "
                "are optimal"
            )
        excess = [r.polish_gap for r in self.layers if not math.isnan(r.polish_gap)]
        if excess:
            lines.append(
                "proved: the coefficients are the least squares on their supports, recomputed; "
                f"largest relative excess {max(excess):.0e}"
            )
        else:
            lines.append("not proved: the coefficients, which no polish fitted to the supports")
        lines.append("not proved: that no other support of the same size is better")
        return lines


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all convolutions and linear layers by the path of their module.

    Those in other modules are copies, by the paths of their equivalents.
    """
    whole, _ = expand(copy.deepcopy(network))
    return {
        path: module.weight.detach()
        for path, module in whole.named_modules()
        if isinstance(module, MATCHED)
    }
