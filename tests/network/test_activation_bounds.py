"""No value of an activation leaves its bounds; bounds that are too small are noticed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cimf.errors import InputError
from cimf.network.activation_bounds import Lines, bounds, check_lipschitz, lines
from cimf.network.activations import ACTIVATIONS, as_activation

CASES = [
    *ACTIVATIONS.values(),
    as_activation("gelu", approximate="tanh"),
    as_activation("leaky_relu", negative_slope=-0.3),
    as_activation("leaky_relu", negative_slope=-2.0),
    as_activation("leaky_relu", negative_slope=1.7),
    as_activation("elu", alpha=-0.5),
    as_activation("elu", alpha=3.0),
    as_activation("hardtanh", min_val=2.0, max_val=5.0),
    as_activation("softplus", beta=0.3, threshold=25.0),
]
# Intervals of every size around every kink and turning point, and far away.
rng = np.random.default_rng(0)
MIDDLE = np.concatenate(
    [rng.normal(size=600), rng.normal(size=600) * 10, rng.normal(size=40) * 1e3]
)
RADIUS = np.abs(rng.normal(size=MIDDLE.size)) * 10.0 ** rng.integers(-6, 2, MIDDLE.size)
LOW, HIGH = MIDDLE - RADIUS, MIDDLE + RADIUS
INSIDE = LOW + np.linspace(0.0, 1.0, 401)[:, None] * (HIGH - LOW)
INSIDE = np.clip(np.vstack([INSIDE, np.zeros_like(LOW)]), LOW, HIGH)  # kinks are at 0


def escapes(activation, least, largest):
    values = activation.numpy(INSIDE)
    return int(((values < least) | (values > largest)).sum())


def crossings(activation, found):
    values = activation.numpy(INSIDE)
    below = found.slope_low * INSIDE + found.offset_low
    above = found.slope_high * INSIDE + found.offset_high
    return int(((values < below) | (values > above)).sum())


@pytest.mark.parametrize("activation", CASES, ids=str)
def test_no_value_leaves_its_bounds(activation):
    least, largest = bounds(activation, LOW, HIGH)
    assert escapes(activation, least, largest) == 0
    found = lines(activation, LOW, HIGH)
    assert crossings(activation, found) == 0
    # Planted: a thousandth narrower, and values escape.
    narrow = 1e-3 * (largest - least) + 1e-9
    assert escapes(activation, least + narrow, largest - narrow) > 0
    shrunk = found._replace(offset_high=found.offset_high - 1e-9 * (1 + np.abs(MIDDLE)))
    assert crossings(activation, shrunk) > 0


@pytest.mark.parametrize("activation", CASES, ids=str)
def test_bounds_of_falling_and_rising_functions_are_attained(activation):
    if activation.name in ("sin", "cos", "softplus"):
        return
    small = np.abs(MIDDLE) < 20
    least, largest = (side[small] for side in bounds(activation, LOW, HIGH))
    values = activation.numpy(INSIDE[:, small])
    # 401 points on an interval miss the lowest one by (width / 800)^2.
    reserve = 1e-10 + 2e-6 * RADIUS[small] ** 2
    assert (values.min(axis=0) - least <= reserve).all()
    assert (largest - values.max(axis=0) <= reserve).all()


def test_a_point_has_the_bounds_of_its_value():
    for activation in CASES:
        if activation.name == "softplus":
            continue
        z = np.array([-3.0, -0.2, 0.0, 1.5])
        least, largest = bounds(activation, z, z)
        assert (largest - least <= 1e-12).all(), activation


def test_relu_lines_by_hand():
    relu = ACTIVATIONS["relu"]
    low, high = np.array([-1.0, -3.0, 1.0, -2.0]), np.array([3.0, 1.0, 2.0, -1.0])
    expected = Lines(
        np.array([1.0, 0.0, 1.0, 0.0]), np.zeros(4),
        np.array([0.75, 0.25, 1.0, 0.0]), np.array([0.75, 0.75, 0.0, 0.0]),
    )  # fmt: skip
    for found, wanted in zip(lines(relu, low, high), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-13)


def test_what_has_no_lipschitz_constant_is_refused():
    """Softplus with a threshold of 1 jumps down by 0.31 there: its constant was said to be 1."""
    jump = as_activation("softplus", threshold=1.0)
    fall = jump.numpy(np.array([1.0])) - jump.numpy(np.array([1.0 + 1e-12]))
    np.testing.assert_allclose(fall, math.log1p(math.exp(-1.0)), rtol=1e-9)
    for activation in (jump, as_activation("celu", alpha=-1.0)):
        assert activation.lipschitz == math.inf
        with pytest.raises(InputError, match="block 'head' has activation"):
            check_lipschitz("head", activation)
    check_lipschitz("head", as_activation("softplus"))
