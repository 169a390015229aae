"""Adversarial training with labels: what robust methods without labels are measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cimf.errors import InputError
from cimf.network.copies import plain_copy
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.objectives import label_loss
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training

# Step in radii, from a random start: Wong, Rice, Kolter, Fast is better than free (2020).
_STEP = 1.25


def train_adversarially(
    network: nn.Module, batches: Any, eps: float, training: Training | None = None
) -> nn.Module:
    """Return a copy of a network, trained on the worst inputs that one step finds.

    Every batch is moved to a random point of its l-infinity ball and from there one signed step of
    1.25 eps up the loss, back into the ball and into the range of the inputs (Wong, Rice and
    Kolter, Fast is better than free, 2020).

    Parameters
    ----------
    network : nn.Module
        What training begins with; not modified.
    batches : iterable of (input, label) pairs
    eps : float
        Radius, > 0, in the units of the inputs.
    training : Training, optional
        Default: 10 epochs of AdamW.

    Raises
    ------
    InputError
        As `TrainingData.read`; eps that is not positive.
    TrainingError
        As `fit`.
    """
    if not 0.0 < eps < float("inf"):
        raise InputError(f"eps must be a positive number, got {eps!r}")
    training = training or Training(optimizer="adamw", learning_rate=5e-3, weight_decay=1e-4)
    student = plain_copy(network)
    data = TrainingData.read(batches, next(student.parameters()).dtype, labelled=True)
    data.check(student)
    student.to(training.where()).train()
    low, high = float(data.inputs.min()), float(data.inputs.max())

    def objective(inputs: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        moved = (inputs + eps * (2.0 * torch.rand_like(inputs) - 1.0)).clamp(low, high)
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(label_loss(student(moved), labels), moved)
        step = (moved.detach() - inputs + _STEP * eps * slope.sign()).clamp(-eps, eps)
        return label_loss(student((inputs + step).clamp(low, high)), labels)

    fit(Descent(student, objective, training, len(data)), data, training, {"eps": eps}, "training")
    return student.cpu().eval()
