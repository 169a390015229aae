"""Training through the equilibrium: the projection, the bound, the pattern."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from cimf.errors import InputError
from cimf.model import ImplicitModel
from cimf.train.equilibrium_training import onto_l1_ball, random_model, train_implicit
from cimf.train.training_options import Training

QUICK = Training(epochs=6, learning_rate=2e-2, batch_size=64)


def blobs(m=300):
    torch.manual_seed(0)
    labels = torch.arange(m) % 3
    centres = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return [(centres[labels] + 0.5 * torch.randn(m, 2), labels)]


def test_the_projection_is_the_nearest_point():
    """Against CVXPY; rows inside stay as they are, bit for bit."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 7)))
    rows[0] *= 0.01
    found = onto_l1_ball(rows, 0.8)
    assert torch.equal(found[0], rows[0])
    for row, near in zip(rows.numpy()[1:], found.numpy()[1:], strict=True):
        x = cp.Variable(7)
        cp.Problem(cp.Minimize(cp.sum_squares(x - row)), [cp.norm1(x) <= 0.8]).solve(cp.CLARABEL)
        np.testing.assert_allclose(near, x.value, atol=1e-6)
        assert np.abs(near).sum() == pytest.approx(0.8, rel=1e-12)


def test_the_projection_of_zero_rows_and_ties():
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, -1.0], [3.0, 0.0]], dtype=torch.float64)
    wanted = [[0.0, 0.0], [0.5, 0.5], [0.5, -0.5], [1.0, 0.0]]
    np.testing.assert_allclose(onto_l1_ball(rows, 1.0), wanted)


def test_a_model_from_nothing_learns_and_stays_well_posed():
    model, report = train_implicit(random_model(12, 2, 3), blobs(), 0.9, training=QUICK)
    assert np.abs(model.A).sum(axis=1).max() <= 0.9 * (1 + 1e-12)
    assert model.wellposedness().wellposed
    ((inputs, labels),) = blobs()
    accuracy = (model.predict(inputs.double().numpy().T).argmax(0) == labels.numpy()).mean()
    assert accuracy > 0.95
    assert report.epochs[-1].loss < report.epochs[0].loss


def test_a_pattern_of_zeros_is_kept():
    start = random_model(10, 2, 3)
    A, B = np.array(start.A), np.array(start.B)
    A[np.abs(A) < 0.15] = 0.0
    B[:4, 0] = 0.0
    sparse = ImplicitModel(A, B, start.C, start.D, bias=True)
    model, _ = train_implicit(sparse, blobs(), 0.9, keep_pattern=True, training=QUICK)
    assert not model.A[A == 0].any()
    assert not model.B[B == 0].any()
    assert (model.A != sparse.A).any()
    free, _ = train_implicit(sparse, blobs(), 0.9, training=QUICK)
    assert free.B[B == 0].any()


def test_equal_seeds_give_equal_bits():
    one, two = (train_implicit(random_model(6, 2, 3), blobs(), training=QUICK)[0] for _ in range(2))
    for name in "ABCD":
        assert np.array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("kappa", [0.0, 1.0, -0.5, float("nan")])
def test_the_radius_must_make_it_well_posed(kappa):
    with pytest.raises(InputError, match="kappa"):
        train_implicit(random_model(4, 2, 3), blobs(), kappa)


def test_steep_activations_are_refused():
    with pytest.raises(InputError, match="slope"):
        train_implicit(random_model(4, 2, 3, activation="gelu"), blobs())


def test_labels_are_needed():
    with pytest.raises(InputError):
        train_implicit(random_model(4, 2, 3), [torch.randn(5, 2)])
