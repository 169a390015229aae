"""What a loss reached: the part of a report that the plain ball does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from cimf.runs.numbers import shortest


class Found(Protocol):
    """What the report says about a loss."""

    @property
    def lam(self) -> float: ...  # noqa: D102

    def columns(self) -> dict[str, Any]:
        """Return its numbers for a table."""
        ...

    def __str__(self) -> str: ...


@dataclass(frozen=True)
class FoundSensitivity:
    """What the sensitivity objective reached, in sums over the outputs.

    Attributes
    ----------
    network, model : float
        1' S u: the most by which the outputs can move, summed, when every input j moves by u_j.
    lam : float
        The multiplier of the sensitivity; 0 where the network itself is within the budget.
    rounds : int
        Rounds over the blocks of rows.
    shortened : int
        Rows whose last step was shortened, because the whole of it would have been worse.
    stationarity : float
        The largest relative gap of a row when its problem is stated once more at the model that
        was reached: how far from a point where no block of rows can gain.
    """

    network: float
    model: float
    lam: float
    rounds: int
    shortened: int
    stationarity: float

    def columns(self) -> dict[str, Any]:
        """Return its numbers for a table."""
        return {"loss": "sensitivity", "lam": self.lam, "loss_value": self.model}

    def __str__(self) -> str:
        return (
            f"sensitivity   {self.model:.6g}, {self.model / self.network:.2%} of the network's "
            f"{self.network:.6g} (multiplier {self.lam:.3g}, {self.rounds} rounds, "
            f"{self.shortened} rows with a shortened step, gap at the end "
            f"{self.stationarity:.1e})"
        )


@dataclass(frozen=True)
class FoundLoss:
    """What a loss of `formulations` reached, in the units in which the rows were solved.

    Attributes
    ----------
    name : str
    value : float
        The loss of all rows of (A, B), the bias left out; without its multiplier.
    lam : float
        The multiplier.
    sets : tuple of str
        The names of the sets.
    inside : int or None
        Rows that the ball does not hold back; None where there is none.
    whole : bool
        The rows were coupled and solved as one problem: they share their certificate.
    fit : str
        The data fit; empty for least squares.
    """

    name: str
    value: float
    lam: float
    sets: tuple[str, ...]
    inside: int | None
    whole: bool
    fit: str = ""

    def columns(self) -> dict[str, Any]:
        """Return its numbers for a table."""
        fit = {"fit": self.fit} if self.fit else {}
        return {"loss": self.name, "lam": self.lam, "loss_value": self.value, **fit}

    def __str__(self) -> str:
        return (
            f"loss          {self.name} = {self.value:.6g}, multiplier {shortest(self.lam)}"
            + (f", fit {self.fit}" if self.fit else "")
            + (f", in {', '.join(self.sets)}" if self.sets else "")
            + ("" if self.inside is None else f"; {self.inside} rows inside the ball")
            + ("; all rows solved together, with one certificate" if self.whole else "")
        )
