"""Pruning baselines: which columns they keep, in which numbers, and whether they refit.

All run through `cimf.methods.layered`: same calibration samples, same statistics, same topological
order, same count of non-zeros. None uses labels or gradient steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from cimf.errors import UnknownNameError
from cimf.methods.base import Method, Outcome, Task
from cimf.methods.baselines.alps import alps
from cimf.methods.baselines.fista import fista
from cimf.methods.baselines.sparsegpt import sparsegpt
from cimf.methods.layered.allocation import ALLOCATIONS, Counts
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.elimination import Groups, Matrix
from cimf.methods.layered.pattern import Pattern
from cimf.methods.layered.prune_channels import prune_channels_by_magnitude
from cimf.methods.layered.prune_layers import LayeredOptions, solve_layers, solve_pattern
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.supports import Choice, Rule, by_score, magnitude, obs, takes_groups
from cimf.methods.pruning_report import layer_weights
from cimf.statistics import Gram


@dataclass(frozen=True, kw_only=True)
class OneShotOptions(Statistics):
    """Options of a one-shot baseline.

    Attributes
    ----------
    keep : sequence of str
        Paths of layers that stay dense (they count in the sparsity).
    """

    keep: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class PatternOptions(OneShotOptions):
    """Options of a one-shot baseline that also makes N:M patterns.

    Attributes
    ----------
    structure : str, optional
        "2:4", or another "N:M", as in `LayeredOptions`.
    """

    structure: str | None = None

    @property
    def pattern(self) -> Pattern | None:
        """The N:M pattern, if there is one."""
        return None if self.structure is None else Pattern.parse(self.structure)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.pattern  # refused before any work


@dataclass(frozen=True, kw_only=True)
class MagnitudeOptions(PatternOptions):
    """Options of a magnitude baseline.

    Attributes
    ----------
    structure : str, optional
        "channels": whole channels, those whose own weights have the smallest mean square, tied ones
        together. "2:4", or another "N:M".
    """

    @property
    def pattern(self) -> Pattern | None:
        """The N:M pattern, if there is one."""
        return None if self.structure == "channels" else super().pattern


def one_shot(source: str, support: Rule, counts: str, polish: bool) -> Method:
    """Return a pruning method that is a rule for supports.

    Parameters
    ----------
    source : str
        Where it comes from.
    support : Rule
        Which columns every row keeps, given their number.
    counts : str
        "global" or "layer" (the largest weights of the network, or of each layer, decide how many
        each row keeps), "uniform" (every row the same share), or an allocation of
        `Survey.allocate`.
    polish : bool
        Least squares on the support. False: the rule's or the network's own coefficients.

    A rule that takes groups makes N:M patterns too, which decide every row; magnitude also removes
    whole channels.
    """
    known = ("global", "layer", *ALLOCATIONS)
    if counts not in known:
        raise UnknownNameError("counts", counts, known)
    run = partial(_run, support=support, counts=counts, polish=polish)
    if not takes_groups(support):
        return Method(source, run, OneShotOptions)
    options = MagnitudeOptions if support is magnitude else PatternOptions
    return Method(source, run, options, controlled=("sparsity", "pattern"))


def _run(
    task: Task,
    sparsity: float | None,
    options: OneShotOptions,
    *,
    support: Rule,
    counts: str,
    polish: bool,
) -> Outcome:
    calibration = Calibration.of(task, options.statistics)
    given: dict[str, Any] = {f.name: getattr(options, f.name) for f in fields(OneShotOptions)}
    chosen = LayeredOptions(**given, support=support, swaps=False, polish=polish)
    if isinstance(options, PatternOptions) and options.pattern is not None:
        return solve_pattern(calibration, options.pattern, chosen)
    assert sparsity is not None  # `Method.checked` refuses it
    if isinstance(options, PatternOptions) and options.structure is not None:
        return prune_channels_by_magnitude(task, sparsity, chosen, counts == "layer")
    if counts in ("global", "layer"):
        found = magnitude_counts(calibration, sparsity, options.keep, counts == "global")
    else:
        found = calibration.counts(sparsity, counts, options.keep)
    return solve_layers(calibration, found, chosen)


def magnitude_counts(
    calibration: Calibration, sparsity: float, keep: Sequence[str], one_threshold: bool
) -> Counts:
    """Return how many weights each row keeps if the largest ones of the network are kept.

    Parameters
    ----------
    one_threshold : bool
        One threshold for the whole network, or one per layer at equal shares.

    Raises
    ------
    InputError
        The layers in `keep` have more weights than the target leaves.
    """
    graph = calibration.graph
    matrices = layer_weights(graph.original)
    sizes = [matrices[layer.path].double().cpu().flatten(1).abs().numpy() for layer in graph.layers]
    open_ = [k for k, layer in enumerate(graph.layers) if layer.path not in keep]
    left = calibration.left(sparsity, keep)
    left -= sum(size.size for k, size in enumerate(sizes) if k not in open_)
    counts = [np.full(len(size), size.shape[1]) for size in sizes]
    pool = [open_] if one_threshold else [[k] for k in open_]
    free = sum(sizes[k].size for k in open_)
    budgets = np.diff([round(left * done / free) for done in np.cumsum([0, *(
        sum(sizes[k].size for k in group) for group in pool)])])  # fmt: skip
    for group, budget in zip(pool, budgets, strict=True):
        flat = np.concatenate([sizes[k].ravel() for k in group])
        kept = np.zeros(flat.size, dtype=bool)
        kept[np.argsort(-flat, kind="stable")[:budget]] = True
        start = 0
        for k in group:
            part = kept[start : start + sizes[k].size].reshape(sizes[k].shape)
            counts[k] = part.sum(axis=1)
            start += sizes[k].size
    return counts


def wanda(
    gram: Gram,
    dense: Matrix,
    counts: np.ndarray,
    n_free: int,
    n_jobs: int | None = None,
    groups: Groups | None = None,
) -> Choice:
    """Keep the largest |w_j| ||x_j|| of every row."""
    width = dense.shape[1] - n_free
    norm = np.sqrt(np.diagonal(gram.gram)[:width])
    return by_score(np.abs(dense[:, :width]) * norm, counts, n_free, groups)


BASELINES: dict[str, Method] = {
    "magnitude-global": one_shot(
        "Han et al. 2015, Learning both weights and connections for efficient neural networks",
        magnitude, "global", False,
    ),
    "magnitude-layer": one_shot(
        "Han et al. 2015, Learning both weights and connections for efficient neural networks",
        magnitude, "layer", False,
    ),
    "magnitude-polish": one_shot(
        "supports as magnitude per layer, least squares on the student's states",
        magnitude, "layer", True,
    ),
    "wanda": one_shot(
        "Sun et al. 2023, A simple and effective pruning approach for large language models",
        wanda, "uniform", False,
    ),
    "fista": one_shot(
        "Zhao et al. 2024, A convex-optimization based layer-wise post-training pruner",
        fista, "uniform", False,
    ),
    "sparsegpt": one_shot(
        "Frantar and Alistarh 2023, SparseGPT: massive language models can be accurately pruned "
        "in one shot",
        sparsegpt, "uniform", False,
    ),
    "alps": one_shot(
        "Meng et al. 2024, ALPS: improved optimization for highly sparse one-shot pruning",
        alps, "uniform", False,
    ),
    "obs": one_shot(
        "Frantar and Alistarh 2022, Optimal Brain Compression (exact row-wise elimination)",
        obs, "uniform", True,
    ),
    "obs-error": one_shot(
        "Optimal Brain Compression, section 5: loss curves of all rows in one greedy allocation; "
        "errors divided by the layer's variance",
        obs, "error", True,
    ),
}  # fmt: skip
