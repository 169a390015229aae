"""What a training run did, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cimf.runs.terminal import duration

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes
    ----------
    number, of : int
        From 1; all epochs.
    loss : float
        Mean over the samples, each at the parameters of its step.
    seconds : float
        Of this epoch.
    left : float
        Seconds that the epochs to come will take at this pace.
    measures : mapping of str to float
        What the method measured at its end.
    """

    number: int
    of: int
    loss: float
    seconds: float
    left: float
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingReport:
    """A training run.

    Attributes
    ----------
    epochs : tuple of Epoch
    samples : int
    labels : bool
        Whether labels were used.
    device : str
    settings : mapping
        The options that decide the result.
    notes : tuple of str
    """

    epochs: tuple[Epoch, ...]
    samples: int
    labels: bool
    device: str
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all epochs, those before an interruption included."""
        return sum(epoch.seconds for epoch in self.epochs)

    def table(self) -> pd.DataFrame:
        """Return one row per epoch: epoch, loss, seconds and what the method measured."""
        import pandas as pd

        return pd.DataFrame(
            {"epoch": e.number, "loss": e.loss, "seconds": e.seconds, **e.measures}
            for e in self.epochs
        )

    def __str__(self) -> str:
        first, last = self.epochs[0], self.epochs[-1]
        lines = [
            f"trained {len(self.epochs)} epochs on {self.samples:,} samples "
            f"{'with' if self.labels else 'without'} labels in {duration(self.seconds)} "
            f"({self.device}): loss {first.loss:.4g} in the first, {last.loss:.4g} in the last"
        ]
        if last.measures:
            found = ", ".join(f"{key} {value:.4g}" for key, value in last.measures.items())
            lines.append(f"at the end: {found}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
