"""How a network is trained, as one record: epochs, batches, optimiser, schedule, seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from cimf.errors import InputError, UnknownNameError
from cimf.train.training_report import Epoch

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_OPTIMIZERS: Mapping[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
_SCHEDULES = ("constant", "cosine", "one-cycle", "steps")
# Fields that do not decide what is computed.
_ASIDE = ("checkpoint", "on_epoch")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of everything that trains.

    Attributes
    ----------
    epochs, batch_size : int
    optimizer : str
        "adam", "adamw" or "sgd" (with `momentum`).
    learning_rate, momentum, weight_decay : float
    schedule : str
        How the learning rate goes, step by step: "constant"; "cosine" to zero; "one-cycle" (the
        learning rate is its peak; Smith and Topin 2018); "steps": times `factor` after each epoch
        of `milestones`.
    milestones : tuple of int
    factor : float
    seed : int
        Of the order of the samples, the augmentation and whatever is random in the network; the
        global random state is neither read nor changed.
    augment : (inputs (b, ...), torch.Generator) -> inputs, optional
        Applied to every batch; `flips_and_shifts` for images.
    device : str, optional
        Default: a GPU where there is one.
    checkpoint : path, optional
        File that is replaced atomically after every epoch. Where it exists, training continues
        from it, to the same bits on one thread; that of another run is refused.
    on_epoch : (Epoch) -> None, optional
        Called after every epoch.

    Raises
    ------
    InputError, UnknownNameError
        A value that cannot be right.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    seed: int = 0
    augment: Augmentation | None = None
    device: str | None = None
    checkpoint: str | Path | None = None
    on_epoch: Callable[[Epoch], None] | None = None

    def __post_init__(self) -> None:
        check_whole(self, 1, "epochs", "batch_size")
        check_whole(self, 0, "seed")
        check_numbers(self, "learning_rate", "factor", positive=True)
        check_numbers(self, "weight_decay")
        if not isinstance(self.momentum, Real) or not 0.0 <= float(self.momentum) < 1.0:
            raise InputError(f"momentum must be in [0, 1), got {self.momentum!r}")
        if self.optimizer not in _OPTIMIZERS:
            raise UnknownNameError("optimizer", self.optimizer, _OPTIMIZERS)
        if self.schedule not in _SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, _SCHEDULES)
        for name in ("augment", "on_epoch"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise InputError(f"{name} must be a function, got {getattr(self, name)!r}")
        if (self.schedule == "steps") != bool(self.milestones):
            raise InputError(
                'schedule="steps" and milestones, the epochs after which the learning rate falls, '
                "go together"
            )
        self.where()

    def where(self) -> torch.device:
        """Return the device.

        Raises
        ------
        InputError
            There is no such device.
        """
        try:
            device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=device)
        except Exception as error:  # torch raises many kinds
            raise InputError(f"device {self.device!r} cannot be used: {error}") from error
        return device

    def batches(self, n_samples: int) -> int:
        """Return the steps of one epoch."""
        return len(cut(torch.empty(n_samples), self.batch_size))

    def optimizer_of(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimiser of parameters, or of groups with settings of their own."""
        momentum = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        made: torch.optim.Optimizer = _OPTIMIZERS[self.optimizer](
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, **momentum
        )
        return made

    def schedule_of(self, optimizer: torch.optim.Optimizer, n_samples: int) -> Any:
        """Return the schedule of an optimiser; its `step` is called after every batch."""
        batches = self.batches(n_samples)
        steps = batches * self.epochs
        if self.schedule == "one-cycle":
            peak = [group["lr"] for group in optimizer.param_groups]
            return lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)
        if self.schedule == "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        falls = [batches * epoch for epoch in self.milestones]
        return lr_scheduler.MultiStepLR(optimizer, falls, self.factor)

    def settings(self) -> dict[str, Any]:
        """Return what decides the result, beside network and data."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ASIDE}
        return {key: identity(value) if callable(value) else value for key, value in values.items()}


def cut(index: Tensor, size: int) -> list[Tensor]:
    """Return batches of an order of samples; never one of a single sample behind others.

    Batch norms in training refuse a single sample.
    """
    parts = list(index.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def identity(function: Any) -> str:
    """Return what identifies a function, or a record that can be called, between runs."""
    return str(getattr(function, "__qualname__", None) or repr(function))


def check_whole(record: Any, least: int, *names: str) -> None:
    """Refuse options of a record that are no whole numbers of at least so much.

    Raises
    ------
    InputError
    """
    for key in names:
        value = getattr(record, key)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise InputError(f"{key} must be a whole number >= {least}, got {value!r}")


def check_numbers(record: Any, *names: str, positive: bool = False) -> None:
    """Refuse options of a record that are no finite numbers >= 0, or > 0.

    Raises
    ------
    InputError
    """
    for key in names:
        value = getattr(record, key)
        good = isinstance(value, Real) and 0.0 <= float(value) < float("inf")
        if not good or (positive and value == 0):
            least = "> 0" if positive else ">= 0"
            raise InputError(f"{key} must be a number {least}, got {value!r}")
