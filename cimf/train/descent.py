"""One step on a batch, and everything that is needed to go on from there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cimf.errors import InputError
from cimf.train.objectives import Objective
from cimf.train.training_options import Training


class Descent:
    """Gradient steps on an objective. Methods that train override `step` and `measures`.

    Parameters
    ----------
    network : nn.Module
        On its device; trained in place.
    objective : (inputs, labels) -> loss
    training : Training
    n_samples : int
    groups : iterable, optional
        Parameter groups for the optimiser. Default: the parameters that require gradients.
    held : sequence of (parameter, mask)
        Entries that are set to zero after every step; as `dead_channels`.

    Raises
    ------
    InputError
        Nothing requires a gradient.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        training: Training,
        n_samples: int,
        groups: Iterable[Any] | None = None,
        held: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        self.network, self.objective, self.held = network, objective, held
        given = network.parameters() if groups is None else groups
        groups = [group for group in given if isinstance(group, dict) or group.requires_grad]
        if not groups:
            raise InputError(
                "no parameter requires a gradient: there is nothing to train. Call "
                "network.requires_grad_() first"
            )
        self.optimizer = training.optimizer_of(groups)
        self.scheduled = training.schedule != "constant"
        self.schedule = training.schedule_of(self.optimizer, n_samples) if self.scheduled else None

    def value(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """Return the objective on a batch.

        Raises
        ------
        FloatingPointError
            It is NaN or infinite; no parameter has been changed by this batch.
        """
        loss = self.objective(inputs, labels)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}")
        return loss

    def step(self, inputs: Tensor, labels: Tensor | None) -> Tensor:
        """Change the parameters once; return the loss before, detached."""
        self.optimizer.zero_grad()
        loss = self.value(inputs, labels)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for parameter, zero in self.held:
                parameter[zero] = 0.0
        self.advance()
        return loss.detach()

    def advance(self) -> None:
        """Go on to the learning rate of the next step."""
        if self.schedule is not None:
            self.schedule.step()

    def measures(self) -> dict[str, float]:
        """Return what is worth knowing after an epoch."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
