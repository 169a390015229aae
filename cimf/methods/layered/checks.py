"""What is refused before a network is sparsified, and what is said about the result."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cimf.errors import InputError, UnknownNameError
from cimf.methods.layered.layer_report import LayeredReport, LayerRecord
from cimf.methods.layered.sensitivity import METRICS

# A sparsity that differs by more than this from the target is reported.
_MISSED = 0.001


def check_target(value: Any) -> None:
    """Refuse a target sparsity that is no number in [0, 1).

    Raises
    ------
    InputError
    """
    if not isinstance(value, Real) or not 0.0 <= float(value) < 1.0:
        raise InputError(f"target_sparsity must be a number in [0, 1), got {value!r}")


def check_options(damping: Any, positions: Any, precision: Any, metric: str) -> None:
    """Refuse values that the statistics cannot be taken with."""
    if not isinstance(damping, Real) or not 0.0 < float(damping) < np.inf:
        raise InputError(f"damping must be a positive number, got {damping!r}")
    if positions is not None and not (isinstance(positions, int | np.integer) and positions >= 1):
        raise InputError(f"positions must be a whole number from 1, or None, got {positions!r}")
    if precision not in (torch.float32, torch.float64):
        raise InputError(f"precision must be torch.float32 or torch.float64, got {precision!r}")
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)


def few_samples(records: Sequence[LayerRecord]) -> list[str]:
    """Name the layers that have more columns than samples."""
    few = [record.path for record in records if record.samples < record.columns]
    if not few:
        return []
    return [
        f"fewer calibration samples (times positions) than columns in {', '.join(few)}: these rows "
        "can fit the samples by chance; give more samples, or more damping"
    ]


def missed_target(report: LayeredReport) -> list[str]:
    """Say that the target was missed, by more than the rounding to whole weights."""
    weights, total = report.nonzeros["network_weights"]
    if report.target is None:
        return []
    if abs(weights - round((1.0 - report.target) * total)) <= _MISSED * total:
        return []
    return [
        f"the sparsity is {1.0 - weights / total:.2%}, the target {report.target:.2%}: "
        + (
            "columns that were kept got the coefficient 0 (an input that is always zero, or "
            "weights that were zero before)"
            if weights < (1.0 - report.target) * total
            else "the allocation keeps more weights"
        )
    ]


def warn_outside(note: str) -> None:
    """Warn at the line outside of this package from which it was called."""
    package = f"{Path(__file__).parents[2]}{os.sep}"
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(package):
        frame, level = frame.f_back, level + 1
    warnings.warn(note, stacklevel=level)
