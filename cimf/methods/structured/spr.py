"""Structured perspective regularisation: training under the relaxed number of channels.

Cacciola, Frangioni, Li and Lodi 2022, "Deep neural networks pruning via the structured perspective
regularization".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cimf.errors import InputError
from cimf.methods.base import Outcome, Task
from cimf.methods.structured.channels import removable
from cimf.methods.structured.finish import finish
from cimf.methods.trained import TrainedOptions, Workshop
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.training_options import check_numbers


@dataclass(frozen=True, kw_only=True)
class SprOptions(TrainedOptions):
    """Options of the method "spr".

    Attributes
    ----------
    penalty : float
        Of the mean of the regulariser over the groups, weighted by their size. 0.1 is the default
        of the authors' code.
    alpha : float
        In (0, 1): the share of the squares beside that of the number of channels. 0.5 is ours: the
        paper tunes it.
    bound : float
        |w| <= bound * (largest |w| of the layer in the given network): the authors take the bounds
        from a trained network.
    """

    epochs: int = 20
    tune_epochs: int = 10
    penalty: float = 0.1
    alpha: float = 0.5
    bound: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "penalty")
        check_numbers(self, "alpha", "bound", positive=True)
        if self.alpha >= 1.0:
            raise InputError(f"alpha must be in (0, 1), got {self.alpha!r}")


def demands(groups: Tensor, alpha: float, bound: float) -> Tensor:
    """Return what each group (r, k) asks of its indicator, (r,): 1 and more if it is to stay.

    max(||w||_inf / bound, sqrt(alpha / (1 - alpha)) ||w||_2).
    """
    slope = (alpha / (1.0 - alpha)) ** 0.5
    size = torch.linalg.vector_norm(groups, dim=1)
    return torch.maximum(groups.abs().amax(1) / bound, slope * size)


def indicators(groups: Tensor, alpha: float, bound: float) -> Tensor:
    """Return the best indicator y in [0, 1] of each group (r, k), (r,): its demand, at most 1."""
    return demands(groups, alpha, bound).clamp_max(1.0)


def perspective(groups: Tensor, alpha: float, bound: float) -> Tensor:
    """Return alpha ||w||_2^2 / y + (1 - alpha) y of each group (r, k), (r,).

    The loss "structured-perspective" of `formulations`, without the weight and the size of the
    group, and with y = 1 where that is infinite (an entry beyond the bound).
    """
    y = indicators(groups, alpha, bound)
    ratio = groups.square().sum(1) / y.clamp_min(torch.finfo(groups.dtype).tiny)
    return alpha * ratio + (1.0 - alpha) * y


def prune_spr(task: Task, sparsity: float | None, options: SprOptions) -> Outcome:
    """Train under the regulariser, then remove the channels of the smallest demands.

    Not of the smallest indicators: 95 % of those of a trained ResNet-20 are 1 at alpha = 0.5, and
    equals would be removed layer by layer from the first one on.
    """
    assert sparsity is not None  # `Method.checked` refuses it
    workshop = Workshop(task, options)
    layers = removable(task.graph, options.keep)
    network, alpha = workshop.network, options.alpha
    with torch.no_grad():
        largest = [float(layer.flat(network).abs().max()) for layer in layers]
    bounds = [options.bound * (value or 1.0) for value in largest]
    fit_labels = workshop.label_objective(network)

    def objective(inputs: Tensor, labels: Tensor | None) -> Tensor:
        total, count = fit_labels(inputs, labels), 0
        costs = []
        for layer, bound in zip(layers, bounds, strict=True):
            groups = layer.flat(network)
            costs.append(groups.shape[1] * perspective(groups, alpha, bound).sum())
            count += groups.numel()
        return total + options.penalty * torch.stack(costs).sum() / count

    descent = Descent(network, objective, options, len(workshop.data))
    settings = {
        "method": "spr", "penalty": options.penalty, "alpha": alpha, "bounds": bounds,
        "keep": options.keep,
    }  # fmt: skip
    report = fit(descent, workshop.data, options, settings, "training with the perspective")
    with torch.no_grad():
        scores = {
            layer.path: demands(layer.flat(network), alpha, bound).cpu()
            for layer, bound in zip(layers, bounds, strict=True)
        }
    return finish(
        workshop, network, task.graph, layers, scores, sparsity,
        by="indicator of the relaxation (before its cut at 1)", reports=[report],
    )  # fmt: skip
