"""Losses of a batch: labels, a teacher's outputs, a teacher's states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cimf.network.hooks import hooked

Objective = Callable[[Tensor, Tensor | None], Tensor]
"""(inputs (b, ...), labels or None) -> loss, on the device of the network."""


def label_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of classes (b,), or the mean squared error of real targets."""
    if labels.is_floating_point():
        return functional.mse_loss(outputs, labels)
    return functional.cross_entropy(outputs, labels)


def distillation_loss(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(outputs / T)), the mean over the batch.

    Classes along axis 1. T^2 keeps the size of the gradients (Hinton, Vinyals and Dean 2015).
    """
    found = (outputs / temperature).log_softmax(1)
    wanted = (teacher / temperature).log_softmax(1)
    divergence = functional.kl_div(found, wanted, reduction="sum", log_target=True)
    return temperature**2 * divergence * outputs.shape[1] / outputs.numel()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error over the variance of what is wanted."""
    spread = wanted.var(unbiased=False)
    return functional.mse_loss(found, wanted) / spread.clamp_min(torch.finfo(wanted.dtype).tiny)


class Recorder:
    """The outputs of some modules at the last call of a network.

    Parameters
    ----------
    paths : sequence of str
        Of modules that the network calls once.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        self.values: dict[str, Tensor] = {}
        self._sites = [(path, network.get_submodule(path)) for path in paths]

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Record calls within the block."""

        def keep(path: str) -> Any:
            # A copy: an activation in place would overwrite it.
            return lambda _module, _inputs, output: self.values.__setitem__(path, output.clone())

        hooks = [module.register_forward_hook(keep(path)) for path, module in self._sites]
        with hooked(hooks):
            yield self.values


class StateMatching:
    """Mean over layers of the relative error of the pre-activations, and that of the outputs.

    Parameters
    ----------
    student, teacher : nn.Module
        Of one architecture.
    paths : sequence of str
        Modules whose outputs are the states: a layer, or the batch norm behind it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, paths: Sequence[str]) -> None:
        self.student, self.teacher = student, teacher
        self._own, self._wanted = Recorder(student, paths), Recorder(teacher, paths)

    def __call__(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the loss of a batch; labels are not looked at."""
        with torch.no_grad(), self._wanted.recording() as wanted:
            target = self.teacher(inputs.clone())
        with self._own.recording() as own:
            outputs = self.student(inputs)
        errors = [relative_error(own[path], wanted[path]) for path in wanted]
        return torch.stack([*errors, relative_error(outputs, target)]).mean()
