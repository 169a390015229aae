"""States of an implicit teacher: its own equilibria, where a network's come from a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cimf.errors import CaptureError
from cimf.model import ImplicitModel
from cimf.model.module import ImplicitModule
from cimf.network.batches import iter_batches
from cimf.network.capture import iter_states
from cimf.network.state_blocks import apply_blocks
from cimf.network.states import Reconstruction, States

# Samples whose equilibria are solved together.
_PIECE = 1024


def teacher_states(teacher: Any, batches: Any) -> Iterator[States]:
    """Yield the states of a network, or of an implicit model as a module, batch by batch.

    Raises
    ------
    CaptureError
        As `iter_states`; an equilibrium that is not reached.
    InputError
        As `iter_states` and `ImplicitModel.inputs`.
    """
    if isinstance(teacher, ImplicitModule):
        return _equilibria(ImplicitModel.from_module(teacher), batches)
    return iter_states(teacher, batches)


def _equilibria(model: ImplicitModel, batches: Any) -> Iterator[States]:
    for batch in iter_batches(batches, torch.float64, "input", piece=_PIECE):
        U = model.inputs(batch.flatten(1).numpy().T)
        found = model.equilibrium(U)
        if not found.converged.all():
            raise CaptureError(
                f"{int((~found.converged).sum())} of {U.shape[1]} samples have no equilibrium "
                f"to {found.tol:g} in the model that is to be matched: its states are unknown"
            )
        Z = model.A @ found.X + model.B @ U
        off = np.abs(apply_blocks(model.blocks, Z) - found.X).max(initial=0.0)
        size = max(float(np.abs(found.X).max(initial=0.0)), 1.0)
        errors = Reconstruction(activation=float(off) / size, output=0.0, affinity=0.0,
                                independence=0.0)  # fmt: skip
        yield States(U, found.X, Z, model.output(found.X, U), model.blocks, model.bias, errors)
