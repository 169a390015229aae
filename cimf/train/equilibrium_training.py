"""Training an implicit model through its equilibrium, from nothing or from a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cimf.errors import InputError
from cimf.model import ImplicitModel
from cimf.model.module import ImplicitModule
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.objectives import label_loss
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training
from cimf.train.training_report import TrainingReport


def train_implicit(
    model: ImplicitModel,
    batches: Any,
    kappa: float = 0.95,
    *,
    keep_pattern: bool = False,
    training: Training | None = None,
) -> tuple[ImplicitModel, TrainingReport]:
    """Return a model trained on labels, well-posed after every step: ||A||_inf <= kappa.

    Gradients go through the equilibrium by the implicit function theorem (`ImplicitModule`); after
    every step the rows of A are projected onto the l1 ball of radius kappa, in float64.

    Parameters
    ----------
    model : ImplicitModel
        What training begins with; `random_model` for a start from nothing. Not modified.
    batches : iterable of (input, label) pairs
        Inputs (b, ...), flattened; labels (b,) of classes.
    kappa : float
        In (0, 1), so that the equilibrium is unique for 1-Lipschitz activations.
    keep_pattern : bool
        Zeros of the matrices stay zeros.
    training : Training, optional
        Default: 10 epochs of Adam.

    Raises
    ------
    InputError
        kappa outside of (0, 1), an activation that is not 1-Lipschitz, as `TrainingData.read`.
    TrainingError
        As `fit`.
    """
    if not 0.0 < kappa < 1.0:
        raise InputError(f"kappa must be in (0, 1), got {kappa!r}: the equilibrium is then unique")
    for block in model.blocks:
        if block.activation.lipschitz > 1.0:
            raise InputError(
                f"block {block.name!r} has activation {block.activation}, whose slope exceeds 1: "
                "||A||_inf <= kappa does not make the equilibrium unique"
            )
    training = training or Training()
    module = model.to_module()
    assert isinstance(module, ImplicitModule)
    data = TrainingData.read(batches, torch.float64, labelled=True)
    data = TrainingData(data.inputs.flatten(1), data.labels)
    data.check(module)
    module.to(training.where()).requires_grad_()
    zeros = [(p, p.detach() == 0) for p in module.parameters()] if keep_pattern else []

    def objective(inputs: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return label_loss(module(inputs), labels)

    descent = _Projected(module, objective, training, len(data), held=zeros)
    descent.kappa = kappa
    descent.project()
    report = fit(descent, data, training, {"kappa": kappa, "keep_pattern": keep_pattern})
    return ImplicitModel.from_module(module.requires_grad_(False)), report


def random_model(
    n_states: int, n_inputs: int, n_outputs: int, *, activation: str = "relu", seed: int = 0
) -> ImplicitModel:
    """Return a model to begin training with: uniform entries in +- 1 / sqrt(columns), a bias.

    A has all entries and ||A||_inf of about sqrt(n) / 2; `train_implicit` projects it.
    """
    rng = np.random.default_rng(seed)

    def uniform(rows: int, columns: int) -> Any:
        return rng.uniform(-1, 1, size=(rows, columns)) / np.sqrt(max(columns, 1))

    p = n_inputs + 1
    return ImplicitModel(
        uniform(n_states, n_states), uniform(n_states, p), uniform(n_outputs, n_states),
        np.zeros((n_outputs, p)), activation, bias=True,
    )  # fmt: skip


class _Projected(Descent):
    """Steps that end with the rows of A inside the l1 ball."""

    kappa = 1.0

    def step(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        loss = super().step(inputs, labels)
        self.project()
        return loss

    @torch.no_grad()
    def project(self) -> None:
        A = self.network.get_parameter("A")
        A.copy_(onto_l1_ball(A, self.kappa))


def onto_l1_ball(rows: Tensor, radius: float) -> Tensor:
    """Return the nearest point of the l1 ball to every row (r, n), by sorting.

    Duchi, Shalev-Shwartz, Singer and Chandra, Efficient projections onto the l1-ball (2008): the
    entries shrink by the theta for which the l1 norm is the radius. Entries that were zero stay.
    """
    size = rows.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    theta = (ordered.cumsum(1) - radius) / count
    last = (ordered > theta).sum(1, keepdim=True).clamp(min=1)
    shrunk = (size - theta.gather(1, last - 1)).clamp(min=0.0)
    inside = size.sum(1, keepdim=True) <= radius
    return torch.where(inside, rows, rows.sign() * shrunk)
