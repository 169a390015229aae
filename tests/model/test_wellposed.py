"""Well-posedness report, Theorem 8, and the scales that make a network feasible."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cimf.errors import InputError
from cimf.model import ImplicitModel, state_scales
from cimf.model.wellposed import levels, perron_frobenius, wellposedness
from cimf.network.capture import capture_states


def _model(A, activation="relu", seed=0):
    rng = np.random.default_rng(seed)
    n = len(A)
    B, C, D = (rng.normal(size=s) for s in ((n, 2), (3, n), (3, 2)))
    return ImplicitModel(A, B, C, D, activation), rng.normal(size=(2, 6))


def test_levels():
    A = np.zeros((4, 4))
    A[0, 1] = A[0, 3] = A[1, 2] = 1.0
    assert [rows.tolist() for rows in levels(A)] == [[2, 3], [1], [0]]
    assert [rows.tolist() for rows in levels(np.zeros((2, 2)))] == [[0, 1]]
    assert levels(np.zeros((0, 0))) == []
    A[2, 0] = 1e-300
    assert levels(A) is None
    assert levels(np.eye(1)) is None


def test_stored_zeros_are_no_edges():
    A = scipy.sparse.csr_array((np.array([0.0, 1.0]), ([0, 1], [1, 0])), shape=(2, 2))
    assert [rows.tolist() for rows in levels(A)] == [[0], [1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("density", [1.0, 0.3, 0.08])
def test_perron_frobenius_bounds_hold_the_eigenvalue(seed, density):
    rng = np.random.default_rng(seed)
    M = np.abs(rng.normal(size=(30, 30))) * (rng.random((30, 30)) < density)
    true = np.abs(np.linalg.eigvals(M)).max() if levels(M) is None else 0.0
    lower, upper = perron_frobenius(M)
    assert lower <= true * (1 + 1e-9)
    assert upper >= true * (1 - 1e-9)
    assert upper - lower <= 1e-9 * max(upper, 1e-300)


@pytest.mark.parametrize(
    ("M", "true"),
    [
        ([[0.0, 4.0], [0.01, 0.0]], 0.2),  # periodic: plain power iteration does not converge
        ([[0.5, 100.0], [0.0, 0.7]], 0.7),  # reducible
        (np.roll(np.eye(200), 1, axis=0) * 0.9, 0.9),  # one long cycle
        ([[1e-8, 1e8], [1e-9, 1e-8]], 1e-8 + np.sqrt(0.1)),
        ([[0.3]], 0.3),
        (np.zeros((0, 0)), 0.0),
    ],
)
def test_perron_frobenius_by_hand(M, true):
    lower, upper = perron_frobenius(np.asarray(M))
    assert lower == pytest.approx(true, rel=1e-9)
    assert upper == pytest.approx(true, rel=1e-9)


def test_report_names_the_strongest_condition():
    ones = np.ones(2)
    triangle = wellposedness(np.array([[0.0, 50.0], [0.0, 0.0]]), ones)
    assert (triangle.condition, triangle.pf_upper, triangle.margin) == ("acyclic", 0.0, 1.0)
    assert triangle.n_levels == 2
    assert triangle.row_norm == 50.0
    rows = wellposedness(np.array([[0.5, -0.25], [0.0, 0.5]]), ones)
    assert (rows.condition, rows.row_norm, rows.margin) == ("row-sum norm", 0.75, 0.25)
    weighted = wellposedness(np.array([[0.0, 4.0], [0.01, 0.0]]), ones)
    assert weighted.condition == "Perron-Frobenius"
    assert weighted.margin == pytest.approx(0.8)
    none = wellposedness(np.array([[0.0, 4.0], [1.0, 0.0]]), ones)
    assert none.condition == "none"
    assert not none.wellposed
    assert none.margin == pytest.approx(-1.0)
    assert "not proved" in str(none)


def test_lipschitz_constant_counts():
    """Sigmoid (L = 1/4) is well-posed up to norm 4, SELU (L = 1.758) not even at 0.6."""
    A = np.array([[0.0, 3.9], [3.9, 0.0]])
    assert _model(A, "sigmoid")[0].wellposedness().wellposed
    assert not _model(A, "relu")[0].wellposedness().wellposed
    small = np.array([[0.0, 0.6], [0.6, 0.0]])
    assert _model(small, "relu")[0].wellposedness().wellposed
    assert not _model(small, "selu")[0].wellposedness().wellposed
    model, U = _model(A, "sigmoid")
    assert model.equilibrium(U, method="picard").converged.all()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 10),
    kappa=st.sampled_from([0.3, 0.99]),
    acyclic=st.booleans(),
    activation=st.sampled_from(["relu", "leaky_relu", "abs", "identity"]),
)
def test_theorem_8(seed, n, kappa, acyclic, activation):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.5)
    if acyclic:
        A = np.triu(A, 1)
    else:
        top = np.abs(np.linalg.eigvals(np.abs(A))).max()
        A *= 0.8 * kappa / top if top > 1e-3 else 0.0
    model, U = _model(A, activation, seed)
    scaled, s = model.rescale(kappa)
    assert np.abs(scaled.A).sum(axis=1).max() < kappa
    assert (s > 0).all()
    before, after = model.equilibrium(U, tol=1e-13), scaled.equilibrium(U, tol=1e-13)
    size = max(1.0, np.abs(before.X).max(), s.max())
    assert np.abs(before.X - s[:, None] * after.X).max() <= 1e-9 * size
    Y = model.predict(U)
    np.testing.assert_allclose(scaled.predict(U), Y, rtol=0, atol=1e-9 * max(size, np.abs(Y).max()))
    back = scaled.unscaled(s)
    for name in "ABCD":
        np.testing.assert_allclose(getattr(back, name), getattr(model, name), rtol=1e-14)


def test_rescaling_refuses_what_theorem_8_does_not_cover():
    A = np.array([[0.0, 4.0], [0.01, 0.0]])
    model, _ = _model(A, "tanh")
    with pytest.raises(InputError, match=r"block 'states'.*tanh"):
        model.rescale()
    model, _ = _model(A)
    with pytest.raises(InputError, match=r"eigenvalue, 0\.2"):
        model.rescale(0.2)
    for kappa in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="positive number"):
            model.rescale(kappa)
    assert np.abs(model.rescale(0.21)[0].A).sum(axis=1).max() < 0.21


def test_a_wrong_scale_changes_the_outputs():
    """The planted error: scaling by s where s is needed to commute with phi, and it does not."""
    A = np.array([[0.0, 0.5], [0.2, 0.0]])
    model, U = _model(A, "tanh")
    s = np.array([2.0, 1.0])
    wrong = ImplicitModel(
        model.A / s[:, None] * s, model.B / s[:, None], model.C * s, model.D, "tanh"
    )
    assert np.abs(wrong.predict(U) - model.predict(U)).max() > 1e-3
    with pytest.raises(InputError, match="positively homogeneous"):
        model.scaled(s)


def _row_norms(model, s, inside):
    A = np.abs(model.A) * s / s[:, None]
    return A.sum(axis=1) + (np.abs(model.B) / s[:, None])[:, inside].sum(axis=1)


def test_state_scales_make_the_network_feasible():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(0.1), nn.Linear(5, 2)
    )
    with torch.no_grad():
        net[0].weight[2] = 0.0  # no weights: a dead unit
        net[0].weight[3] *= 1e6
    x = torch.randn(40, 7)
    states, model = capture_states(net, x), ImplicitModel.from_network(net)
    inside = ~states.free_columns[states.n_states :]
    s = state_scales(model.A, model.B, 0.9, inside, states.scalable)
    norms = _row_norms(model, s, inside)
    dead = states.n_states - 6 + 2
    assert s[dead] == 1.0
    np.testing.assert_allclose(np.delete(norms, dead), 0.9, rtol=1e-14)
    assert norms[dead] == 0.0
    # The scaled states are those of the scaled network, and scaling back gives the network.
    scaled, small = states.scaled(s), model.scaled(s)
    np.testing.assert_allclose(small.A @ scaled.X + small.B @ scaled.U, scaled.Z, atol=1e-10)
    np.testing.assert_allclose(small.unscaled(s).A, model.A, rtol=1e-14)
    np.testing.assert_allclose(small.predict(states.U), states.Y, rtol=1e-12)
    # The planted error: in its own units the network violates the ball.
    assert _row_norms(model, np.ones_like(s), inside).max() > 1.0


def test_state_scales_bias_column_counts_only_if_inside():
    A, B = np.zeros((1, 1)), np.array([[0.5, 100.0]])
    assert state_scales(A, B, 1.0, np.array([True, False])) == 0.5
    assert state_scales(A, B, 1.0) == 100.5


def test_state_scales_leave_other_activations_alone():
    A = np.array([[0.0, 2.0], [0.0, 0.0]])
    B = np.array([[0.0], [4.0]])
    np.testing.assert_array_equal(state_scales(A, B, 1.0), [8.0, 4.0])
    fixed = state_scales(A, B, 1.0, scalable=np.array([True, False]))
    np.testing.assert_array_equal(fixed, [2.0, 1.0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((np.eye(2), np.ones((2, 1))), "eigenvalue"),
        ((np.zeros((2, 3)), np.ones((2, 1))), "fit together"),
        ((np.zeros((2, 2)), np.ones((2, 1)), 0.0), "positive"),
        ((np.zeros((2, 2)), np.ones((2, 1)), 1.0, np.array([1.0])), "boolean mask"),
        ((np.triu(np.full((60, 60), 1e6), 1), np.ones((60, 1))), "overflow"),
    ],
)
def test_state_scales_refuse(args, message):
    with pytest.raises(InputError, match=message):
        state_scales(*args)


def test_a_row_norm_of_exactly_1_proves_nothing():
    """x = relu(x + 1) has no solution."""
    found = ImplicitModel([[1.0]], [[1.0]], [[1.0]], [[0.0]]).wellposedness()
    assert (found.row_norm, found.condition, found.wellposed) == (1.0, "none", False)
    assert found.margin <= 0.0


@pytest.mark.parametrize("sparse", [False, True])
def test_small_chunks_of_unit_vectors_give_the_same_matrices(monkeypatch, sparse):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2))
    whole = ImplicitModel.from_network(net, sparse=sparse)
    monkeypatch.setattr("cimf.model.convert._BATCH_NUMBERS", 50)  # 2 columns at a time
    parts = ImplicitModel.from_network(net, sparse=sparse)
    for name in "ABCD":
        one, other = getattr(whole, name), getattr(parts, name)
        assert abs(one - other).max() <= 1e-14
