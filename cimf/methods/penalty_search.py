"""A penalty that just meets a budget: what the budget is on falls as the penalty grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from cimf.errors import InputError


class Penalised(Protocol):
    """What a penalty lam leads to, and its share of the budget, `total`."""

    @property
    def lam(self) -> float: ...  # noqa: D102

    @property
    def total(self) -> float: ...  # noqa: D102


Found = TypeVar("Found", bound=Penalised)

_TRIES = 40


def within(
    fit: Callable[[float], Found], budget: float, lam: float, close: float, stride: float
) -> Found:
    """Return what meets the budget from below, within the share `close` of it or as near as can be.

    Parameters
    ----------
    fit : lam -> Penalised
        Its `total` falls to below the budget as lam grows.
    lam, stride : float
        The first one, and the factor by which it changes until there is one on either side. A
        large one first, because sparse rows are cheap to solve; then log total is interpolated.

    Raises
    ------
    InputError
        No penalty meets the budget.
    """
    found = fit(lam)
    below = above = None
    for _ in range(_TRIES):
        if found.total <= budget:
            below = found if below is None or found.total >= below.total else below
            if found.total >= (1.0 - close) * budget:
                break
        else:
            above = found
        if below is not None and above is not None:
            if below.lam <= above.lam * (1.0 + close / 10.0):
                break
            lam = _between(above, below, budget * (1.0 - close / 2.0))
        else:
            lam = found.lam * (stride if below is None else 1.0 / stride)
        found = fit(lam)
    if below is None:
        raise InputError(
            f"the budget {budget:.3g} cannot be met: at a penalty of {found.lam:.1e} there is "
            f"still {found.total:.3g}, from what no penalty reaches (paths without weights, free "
            "columns)",
            options=["kappa"],
        )
    return below


def _between(above: Penalised, below: Penalised, target: float) -> float:
    """Return a lam between two at which the total is about the target."""
    tiny = np.finfo(float).tiny
    high, low, goal = np.log([above.total, max(below.total, tiny), max(target, tiny)])
    share = float(np.clip((high - goal) / (high - low), 0.1, 0.9))
    return float(above.lam ** (1.0 - share) * below.lam**share)
