"""Sparse structure selection: one scaling factor per channel, trained under an l1 penalty.

Huang and Wang 2018, "Data-driven sparse structure selection for deep neural networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cimf.methods.base import Outcome, Task
from cimf.methods.structured.channels import removable
from cimf.methods.structured.finish import finish
from cimf.methods.trained import TrainedOptions, Workshop
from cimf.network.copies import plain_copy
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.objectives import Objective
from cimf.train.training_options import Training, check_numbers


@dataclass(frozen=True, kw_only=True)
class SssOptions(TrainedOptions):
    """Options of the method "sss".

    The penalty, SGD with learning rate 0.1 and momentum 0.9, weight decay 1e-4 and batches of 128
    are those of the authors' published configuration (ResNet-50, ImageNet); its 100 epochs with
    steps are here 20 that fall as a cosine, and 10 after the removal.

    Attributes
    ----------
    penalty : float
        gamma: of the sum of the factors.
    """

    epochs: int = 20
    tune_epochs: int = 10
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    penalty: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "penalty")


class Factors(nn.Module):
    """Scaling factors of the channels of one layer, from 1 on."""

    def __init__(self, count: int, like: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.ones(count, dtype=like.dtype, device=like.device))

    def forward(self) -> Tensor:
        """Return the factors."""
        return self.values


def proximal_step(
    factors: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    rate: float,
    penalty: float,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """One modified accelerated proximal gradient step on loss + penalty * sum |factors|.

    z = factors - rate * gradient, s = soft(z, rate * penalty), v = s - factors + momentum * v; the
    new factors are s + momentum * v, and not below zero (sections 3.2 and 3.3 of the paper; the
    authors' code clips).

    Returns
    -------
    (factors, velocity)
    """
    z = factors - rate * gradient
    s = z.sign() * (z.abs() - rate * penalty).clamp_min(0.0)
    velocity = s - factors + momentum * velocity
    return (s + momentum * velocity).clamp_min(0.0), velocity


class FactorDescent(Descent):
    """The optimiser's steps on the weights, proximal steps at the same rate on the factors."""

    def __init__(
        self,
        network: nn.Module,
        factors: Sequence[Factors],
        objective: Objective,
        training: Training,
        n_samples: int,
        penalty: float,
    ) -> None:
        self.factors = [part.values for part in factors]
        own = {id(value) for value in self.factors}
        weights = [p for p in network.parameters() if id(p) not in own]
        super().__init__(network, objective, training, n_samples, weights)
        self.velocities = [torch.zeros_like(value) for value in self.factors]
        self.penalty, self.momentum = penalty, training.momentum

    def step(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """Change weights and factors once."""
        rate = self.optimizer.param_groups[0]["lr"]
        for value in self.factors:
            value.grad = None
        loss = super().step(inputs, labels)
        with torch.no_grad():
            for k, value in enumerate(self.factors):
                if value.grad is None:  # a layer that is not called in training mode
                    continue
                new, self.velocities[k] = proximal_step(
                    value, value.grad, self.velocities[k], rate, self.penalty, self.momentum
                )
                value.copy_(new)
        return loss

    def measures(self) -> dict[str, float]:
        """Return the mean factor and the share of factors that are zero."""
        values = torch.cat([value.detach() for value in self.factors])
        return {
            "mean factor": float(values.mean()),
            "zero factors": float((values == 0).double().mean()),
        }

    def state(self) -> dict[str, Any]:
        """Return also the velocities."""
        return {**super().state(), "velocities": self.velocities}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a `state`."""
        super().load(state)
        self.velocities = [
            new.to(old) for new, old in zip(state["velocities"], self.velocities, strict=True)
        ]


def prune_sss(task: Task, sparsity: float | None, options: SssOptions) -> Outcome:
    """Train weights and factors, then remove the channels of the smallest factors."""
    assert sparsity is not None  # `Method.checked` refuses it
    workshop = Workshop(task, options)
    layers = removable(task.graph, options.keep)
    network = workshop.network
    factors = []
    for layer in layers:
        part = Factors(layer.rows, next(network.parameters()))
        layer.scale(network, part)
        factors.append(part)
    objective = workshop.label_objective(network)
    descent = FactorDescent(
        network, factors, objective, options, len(workshop.data), options.penalty
    )
    settings = {"method": "sss", "penalty": options.penalty, "keep": options.keep}
    report = fit(descent, workshop.data, options, settings, "training with scaling factors")
    scores = {
        layer.path: part.values.detach().cpu() for layer, part in zip(layers, factors, strict=True)
    }
    share = report.epochs[-1].measures["zero factors"]
    note = f"{share:.1%} of the scaling factors ended at exactly zero"
    return finish(
        workshop, plain_copy(network), task.graph, layers, scores, sparsity,
        by="scaling factor", reports=[report], notes=[note],
    )  # fmt: skip
