"""Activations: numpy equals torch, and every stated constant holds and is not exceeded."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from cimf.errors import InputError, UnknownNameError
from cimf.network.activations import ACTIVATIONS, Activation, as_activation
from cimf.network.state_blocks import Block, apply_blocks, check_blocks, check_scale

VARIANTS = [
    *ACTIVATIONS.values(),
    as_activation("leaky_relu", negative_slope=0.3),
    as_activation("leaky_relu", negative_slope=2.0),
    as_activation("leaky_relu", negative_slope=-0.5),
    as_activation("leaky_relu", negative_slope=0.0),
    as_activation("elu", alpha=2.5),
    as_activation("celu", alpha=0.3),
    as_activation("gelu", approximate="tanh"),
    as_activation("softplus", beta=3.0, threshold=25.0),
    as_activation("hardtanh", min_val=-math.inf, max_val=2.0),
    as_activation("hardtanh", min_val=0.0, max_val=math.inf),
    as_activation("softshrink", lambd=0.0),
]
# Odd step: the grid holds no kink exactly except 0.
GRID = np.concatenate([np.linspace(-30.0, 30.0, 600_011), [0.0]])


@pytest.mark.parametrize("phi", VARIANTS, ids=str)
def test_numpy_equals_torch(phi):
    z = np.sort(GRID)
    expected = phi.torch(torch.from_numpy(z)).numpy()
    assert np.abs(phi.numpy(z) - expected).max() <= 1e-14 * max(1.0, np.abs(expected).max())
    assert not np.shares_memory(phi.numpy(z), z)


@pytest.mark.parametrize("phi", VARIANTS, ids=str)
def test_constants(phi):
    z = np.sort(GRID)
    z = z[np.concatenate([[True], np.diff(z) > 1e-9])]
    slope = np.diff(phi.numpy(z)) / np.diff(z)
    assert np.abs(slope).max() <= phi.lipschitz * (1 + 1e-9)
    assert np.abs(slope).max() >= 0.99 * phi.lipschitz
    if phi.monotone == "not monotone":
        assert slope.min() < -1e-3
    else:
        assert slope.min() >= -1e-9
    if phi.monotone == "increasing":
        assert (slope == 0).any()
    homogeneous = np.allclose(phi.numpy(3.0 * z), 3.0 * phi.numpy(z), rtol=1e-12, atol=1e-12)
    assert homogeneous == phi.positively_homogeneous


def test_a_wrong_constant_is_seen():
    z = np.linspace(-5, 5, 100_001)
    slope = np.abs(np.diff(ACTIVATIONS["gelu"].numpy(z)) / np.diff(z)).max()
    assert slope > 1.12  # the tempting L = 1 would fail test_constants


@pytest.mark.parametrize("phi", VARIANTS, ids=str)
def test_json_by_value(phi):
    assert Activation.from_json(json.loads(json.dumps(phi.to_json()))) == phi
    assert hash(Activation.from_json(phi.to_json())) == hash(phi)


def test_parameters_count():
    assert as_activation("leaky_relu", negative_slope=0.2) != as_activation("leaky_relu")
    assert as_activation("leaky_relu", negative_slope=0.01) == ACTIVATIONS["leaky_relu"]


@pytest.mark.parametrize(
    ("name", "params", "error"),
    [
        ("rleu", {}, UnknownNameError),
        ("relu", {"slope": 1.0}, UnknownNameError),
        ("leaky_relu", {"negative_slope": math.nan}, InputError),
        ("leaky_relu", {"negative_slope": "big"}, InputError),
        ("gelu", {"approximate": "erf"}, InputError),
    ],
)
def test_bad_names_and_values(name, params, error):
    with pytest.raises(error, match=name if error is InputError else "known"):
        as_activation(name, **params)


def test_blocks():
    relu, tanh = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]
    blocks = check_blocks([Block("b", 0, 2, tanh), Block("a", 2, 3, relu)], 3)
    z = np.array([[0.5], [-0.5], [-2.0]])
    np.testing.assert_array_equal(apply_blocks(blocks, z), [np.tanh([0.5]), np.tanh([-0.5]), [0.0]])
    assert [Block.from_json(json.loads(json.dumps(b.to_json()))) for b in blocks] == list(blocks)
    with pytest.raises(InputError, match="covers"):
        check_blocks([Block("a", 1, 3, relu)], 3)
    with pytest.raises(InputError, match="4 states"):
        check_blocks(blocks, 4)


def test_scale_only_where_homogeneous():
    mask = np.array([True, False])
    np.testing.assert_array_equal(check_scale([2.0, 1.0], mask), [2.0, 1.0])
    for bad in ([1.0, 2.0], [0.0, 1.0], [-1.0, 1.0], [1.0], [np.nan, 1.0]):
        with pytest.raises(InputError):
            check_scale(bad, mask)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_integers_and_booleans_give_floating_values(name):
    activation = ACTIVATIONS[name]
    for z in (np.array([0, 1, 3], np.uint8), np.array([-2, 1]), np.array([True, False])):
        expected = activation.numpy(z.astype(np.float64))
        found = activation.numpy(z)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)
        tensor = activation.torch(torch.from_numpy(z))
        assert tensor.dtype == torch.get_default_dtype()
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=2e-6, atol=1e-6)
    for bad, named in ((np.array([1j]), "complex"), (np.ma.array([1.0]), "masked")):
        with pytest.raises(InputError, match=named):
            activation.numpy(bad)
    with pytest.raises(InputError, match="complex"):
        activation.torch(torch.ones(1, dtype=torch.complex64))
