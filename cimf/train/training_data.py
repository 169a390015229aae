"""Training samples: inputs, with labels where a loss needs them, checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cimf.errors import InputError
from cimf.network.batches import as_batches, as_list, one_tensor, run


@dataclass(frozen=True)
class TrainingData:
    """Samples on the CPU.

    Attributes
    ----------
    inputs : (m, ...)
    labels : (m,) int64 classes, or (m, ...) targets of the network's output; or None
    """

    inputs: Tensor
    labels: Tensor | None = None

    @classmethod
    def read(cls, batches: Any, dtype: torch.dtype, *, labelled: bool) -> TrainingData:
        """Return batches as one record; labels are looked at only where they are asked for.

        Raises
        ------
        InputError
            As `cimf.network.batches.as_batches`; labels that are missing, of another number than
            the inputs, NaN, or of different shapes.
        """
        given = as_list("training", batches)
        inputs = torch.cat(one_tensor(as_batches(given, dtype, "training"), "training"))
        return cls(inputs, _labels(given, len(inputs), dtype) if labelled else None)

    def __len__(self) -> int:
        return len(self.inputs)

    def digest(self) -> str:
        """Return the SHA-256 of the samples."""
        found = hashlib.sha256()
        for value in (self.inputs, self.labels):
            if value is not None:
                found.update(str((value.dtype, tuple(value.shape))).encode())
                found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def check(self, network: nn.Module) -> None:
        """Refuse labels that do not fit the outputs of a network, on the samples' device.

        Raises
        ------
        InputError
            The network fails on the samples; it returns no tensor with the samples first; classes
            that its outputs do not name; targets of another shape.
        """
        mode = network.training
        outputs = run(network.eval(), self.inputs[:2], "training")
        network.train(mode)
        if not isinstance(outputs, Tensor) or len(outputs) != len(self.inputs[:2]):
            raise InputError("the network must return one tensor with the samples first")
        shape = tuple(outputs.shape[1:])
        if self.labels is None:
            return
        if self.labels.is_floating_point():
            if shape != tuple(self.labels.shape[1:]):
                raise InputError(
                    f"the labels have shape {tuple(self.labels.shape[1:])} per sample, the "
                    f"network's outputs {shape}"
                )
        elif not shape or not 0 <= int(self.labels.min()) <= int(self.labels.max()) < shape[0]:
            raise InputError(
                f"labels go from {self.labels.min()} to {self.labels.max()}; the network returns "
                f"{shape} per sample, and so names the classes 0 to {(shape or (1,))[0] - 1}"
            )


def _labels(given: Sequence[Any], n_samples: int, dtype: torch.dtype) -> Tensor:
    if not all(isinstance(batch, tuple | list) and len(batch) == 2 for batch in given):
        raise InputError(
            "training on labels needs (input, label) pairs; without labels, give a teacher"
        )
    try:
        parts = [torch.as_tensor(np.asarray(y.cpu() if isinstance(y, Tensor) else y))
                 for _, y in given]  # fmt: skip
        labels = torch.cat(parts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the labels cannot be read as one tensor per batch: {error}") from error
    if len(labels) != n_samples:
        raise InputError(f"{len(labels)} labels for {n_samples} training samples")
    if labels.is_complex():
        raise InputError("the labels are complex numbers")
    if not labels.is_floating_point():
        if labels.ndim != 1:
            raise InputError(
                f"whole-number labels must be one class per sample, got {labels.shape}"
            )
        return labels.long()
    if not torch.isfinite(labels).all():
        raise InputError("the labels hold NaN or infinite values")
    return labels.to(dtype)
