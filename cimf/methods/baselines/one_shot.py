"""Pruning baselines: which columns they keep, in which numbers, and whether they refit.

All run through `cimf.methods.layered`: same calibration samples, same statistics, same topological
order, same count of non-zeros. None uses labels or gradient steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cimf.errors import InputError
from cimf.methods.baselines.fista import fista
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.allocation import Counts
from cimf.methods.layered.calibration import Calibration, SparseNetwork
from cimf.methods.layered.checks import check_target
from cimf.methods.layered.elimination import Matrix
from cimf.methods.layered.supports import Choice, Rule, magnitude, obs
from cimf.network.layers import LayerGraph
from cimf.statistics import Gram


@dataclass(frozen=True)
class Baseline:
    """A pruning method.

    Attributes
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
    """

    source: str
    support: Rule
    counts: str
    polish: bool

    def run(
        self, calibration: Calibration, target_sparsity: float, *, keep: tuple[str, ...] = ()
    ) -> SparseNetwork:
        """Return the pruned network; `keep` names layers that stay dense, as in the paper cited.

        Raises
        ------
        InputError, UnknownNameError
            A target that cannot be met; an unknown layer in `keep`.
        """
        check_target(target_sparsity)
        calibration.named(keep)
        if self.counts in ("global", "layer"):
            counts = magnitude_counts(
                calibration.graph, target_sparsity, keep, self.counts == "global"
            )
        else:
            counts = calibration.counts(target_sparsity, self.counts, keep)
        return calibration.sparsify(
            target_sparsity,
            support=self.support,
            allocation=counts,
            swaps=False,
            polish=self.polish,
            correct=True,
        )


def magnitude_counts(
    graph: LayerGraph, target_sparsity: float, keep: tuple[str, ...], one_threshold: bool
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
    sizes = [
        graph.original.get_parameter(f"{layer.path}.weight")
        .detach()
        .double()
        .cpu()
        .flatten(1)
        .abs()
        .numpy()
        for layer in graph.layers
    ]
    open_ = [k for k, layer in enumerate(graph.layers) if layer.path not in keep]
    total = sum(size.size for size in sizes)
    left = round((1.0 - target_sparsity) * total)
    left -= sum(size.size for k, size in enumerate(sizes) if k not in open_)
    if left < 0:
        raise InputError(
            f"the layers kept dense have more weights than {target_sparsity:.1%} leaves"
        )
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
    gram: Gram, dense: Matrix, counts: np.ndarray, n_free: int, n_jobs: int | None = None
) -> Choice:
    """Keep the largest |w_j| ||x_j|| of every row."""
    width = dense.shape[1] - n_free
    norm = np.sqrt(np.diagonal(gram.gram)[:width])
    return Choice(rows.largest(np.abs(dense[:, :width]) * norm, counts, n_free))


BASELINES: dict[str, Baseline] = {
    "magnitude-global": Baseline(
        "Han et al. 2015, Learning both weights and connections for efficient neural networks",
        magnitude, "global", False,
    ),
    "magnitude-layer": Baseline(
        "Han et al. 2015, Learning both weights and connections for efficient neural networks",
        magnitude, "layer", False,
    ),
    "magnitude-polish": Baseline(
        "supports as magnitude per layer, least squares on the student's states",
        magnitude, "layer", True,
    ),
    "wanda": Baseline(
        "Sun et al. 2023, A simple and effective pruning approach for large language models",
        wanda, "uniform", False,
    ),
    "fista": Baseline(
        "Zhao et al. 2024, A convex-optimization based layer-wise post-training pruner",
        fista, "uniform", False,
    ),
    "obs": Baseline(
        "Frantar and Alistarh 2022, Optimal Brain Compression (exact row-wise elimination)",
        obs, "uniform", True,
    ),
    "obs-error": Baseline(
        "Optimal Brain Compression, section 5: loss curves of all rows in one greedy allocation; "
        "errors divided by the layer's variance",
        obs, "error", True,
    ),
}  # fmt: skip
