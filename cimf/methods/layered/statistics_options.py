"""The record of how a layer's states become the statistics of its rows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real

import numpy as np
import torch

from cimf.errors import InputError, UnknownNameError
from cimf.methods.layered.sensitivity import METRICS
from cimf.solve.rows import check_limits


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """How a layer's states become the statistics of its rows.

    Attributes
    ----------
    damping : float
        d of the row problems: the pull of every column to the network's own weight, over the
        column's squared norm.
    positions : int, optional
        About so many output positions per sample enter the statistics. None: all.
    precision : torch.dtype
        Of the products that are summed into the statistics; the sums are float64 either way.
    metric : str
        What the allocation "output" predicts: "output" (squared error of the outputs) or "softmax"
        (Kullback-Leibler divergence of class probabilities).
    n_jobs : int, optional
        Threads for the rows. Default: all cores.

    Raises
    ------
    InputError, UnknownNameError
        Values that the statistics cannot be taken with.
    """

    damping: float = 1e-4
    positions: int | None = 128
    precision: torch.dtype = torch.float64
    metric: str = "output"
    n_jobs: int | None = None

    def __post_init__(self) -> None:
        damping, positions = self.damping, self.positions
        if not isinstance(damping, Real) or not 0.0 < float(damping) < np.inf:
            raise InputError(f"damping must be a positive number, got {damping!r}")
        whole = isinstance(positions, int | np.integer) and not isinstance(positions, bool)
        if positions is not None and not (whole and positions >= 1):
            raise InputError(f"positions must be a whole number from 1, or None, got {positions!r}")
        if self.precision not in (torch.float32, torch.float64):
            raise InputError(
                f"precision must be torch.float32 or torch.float64, got {self.precision!r}"
            )
        if self.metric not in METRICS:
            raise UnknownNameError("metric", self.metric, METRICS)
        check_limits(1.0, self.n_jobs)

    @property
    def statistics(self) -> Statistics:
        """The part that decides the statistics, for records that choose more."""
        return Statistics(**{f.name: getattr(self, f.name) for f in fields(Statistics)})
