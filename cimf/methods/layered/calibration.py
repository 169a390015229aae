"""Sparse networks by structured state matching: the layered design.

For every row i of every layer, in topological order, with the student's patches M and the
teacher's pre-activations z_i (minus what else is added to the student's),

    choose a support S_i of k_i columns, then minimise ||M a - z_i||^2 + d ||a - w_i||^2 over S_i,

w_i the network's own row. The counts k_i come from a target sparsity of the whole network.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cimf.errors import CaptureError, InputError, UnknownNameError
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.allocation import Counts, given_counts
from cimf.methods.layered.checks import (
    check_options,
    check_target,
    few_samples,
    missed_target,
    warn_outside,
)
from cimf.methods.layered.layer_report import LayeredReport, LayerRecord
from cimf.methods.layered.propagate import propagate
from cimf.methods.layered.sensitivity import positions_that_count
from cimf.methods.layered.supports import SUPPORTS, Choice, Convex, Rule
from cimf.methods.layered.survey import Survey, as_rows, damped_groups, dense_rows
from cimf.network.batches import as_batches
from cimf.network.layers import Layer, LayerGraph, Rows, working_dtype
from cimf.network.patches import PatchGram
from cimf.solve.rows import check_limits

# Samples on which the traced and the returned network are compared with what they should be, and
# the largest difference relative to the largest output; with weights in half precision so many
# times the rounding error of one weight.
_COMPARED = 8
_SAME = 1e-3
_ROUNDINGS = 30
# Samples on which the loss curves for the budgets are taken; the rows are solved on all samples.
_SURVEYED = 1000


@dataclass(frozen=True)
class SparseNetwork:
    """A network with sparse weights, drop-in for the one it was made from.

    Attributes
    ----------
    network : nn.Module
        Of the same class; exact zeros in the weights of convolutions and linear layers.
    report : LayeredReport
    """

    network: nn.Module
    report: LayeredReport


class Calibration:
    """A network's graph, its calibration batches and its loss curves: shared by several targets.

    Parameters
    ----------
    net, batches, damping, positions, precision, metric, n_jobs
        As `sparsify_layers`.

    Raises
    ------
    CimfError
        As `sparsify_layers`.
    """

    def __init__(
        self,
        net: nn.Module,
        batches: Any,
        *,
        damping: float = 1e-4,
        positions: int | None = 128,
        precision: torch.dtype = torch.float64,
        metric: str = "output",
        n_jobs: int | None = None,
    ) -> None:
        check_options(damping, positions, precision, metric)
        check_limits(1.0, n_jobs)
        self.batches = as_batches(batches, working_dtype(net))
        self.graph = LayerGraph(net, self._sample())
        self.damping, self.positions, self.precision = damping, positions, precision
        self.metric, self.n_jobs = metric, n_jobs
        halves = sorted({str(p.dtype)[6:] for p in net.parameters() if p.dtype.itemsize == 2})
        self.notes = [
            f"weights were {kind}: states computed in float32, the sparse weights rounded to it"
            for kind in halves
        ]
        self._survey: Survey | None = None
        self._check_outputs()
        self.counting = positions_that_count(self.graph, self.batches)

    def _sample(self) -> Tensor:
        """Return a few samples, among them those with the extreme token ids."""
        sample = self.batches[0][:_COMPARED]
        if sample.is_floating_point():
            return sample
        low = min(self.batches, key=lambda u: int(u.min()))
        high = max(self.batches, key=lambda u: int(u.max()))
        extreme = [low[[int(low.flatten(1).amin(1).argmin())]]]
        extreme += [high[[int(high.flatten(1).amax(1).argmax())]]]
        return torch.cat([sample, *extreme])

    @property
    def survey(self) -> Survey:
        """Loss curves on the teacher's states, taken at the first use."""
        if self._survey is None:
            self._survey = Survey.take(
                self.graph,
                _first(self.batches, _SURVEYED),
                damping=self.damping,
                positions=self.positions,
                precision=self.precision,
                metric=self.metric,
                counting=self.counting,
                n_jobs=self.n_jobs,
            )
        return self._survey

    @property
    def n_samples(self) -> int:
        """Calibration samples."""
        return sum(len(batch) for batch in self.batches)

    @torch.no_grad()
    def _check_outputs(self) -> None:
        """Compare the folded graph with the network on a few samples."""
        u = self.batches[0][:_COMPARED]
        expected = self._run(self.graph.original)
        if not isinstance(expected, Tensor) or expected.shape[:1] != u.shape[:1]:
            raise CaptureError("the network must return one tensor with the samples first")
        if not torch.isfinite(expected).all():
            raise CaptureError("the network's output has NaN or infinite values")
        error = _difference(self.graph.run(u), expected)
        if not error <= _SAME:
            raise CaptureError(
                f"the traced network differs from the network itself by {error:.1e}: its forward "
                "pass does something that tracing does not see, or reads what was changed in place"
            )

    @torch.no_grad()
    def _check_export(self, network: nn.Module, rows: Rows) -> None:
        """Compare the network that is returned with the graph with its rows, on a few samples."""
        expected = self.graph.run(self.batches[0][:_COMPARED], rows)
        error = _difference(self._run(network), expected)
        coarsest = max(
            torch.finfo(p.dtype).eps for p in network.parameters() if p.is_floating_point()
        )
        if not error <= max(_SAME, _ROUNDINGS * coarsest):
            raise CaptureError(
                f"the sparse network differs from its own rows by {error:.1e}: the network reads a "
                "weight or a batch norm in more than one place, or its precision is too low"
            )

    def _run(self, net: nn.Module) -> Any:
        """Return the output of a copy of a network on the samples that are compared."""
        net = copy.deepcopy(net).to("cpu", self.graph.dtype).eval()
        return net(self.batches[0][:_COMPARED].clone())

    def counts(self, target_sparsity: float, allocation: str, keep: Sequence[str]) -> Counts:
        """Return how many weights every row keeps at a target sparsity.

        Raises
        ------
        InputError
            The target is no number in [0, 1), a path in `keep` is unknown, or the layers in `keep`
            alone have more weights than the target leaves.
        """
        graph = self.graph
        check_target(target_sparsity)
        kept_dense = self.named(keep)
        left = round((1.0 - target_sparsity) * graph.n_weights)
        dense = sum(layer.n_weights for layer in kept_dense)
        if left < dense:
            raise InputError(
                f"target_sparsity {target_sparsity:.1%} leaves {left:,} of {graph.n_weights:,} "
                f"weights, but the layers kept dense ({', '.join(keep)}) have {dense:,}: at most "
                f"{1.0 - dense / graph.n_weights:.1%} can be reached"
            )
        if allocation == "uniform":
            return Survey(graph, [], self.batches[0]).allocate("uniform", left, keep)
        return self.survey.allocate(allocation, left, keep)

    def named(self, paths: Sequence[str]) -> list[Layer]:
        """Return the layers with these paths, each once, in the order in which they are solved.

        Raises
        ------
        InputError, UnknownNameError
            Not a sequence of paths of matched layers.
        """
        known = {layer.path: layer for layer in self.graph.layers}
        if isinstance(paths, str) or not isinstance(paths, Iterable):
            raise InputError(f"keep must be a sequence of layers' paths, got {paths!r}")
        for path in paths:
            if path not in known:
                raise UnknownNameError("layer", path, known)
        return [layer for path, layer in known.items() if path in paths]

    def sparsify(
        self,
        target_sparsity: float | None = None,
        *,
        support: str | Rule = "obs",
        allocation: str | Counts = "output",
        swaps: bool = True,
        polish: bool = True,
        correct: bool = True,
        keep: Sequence[str] = (),
        progress: Callable[[str], None] | None = None,
    ) -> SparseNetwork:
        """Return the sparse network at one target sparsity; parameters as `sparsify_layers`."""
        start = time.perf_counter()
        if isinstance(support, str) and support not in SUPPORTS:
            raise UnknownNameError("support", support, SUPPORTS)
        rule = SUPPORTS[support] if isinstance(support, str) else support
        if isinstance(rule, Convex) == (target_sparsity is not None):
            raise InputError(
                "give either target_sparsity or a budget of the convex problem "
                "(support=Convex('kappa' | 'relative' | 'lam', value))"
            )
        by_name = isinstance(allocation, str)
        if self.named(keep) and not (by_name and target_sparsity is not None):
            raise InputError("keep is not used by a convex budget or an allocation by counts")
        sizes = [(layer.n_rows, layer.n_columns) for layer in self.graph.layers]
        if target_sparsity is None:
            if not by_name or allocation != "output":
                raise InputError("allocation is not used by a convex budget: it decides every row")
            counts = [np.full(r, n) for r, n in sizes]
        elif isinstance(allocation, str):
            counts = self.counts(target_sparsity, allocation, keep)
        else:
            check_target(target_sparsity)
            counts = given_counts(allocation, sizes)
        budget = {layer.path: count for layer, count in zip(self.graph.layers, counts, strict=True)}
        records: list[LayerRecord] = []
        chosen: dict[str, tuple[Tensor, Tensor | None]] = {}

        def solve(layer: Layer, statistics: PatchGram) -> tuple[Tensor, Tensor | None]:
            found = _solve_layer(
                layer,
                statistics,
                budget[layer.path],
                rule,
                swaps,
                polish,
                self.damping,
                self.n_jobs,
            )
            records.append(found[1])
            if progress is not None:
                progress(layer.path)
            chosen[layer.path] = as_rows(found[0], int(layer.has_bias))
            return chosen[layer.path]

        mismatch = propagate(
            self.graph,
            self.batches,
            solve,
            correct=correct,
            positions=self.positions,
            precision=self.precision,
            counting=self.counting,
        )
        network = self.graph.export(chosen)
        self._check_export(network, chosen)
        for record in records:
            record.mismatch = mismatch[record.path]
        report = LayeredReport.build(
            self.graph, network, records, target_sparsity, time.perf_counter() - start, self.notes
        )
        warned = [*few_samples(records), *missed_target(report)]
        for note in warned:
            warn_outside(note)
        return SparseNetwork(network, replace(report, notes=(*report.notes, *warned)))


def sparsify_layers(
    net: nn.Module,
    batches: Any,
    target_sparsity: float | None = None,
    *,
    damping: float = 1e-4,
    positions: int | None = 128,
    precision: torch.dtype = torch.float64,
    metric: str = "output",
    n_jobs: int | None = None,
    **options: Any,
) -> SparseNetwork:
    """Return a network with sparse convolution and linear weights that matches the given one.

    Parameters
    ----------
    net : nn.Module
        Any dtype, device and mode; not modified. Convolutions (1-D, 2-D; groups, stride, padding,
        dilation) and linear layers are matched, everything else stays as it is.
    batches : iterable, or one tensor
        Calibration inputs (b, ...), or (input, label) pairs whose labels are ignored.
    target_sparsity : float, optional
        Share of all matched weights that is zero, in [0, 1); met exactly. None: `support` is a
        `Convex` rule, whose budget decides.
    damping : float
        d of the module's problem, in units of the mean squared norm of a layer's columns.
    positions : int, optional
        About so many output positions per sample enter the statistics. None: all.
    precision : torch.dtype
        Of the products that are summed into the statistics; the sums are float64 either way.
    metric : str
        What the allocation "output" predicts: "output" (squared error of the outputs) or "softmax"
        (Kullback-Leibler divergence of class probabilities).
    n_jobs : int, optional
        Threads for the rows. Default: all cores.
    support : str or Rule
        A key of `cimf.methods.layered.supports.SUPPORTS`, or a rule such as
        ``Convex("relative", 0.5)``.
    allocation : str, or counts per layer
        "output", "error" or "uniform", see `Survey.allocate`; or integer arrays (r,), one per layer
        in the order of the report, which say what every row keeps.
    swaps : bool
        Improve the supports by exact exchanges.
    polish : bool
        Least squares on the support. False: the rule's own coefficients, else the network's.
    correct : bool
        Error correction: the student's states as regressors. False: the teacher's.
    keep : sequence of str
        Paths of layers that stay dense (they count in the sparsity). Refused, as is `allocation`,
        with a `Convex` budget, which decides every row.
    progress : callable, optional
        Called with the path of every layer that is done.

    Returns
    -------
    SparseNetwork

    Raises
    ------
    InputError, UnknownNameError
        Bad arguments, or a target that cannot be met.
    CaptureError
        The network cannot be matched; the message names the module.

    Warns
    -----
    UserWarning
        Fewer samples (times positions) than columns in a layer, with the layers' names; a target
        that was missed by more than 0.001, because kept columns got the coefficient 0.
    """
    if target_sparsity is not None:
        check_target(target_sparsity)
    calibration = Calibration(
        net,
        batches,
        damping=damping,
        positions=positions,
        precision=precision,
        metric=metric,
        n_jobs=n_jobs,
    )
    return calibration.sparsify(target_sparsity, **options)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _first(batches: Sequence[Tensor], samples: int) -> list[Tensor]:
    """Return the first batches that hold at least so many samples, or all."""
    before = np.cumsum([0, *(len(batch) for batch in batches[:-1])])
    return [batch for batch, seen in zip(batches, before, strict=True) if seen < samples]


def _solve_layer(
    layer: Layer,
    statistics: PatchGram,
    counts: Any,
    rule: Rule,
    swaps: bool,
    polish: bool,
    damping: float,
    n_jobs: int | None,
) -> tuple[Any, LayerRecord]:
    """Solve the rows of one layer, group by group; return them with the bias, and the record."""
    free = int(layer.has_bias)
    dense = dense_rows(layer)
    size = layer.n_rows // layer.groups
    coef = np.empty_like(dense)
    record = LayerRecord(layer, statistics.n_samples)
    for g, problem in enumerate(damped_groups(layer, statistics, damping)):
        part = slice(g * size, (g + 1) * size)
        choice: Choice = rule(problem, dense[part], counts[part], free, n_jobs)
        mask, exchanges = choice.mask, np.zeros(size, np.int64)
        if swaps:
            mask, exchanges = rows.swapped(problem, mask, free, n_jobs=n_jobs)
        if polish:
            coef[part], gap = rows.polished(problem, mask, n_jobs)
        else:
            own = dense[part] if choice.coef is None else choice.coef
            coef[part], gap = np.where(mask, own, 0.0), np.full(size, np.nan)
        record.add(coef[part], choice, exchanges, gap)
    return coef, record
