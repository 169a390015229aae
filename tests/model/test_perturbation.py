"""The sensitivity matrix: by hand, against a dense inverse, and never exceeded."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from cimf.errors import InputError
from cimf.model import ImplicitModel
from cimf.model.perturbation import StateGain
from cimf.network.activations import as_activation
from cimf.network.state_blocks import Block


def make(seed=0, n=12, p=4, q=3, norm=0.9, activation="relu", acyclic=False, bias=False):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    if acyclic:
        order = rng.permutation(n)
        A = np.triu(A, 1)[np.ix_(order, order)]
    A *= norm / np.abs(A).sum(axis=1).max()
    B, C, D = (rng.normal(size=s) for s in ((n, p), (q, n), (q, p)))
    return ImplicitModel(A, B, C, D, activation, bias=bias)


def escapes(model, S, n_points=100_000, seed=1):
    """Random pairs of inputs, near and far, whose outputs differ by more than S |dU|."""
    rng = np.random.default_rng(seed)
    p = model.n_inputs - model.bias
    U = rng.normal(size=(p, n_points))
    V = U + rng.choice([-1.0, 0.0, 1.0], size=U.shape) * 10.0 ** rng.integers(-4, 1, n_points)
    difference = np.abs(model.predict(U) - model.predict(V))
    return int((difference > S[:, :p] @ np.abs(U - V) + 1e-11).any(axis=0).sum())


def test_two_units_by_hand():
    """x1 = relu(u1), x2 = relu(-3 x1 + 2 u2), y = 5 x2 - u1: |dy| <= 16 |du1| + 10 |du2|."""
    model = ImplicitModel([[0, 0], [-3, 0]], [[1, 0], [0, 2]], [[0, 5]], [[-1, 0]])
    np.testing.assert_allclose(model.sensitivity(), [[16.0, 10.0]], rtol=1e-13)
    loop = ImplicitModel([[-0.5]], [[1.0]], [[2.0]], [[-1.0]])
    np.testing.assert_allclose(loop.sensitivity(), [[5.0]], rtol=1e-13)


@pytest.mark.parametrize("acyclic", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_equals_the_inverse_and_is_not_below_it(acyclic, sparse):
    model = make(acyclic=acyclic)
    A, B, C, D = (np.abs(m) for m in (model.A, model.B, model.C, model.D))
    expected = C @ np.linalg.solve(np.eye(12) - A, B) + D
    if sparse:
        parts = map(scipy.sparse.csr_array, (model.A, model.B, model.C, model.D))
        model = ImplicitModel(*parts, activation=model.blocks)
    S = model.sensitivity()
    np.testing.assert_allclose(S, expected, rtol=1e-11)
    np.testing.assert_array_less(expected * (1 - 1e-15), S)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "gelu", "abs", "softplus"])
@pytest.mark.parametrize("acyclic", [True, False])
def test_no_pair_of_inputs_exceeds_it(activation, acyclic):
    norm = 0.9 / as_activation(activation).lipschitz
    model = make(2, 6, 3, 2, norm, activation, acyclic)
    assert escapes(model, model.sensitivity(), 20_000) == 0


def test_it_is_attained_and_a_planted_smaller_one_is_caught():
    """With non-negative matrices and inputs nothing cancels: dY = S dU exactly."""
    rng = np.random.default_rng(3)
    A = rng.random((5, 5)) * 0.15
    model = ImplicitModel(A, rng.random((5, 3)), rng.random((2, 5)), rng.random((2, 3)))
    S, U = model.sensitivity(), np.eye(3)
    np.testing.assert_allclose(model.predict(1 + U) - model.predict(0 * U + 1), S, rtol=1e-10)
    assert escapes(model, S) == 0
    assert escapes(model, 0.98 * S, 2000) > 0


def test_the_lipschitz_constants_of_blocks_count():
    blocks = (
        Block("a", 0, 1, as_activation("sigmoid")),
        Block("b", 1, 2, as_activation("leaky_relu", negative_slope=3.0)),
    )
    model = ImplicitModel([[0, 1], [0, 0]], [[0], [1]], [[1, 0]], [[0]], blocks)
    np.testing.assert_allclose(model.sensitivity(), [[0.75]], rtol=1e-13)


def test_the_constant_input_does_not_move():
    model = make(4, bias=True)
    S = model.sensitivity()
    assert S.shape == (3, 4)
    assert (S[:, -1] == 0).all()
    assert escapes(model, S, 2000) == 0


def test_what_does_not_reach_an_output_is_exactly_zero():
    model = ImplicitModel(np.diag([0.5, 0.5]), np.eye(2), [[1, 0]], [[0, 0]])
    np.testing.assert_allclose(model.sensitivity(), [[2.0, 0.0]], rtol=1e-12, atol=0.0)
    none = ImplicitModel(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((1, 0)), [[-1.0, 2.0]])
    np.testing.assert_allclose(none.sensitivity(), [[1.0, 2.0]], rtol=1e-13)


@pytest.mark.parametrize(
    ("A", "activation", "named"),
    [
        ([[1.0]], "relu", "not proved"),
        ([[-1.2]], "relu", "not proved"),
        ([[0.95]], "gelu", "not proved"),  # 0.95 times 1.129
        ([[0.0]], as_activation("celu", alpha=-1.0), "no Lipschitz constant"),
    ],
)
@pytest.mark.parametrize("sparse", [True, False])
def test_models_without_a_bound_are_refused(A, activation, named, sparse):
    A = scipy.sparse.csr_array(np.array(A)) if sparse else A
    model = ImplicitModel(A, [[1.0]], [[1.0]], [[0.0]], activation)
    with pytest.raises(InputError, match=named):
        model.sensitivity()


@pytest.mark.parametrize("norm", [0.5, 1 - 1e-6, 1 - 1e-10])
def test_radii_are_bounds_however_close_to_1_the_eigenvalue(norm):
    """In rational arithmetic: w >= |A| w + d, entry by entry."""
    from fractions import Fraction

    rng = np.random.default_rng(5)
    A = rng.random((6, 6))
    A *= norm / A.sum(axis=1, keepdims=True)
    d = rng.random((6, 3)) * 10.0 ** rng.integers(-9, 1, (6, 3))
    w = StateGain(A, ImplicitModel(A, d, d.T, np.eye(3)).blocks).radius(d)
    exact = [[Fraction(value) for value in row] for row in A]
    for k in range(3):
        column = [Fraction(value) for value in w[:, k]]
        for i, row in enumerate(exact):
            total = sum(a * x for a, x in zip(row, column, strict=True)) + Fraction(d[i, k])
            assert column[i] >= total
