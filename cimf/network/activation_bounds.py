"""What an activation can give on an interval: bounds of its values, and linear bounds.

Every bound holds for the exact function and for its values in float64: `rounding` is added outward.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.network.activations import Activation

Array = NDArray[np.float64]

# Where the functions that fall and then rise have their minimum: the root of the derivative by
# bisection in 50 digits. The value there is flat, so that its rounding is what `rounding` covers.
_LOWEST = {
    "gelu": -0.7517915246935645,
    "gelu tanh": -0.7524614220710163,
    "silu": -1.2784645427610737,
    "mish": -1.1924312145154952,
    "hardswish": -1.5,
    "abs": 0.0,
    "leaky_relu": 0.0,
    "elu": 0.0,
}
# scipy, numpy and torch compute these functions to a few units in the last place.
_UNITS = 16 * np.finfo(np.float64).eps


class Lines(NamedTuple):
    """slope_low z + offset_low <= phi(z) <= slope_high z + offset_high; arrays of one shape."""

    slope_low: Array
    offset_low: Array
    slope_high: Array
    offset_high: Array


def check_lipschitz(name: str, activation: Activation) -> None:
    """Refuse an activation without a finite Lipschitz constant.

    Raises
    ------
    InputError
    """
    if not np.isfinite(activation.lipschitz):
        raise InputError(
            f"block {name!r} has activation {activation}, which has no Lipschitz constant: its "
            "values cannot be bounded"
        )


def rounding(activation: Activation, z: Array) -> Array:
    """Return a bound of the error of phi computed up to |z|, and of |phi(a) - phi(b)| - L |a - b|.

    The latter is not 0 for torch's softplus: above a threshold it is the identity, to which it
    jumps down.
    """
    at_zero = abs(float(activation.numpy(np.zeros(()))))
    out = _UNITS * (1.0 + at_zero + (1.0 + activation.lipschitz) * np.abs(z))
    if activation.name == "softplus":
        params = dict(activation.params)
        out += np.log1p(np.exp(-params["threshold"])) / params["beta"] * (1.0 + _UNITS)
    return out


def bounds(activation: Activation, low: Array, high: Array) -> tuple[Array, Array]:
    """Return (least, largest) values of phi on low <= z <= high, rounded outward.

    Exact to rounding for functions that rise, and for those that fall and then rise; for others
    phi(middle) -+ L (high - low) / 2.
    """
    at_low, at_high = activation.numpy(low), activation.numpy(high)
    lowest = _LOWEST.get(_kind(activation))
    if activation.monotone != "not monotone":
        least, largest = at_low, at_high
    elif lowest is not None:
        largest = np.maximum(at_low, at_high)
        inside = (low <= lowest) & (lowest <= high)
        bottom = float(activation.numpy(np.array(lowest)))
        least = np.where(inside, bottom, np.minimum(at_low, at_high))
    else:
        middle = 0.5 * low + 0.5 * high
        centre = activation.numpy(middle)
        reach = activation.lipschitz * np.maximum(high - middle, middle - low) * (1.0 + _UNITS)
        least, largest = centre - reach, centre + reach
    error = rounding(activation, np.maximum(np.abs(low), np.abs(high)))
    return least - error, largest + error


def lines(activation: Activation, low: Array, high: Array) -> Lines:
    """Return linear bounds of phi on low <= z <= high.

    max(z, s z), s <= 1 (identity, relu, abs, most leaky_relu): exact where the interval does not
    contain 0; elsewhere above the chord, below the steeper of the two lines on the longer side.
    Others: the constants of `bounds`.
    """
    slope = _kink(activation)
    if slope is None:
        least, largest = bounds(activation, low, high)
        none = np.zeros_like(low)
        return Lines(none, least, none, largest)
    across = (low < 0.0) & (high > 0.0)
    width = np.where(across, high - low, 1.0)
    chord = np.where(across, (high - slope * low) / width, np.where(low >= 0.0, 1.0, slope))
    below = np.where(across, np.where(high >= -low, 1.0, slope), chord)
    # The chord meets slope z at `low`; at `high` its rounding is that of the product.
    above = np.where(across, (slope - chord) * low, 0.0)
    error = rounding(activation, np.maximum(np.abs(low), np.abs(high)))
    return Lines(below, -error, chord, above + error)


def _kink(activation: Activation) -> float | None:
    """Return s where phi(z) = max(z, s z)."""
    if activation.name == "leaky_relu":
        slope = float(dict(activation.params)["negative_slope"])
        return slope if slope <= 1.0 else None
    return {"identity": 1.0, "relu": 0.0, "abs": -1.0}.get(activation.name)


def _kind(activation: Activation) -> str:
    approximate = dict(activation.params).get("approximate", "none")
    return activation.name if approximate == "none" else f"{activation.name} {approximate}"
