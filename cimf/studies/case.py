"""A trained network with its samples: what a study begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cimf.methods.base import Task


@dataclass(frozen=True)
class Case:
    """A trained network, the samples that a method may see, and those that it is judged on.

    Attributes
    ----------
    network : nn.Module
    calibration : (m, ...)
        Inputs without labels.
    inputs, labels : (t, ...), (t,)
        The test set.
    data : dict
        Where the samples come from, for the manifest.
    train_labels : (m,), optional
        Of the calibration samples; they reach the methods that train on them alone.
    """

    network: nn.Module
    calibration: Tensor
    inputs: Tensor
    labels: Tensor
    data: dict[str, Any]
    train_labels: Tensor | None = None

    def task(self, samples: int | None, labelled: bool) -> Task:
        """Return the task on the first samples, with their labels where a method needs them."""
        inputs = self.calibration[:samples]
        if not labelled or self.train_labels is None:
            return Task(self.network, inputs)
        return Task(self.network, inputs, [(inputs, self.train_labels[:samples])])

    def with_tests(self, tests: int | None) -> Case:
        """Return the case with the first so many test samples."""
        return replace(self, inputs=self.inputs[:tests], labels=self.labels[:tests])

    @torch.no_grad()
    def classes(self, net: nn.Module, batch: int = 100) -> Tensor:
        """Return the class that a network gives each test sample, (t,)."""
        return torch.cat([net(u).argmax(1) for u in self.inputs.split(batch)])

    @cached_property
    def dense_classes(self) -> Tensor:
        """What the trained network says, (t,)."""
        return self.classes(self.network)

    @property
    def dense(self) -> float:
        """Accuracy of the trained network."""
        return share(self.dense_classes == self.labels)


def share(true: Tensor) -> float:
    """Return the share of true entries."""
    return float(true.double().mean())
