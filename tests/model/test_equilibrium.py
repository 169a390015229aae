"""Equilibria: degenerate models, agreement of the methods, honesty about what did not converge."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cimf.errors import InputError, UnknownNameError
from cimf.model import ConvergenceWarning, ImplicitModel
from cimf.model.equilibrium import _Anderson, relative_residual
from cimf.network.activations import ACTIVATIONS, as_activation
from cimf.network.state_blocks import Block, apply_blocks


def _model(seed=0, n=20, p=4, q=3, norm=0.9, activation="relu", density=1.0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n)) * (rng.random((n, n)) < density)
    A *= norm / max(np.abs(A).sum(axis=1).max(initial=0.0), 1e-300)
    B, C, D = (rng.normal(size=s) for s in ((n, p), (q, n), (q, p)))
    return ImplicitModel(A, B, C, D, activation), rng.normal(size=(p, 9))


def test_one_unit_by_hand():
    model = ImplicitModel([[0.5]], [[1.0]], [[2.0]], [[-1.0]])
    for method in ("picard", "anderson"):
        found = model.equilibrium([[3.0, -3.0, 0.0]], method=method)
        np.testing.assert_allclose(found.X, [[6.0, 0.0, 0.0]], atol=1e-11)
        assert found.converged.all()
    np.testing.assert_allclose(model.predict([[3.0, -3.0, 0.0]]), [[9.0, 3.0, 0.0]], atol=1e-11)


@pytest.mark.parametrize("method", ["auto", "substitution", "picard", "anderson"])
def test_zero_A_needs_one_step(method):
    model = ImplicitModel(np.zeros((3, 3)), np.eye(3), np.eye(3), np.zeros((3, 3)), "tanh")
    U = np.array([[1.0, 0.0], [-2.0, 0.0], [0.5, 0.0]])
    found = model.equilibrium(U, method=method)
    np.testing.assert_array_equal(found.X, np.tanh(U))
    np.testing.assert_array_equal(found.residual, 0.0)
    assert found.iterations.max() <= 2


def test_no_states_and_no_samples():
    model = ImplicitModel(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((1, 0)), [[1.0, 2.0]])
    np.testing.assert_array_equal(model.predict([[1.0], [1.0]]), [[3.0]])
    assert model.wellposedness().condition == "acyclic"
    model, _ = _model()
    assert model.predict(np.zeros((4, 0))).shape == (3, 0)
    assert model.equilibrium(np.zeros((4, 0))).converged.shape == (0,)


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu", "sigmoid", "elu", "abs"])
@pytest.mark.parametrize("density", [1.0, 0.15])
def test_methods_agree(activation, density):
    model, U = _model(1, 40, activation=activation, density=density)
    picard, anderson = (model.equilibrium(U, method=m) for m in ("picard", "anderson"))
    assert picard.converged.all()
    assert anderson.converged.all()
    # residual 1e-12 and ||A||_inf = 0.9 put both within 1e-11 of the equilibrium.
    assert np.abs(picard.X - anderson.X).max() <= 2e-11 * max(1.0, np.abs(picard.X).max())
    np.testing.assert_allclose(anderson.Z, model.A @ anderson.X + model.B @ U, atol=1e-13)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_substitution_agrees_and_is_exact(activation):
    rng = np.random.default_rng(2)
    order = rng.permutation(30)
    A = np.triu(rng.normal(size=(30, 30)) * (rng.random((30, 30)) < 0.3), 1)[np.ix_(order, order)]
    model = ImplicitModel(A, rng.normal(size=(30, 2)), np.eye(30), np.zeros((30, 2)), activation)
    U = rng.normal(size=(2, 5))
    found = model.equilibrium(U)
    assert found.method == "substitution"
    np.testing.assert_array_equal(found.residual, 0.0)
    for method in ("picard", "anderson"):
        other = model.equilibrium(U, method=method)
        assert other.converged.all()
        scale = max(1.0, np.abs(found.X).max())
        assert np.abs(other.X - found.X).max() <= 1e-8 * scale


def test_anderson_is_faster_near_the_boundary():
    rng = np.random.default_rng(3)
    A = np.abs(rng.normal(size=(30, 30)))
    A *= 0.999 / A.sum(axis=1, keepdims=True)
    model = ImplicitModel(A, np.abs(rng.normal(size=(30, 3))), np.eye(30), np.zeros((30, 3)))
    U = np.abs(rng.normal(size=(3, 4)))
    slow = model.equilibrium(U, method="picard", max_iter=500)
    fast = model.equilibrium(U, method="anderson", max_iter=500)
    exact = np.linalg.solve(np.eye(30) - A, model.B @ U)  # ReLU is inactive: all is positive
    assert not slow.converged.any()
    assert fast.converged.all()
    assert fast.iterations.max() < 60
    np.testing.assert_allclose(fast.X, exact, rtol=1e-8)


def test_anderson_falls_back_to_the_plain_step():
    mixer = _Anderson(n=1, m=2)
    points = mixer.step(np.zeros((1, 2)), np.ones((1, 2)), np.ones(2))
    np.testing.assert_array_equal(points, 1.0)  # nothing known yet: the plain step
    points = mixer.step(points, np.full((1, 2), 1.5), np.full(2, 0.5))
    np.testing.assert_allclose(points, 2.0)  # the secant solution of x = 1 + x / 2
    # Sample 0 got worse there, sample 1 better: only sample 0 returns to x = 1 and steps to 1.5.
    points = mixer.step(points, np.array([[9.0, 2.1]]), np.array([7.0, 0.1]))
    assert points[0, 0] == 1.5
    assert points[0, 1] != 1.5


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    norm=st.sampled_from([0.0, 0.3, 0.95]),
    activation=st.sampled_from(["relu", "tanh", "leaky_relu", "sigmoid", "softsign", "abs"]),
    method=st.sampled_from(["picard", "anderson", "auto"]),
    density=st.sampled_from([1.0, 0.2]),
)
def test_equilibria_solve_the_equation_and_do_not_depend_on_the_batch(
    seed, n, norm, activation, method, density
):
    model, U = _model(seed, n, norm=norm, activation=activation, density=density)
    found = model.equilibrium(U, method=method)
    assert found.converged.all()
    g = apply_blocks(model.blocks, model.A @ found.X + model.B @ U)
    size = np.abs(apply_blocks(model.blocks, model.B @ U)).max(axis=0)
    assert relative_residual(found.X, g, size).max() <= 1e-11
    subset = [7, 2, 3]
    part = model.equilibrium(U[:, subset], method=method)
    single = model.equilibrium(U[:, 2:3], method=method)
    for name in ("X", "Z", "residual", "iterations"):
        whole = getattr(found, name)
        np.testing.assert_array_equal(getattr(part, name), whole[..., subset])
        np.testing.assert_array_equal(getattr(single, name), whole[..., 2:3])


def test_bits_do_not_depend_on_the_batch_at_size():
    model, _ = _model(5, 60, norm=0.99)
    U = np.random.default_rng(0).normal(size=(4, 700))
    whole = model.equilibrium(U)
    Y = model.predict(U)
    for j in (0, 255, 256, 511, 699):
        np.testing.assert_array_equal(model.equilibrium(U[:, j : j + 1]).X[:, 0], whole.X[:, j])
        np.testing.assert_array_equal(model.predict(U[:, j : j + 1])[:, 0], Y[:, j])


@pytest.mark.parametrize("method", ["picard", "anderson"])
def test_samples_that_do_not_converge_are_reported_alone(method):
    # x = relu(3 x + u): no solution for u > 0, x = 0 for u <= 0.
    model = ImplicitModel([[3.0]], [[1.0]], [[1.0]], [[0.0]])
    found = model.equilibrium([[1.0, -1.0, 0.0]], method=method)
    assert found.converged.tolist() == [False, True, True]
    assert np.isfinite(found.X).all()
    assert not found.residual[0] <= 1e-3
    np.testing.assert_array_equal(found.X[0, 1:], 0.0)
    with pytest.warns(ConvergenceWarning, match="1 of 3 samples"):
        model.predict([[1.0, -1.0, 0.0]], method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict([[-1.0, 0.0]], method=method)


def test_a_cycle_of_period_two_is_no_equilibrium():
    # x = relu(1 - x) has the equilibrium 1/2, but x <- relu(1 - x) oscillates from 0 forever.
    model = ImplicitModel([[-1.0]], [[1.0]], [[1.0]], [[0.0]])
    oscillating = model.equilibrium([[1.0]], method="picard", max_iter=50)
    assert not oscillating.converged[0]
    assert oscillating.iterations[0] == 50
    accelerated = model.equilibrium([[1.0]], method="anderson")
    assert accelerated.converged[0]
    np.testing.assert_allclose(accelerated.X, [[0.5]], atol=1e-12)


def test_a_planted_wrong_state_has_a_large_residual():
    model, U = _model()
    found = model.equilibrium(U)
    wrong = found.X.copy()
    wrong[3, 2] += 1e-6
    g = apply_blocks(model.blocks, model.A @ wrong + model.B @ U)
    size = np.abs(apply_blocks(model.blocks, model.B @ U)).max(axis=0)
    residual = relative_residual(wrong, g, size)
    assert residual[2] > 1e-8
    assert np.delete(residual, 2).max() <= 1e-12


def test_iteration_limit_and_tolerance_are_obeyed():
    model, U = _model(norm=0.99)
    short = model.equilibrium(U, method="picard", max_iter=3)
    assert (short.iterations == 3).all()
    assert not short.converged.any()
    loose = model.equilibrium(U, method="picard", tol=1e-3)
    assert loose.converged.all()
    assert loose.residual.max() > 1e-12
    for bad in ({"tol": 0.0}, {"max_iter": 0}):
        with pytest.raises(InputError):
            model.equilibrium(U, **bad)
    with pytest.raises(UnknownNameError, match="substitution"):
        model.equilibrium(U, method="newton")
    with pytest.raises(InputError, match="cycle"):
        model.equilibrium(U, method="substitution")


def test_progress_and_blocks_with_different_activations():
    blocks = (
        Block("b", 0, 2, ACTIVATIONS["tanh"]),
        Block("a", 2, 5, as_activation("leaky_relu", negative_slope=0.5)),
    )
    rng = np.random.default_rng(0)
    A = rng.normal(size=(5, 5)) / 20
    model = ImplicitModel(A, rng.normal(size=(5, 2)), np.eye(5), np.zeros((5, 2)), blocks)
    U = rng.normal(size=(2, 300))
    seen = []
    X = model.equilibrium(U, progress=seen.append).X
    assert seen == [256, 300]
    Z = A @ X + model.B @ U
    np.testing.assert_allclose(X[:2], np.tanh(Z[:2]), atol=1e-11)
    np.testing.assert_allclose(X[2:], np.where(Z[2:] > 0, Z[2:], 0.5 * Z[2:]), atol=1e-11)


def test_sparse_and_dense_models_are_the_same_bits():
    model, U = _model(4, 30, density=0.2)
    csr = scipy.sparse.csr_array
    sparse = ImplicitModel(csr(model.A), csr(model.B), csr(model.C), csr(model.D))
    np.testing.assert_array_equal(sparse.predict(U), model.predict(U))


def test_torch_and_numpy_inputs_give_the_same_outputs():
    model, U = _model()
    Y = model.predict(U)
    tensor = model.predict(torch.from_numpy(U))
    assert tensor.dtype == torch.float64
    np.testing.assert_array_equal(tensor.numpy(), Y)
    single = torch.from_numpy(U).float()
    assert model.predict(single).dtype == torch.float32
    np.testing.assert_allclose(model.predict(single).numpy(), Y, atol=1e-5)
    half = model.predict(single.bfloat16())  # a dtype numpy does not have
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integers_and_booleans_give_floating_outputs(dtype):
    """-48.98 was returned as 208."""
    model = ImplicitModel([[0.5]], [[-24.49]], [[1.0]], [[-1.0]], "identity")
    value = np.array([[1]]).astype(dtype)
    tensor = torch.from_numpy(value)
    np.testing.assert_allclose(model.predict(value), [[-49.98]], rtol=1e-14)
    out = model.predict(tensor)
    assert out.dtype == torch.float64
    np.testing.assert_allclose(out.numpy(), [[-49.98]], rtol=1e-14)
    for module, exact in ((model.to_module(), 1e-11), (model.to_module().float(), 1e-5)):
        out = module(tensor)
        assert out.dtype == module.B.dtype
        np.testing.assert_allclose(out.numpy(), [[-49.98]], rtol=exact)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (np.ma.array([[1.0]], mask=[[True]]), "masked"),
        (np.array([[1.0 + 0.0j]]), "complex"),
        (torch.ones(1, 1, dtype=torch.complex64), "complex"),
    ],
)
def test_masked_and_complex_inputs_are_refused(bad, named):
    model = ImplicitModel([[0.5]], [[1.0]], [[1.0]], [[1.0]])
    for call in (model.predict, model.equilibrium, lambda u: model.output(u, [[1.0]])):
        with pytest.raises(InputError, match=named):
            call(bad)
    with pytest.raises(InputError, match="complex"):
        model.to_module()(torch.ones(1, 1, dtype=torch.complex64))


def test_a_bias_column_that_is_not_ones_is_refused_by_the_module_too():
    model = ImplicitModel([[0.5]], [[1.0, 1.0]], [[1.0]], [[1.0, 0.0]], bias=True)
    with pytest.raises(InputError, match="must be ones"):
        model.to_module()(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    with pytest.raises(InputError, match=r"X has shape"):
        model.output([[1.0, 2.0]], [[1.0]])


@pytest.mark.parametrize("method", ["anderson", "picard"])
@pytest.mark.parametrize("max_iter", [30, 2000])
def test_no_solution_is_named_diverged(method, max_iter):
    """x = mean(x) + 1 has none; Anderson ran to 5.6e14, where x = x + 1, and called it converged.

    Left eigenvector v of A: v'(x - A x - b) = -v'b, so no x has a residual below 1.
    """
    ones = np.ones((5, 1))
    model = ImplicitModel(0.2 * np.ones((5, 5)), ones, ones.T, [[0.0]])
    found = model.equilibrium([[1.0, -1.0, 0.0]], method=method, max_iter=max_iter)
    assert found.status.tolist() == ["diverged", "converged", "converged"]
    assert found.residual[0] >= 0.99
    assert np.isfinite(found.X).all()
    with pytest.warns(ConvergenceWarning, match=r"1 of 3 samples .*\(1 diverged, 0 stopped"):
        model.predict([[1.0, -1.0, 0.0]], method=method, max_iter=max_iter)
    module = model.to_module(max_iter=200)
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        module(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))


def test_non_negative_models_with_perron_root_1_diverge():
    """35 of 200 were called converged."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 9))
        A = rng.random((n, n))
        A /= np.abs(np.linalg.eigvals(A)).max()
        model = ImplicitModel(A, np.ones((n, 1)), np.ones((1, n)), [[0.0]])
        found = model.equilibrium([[1.0]], method="anderson", max_iter=100)
        assert found.status.tolist() == ["diverged"]


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_the_units_of_the_input_do_not_matter(unit):
    """With a residual relative to max(1, |x|) a small input converged at x = 0."""
    model, U = _model(6, 20, norm=0.95)
    exact = model.equilibrium(U).X
    for method in ("anderson", "picard"):
        found = model.equilibrium(unit * U, method=method)
        assert found.converged.all()
        assert np.abs(found.X / unit - exact).max() <= 1e-9 * np.abs(exact).max()
    module = model.to_module()
    expected = model.predict(U).T
    found = module(torch.from_numpy(unit * U.T)).numpy() / unit
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_a_state_far_larger_than_the_input_converges_at_its_rounding():
    model = ImplicitModel([[1.0 - 1e-5]], [[1.0]], [[1.0]], [[0.0]], "identity")
    found = model.equilibrium([[1.0]], method="anderson")
    assert found.status.tolist() == ["converged"]
    np.testing.assert_allclose(found.X, [[1e5]], rtol=1e-9)
    short = model.equilibrium([[1.0]], method="picard", max_iter=20_000)
    assert short.status.tolist() == ["stopped"]
    assert 0.5 < short.residual[0] < 0.99


def test_three_steps_by_hand():
    """x <- x / 2 + u from 0, residual judged before each step: 0, u, 1.5 u."""
    model = ImplicitModel([[0.5]], [[1.0]], [[1.0]], [[0.0]])
    found = model.equilibrium([[4.0]], method="picard", max_iter=3)
    np.testing.assert_array_equal(found.X, [[6.0]])
    np.testing.assert_array_equal(found.Z, [[7.0]])
    np.testing.assert_array_equal(found.residual, [0.25])
    assert found.iterations.tolist() == [3]
    assert found.status.tolist() == ["stopped"]
