"""Data fits: expression, numpy value and conjugate agree; what targets they refuse."""

import cvxpy as cp
import numpy as np
import pytest

from formulations import FITS, OutputRow, Relaxed
from formulations.errors import InputError, UnknownNameError
from formulations.fits import HuberFit, QuantileFit, as_fit

RNG = np.random.default_rng(0)
P = 2.0 * RNG.normal(size=(7, 3))
V = 2.0 * RNG.normal(size=(7, 3))
Z = RNG.dirichlet(np.ones(3), size=7)
SAMPLE = [*(FITS[name]() for name in FITS), HuberFit(0.3), QuantileFit(0.9)]


@pytest.mark.parametrize("fit", SAMPLE, ids=repr)
def test_expression_and_value_agree(fit):
    expected = fit.values(P, Z)
    assert expected.shape == ((7, 3) if fit.separable else (7, 1))
    np.testing.assert_allclose(fit.terms(cp.Constant(P), Z).value, expected, rtol=1e-12)


@pytest.mark.parametrize("fit", SAMPLE, ids=repr)
def test_fenchel_young(fit):
    """phi(p) + phi*(v) >= p v, with equality at the slope of phi in p (by differences)."""
    v = fit.dual_point(V, Z)
    np.testing.assert_allclose(fit.dual_point(v, Z), v, atol=1e-14)
    product = P * v if fit.separable else (P * v).sum(axis=1, keepdims=True)
    assert (fit.values(P, Z) + fit.conjugate(v, Z) >= product - 1e-12).all()
    nothing = np.zeros_like(V)
    np.testing.assert_allclose(fit.dual_point(nothing, Z), nothing, atol=1e-15)
    step, slope = 1e-6, np.empty_like(P)
    for i in range(3):
        moved = [fit.values(P + sign * step * np.eye(3)[i], Z) for sign in (1, -1)]
        difference = (moved[0] - moved[1]) / (2 * step)
        slope[:, i] = difference[:, i if fit.separable else 0]
    slope = fit.dual_point(slope, Z)
    product = P * slope if fit.separable else (P * slope).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fit.values(P, Z) + fit.conjugate(slope, Z), product, atol=1e-8)


def test_known_values():
    p, z = np.array([[3.0, -0.5]]), np.array([[1.0, 0.0]])
    np.testing.assert_array_equal(FITS["huber"]().values(p, z), [[3.0, 0.25]])
    np.testing.assert_array_equal(FITS["absolute"]().values(p, z), [[2.0, 0.5]])
    np.testing.assert_allclose(QuantileFit(0.9).values(p, z), [[0.2, 0.45]])
    zero = np.zeros((1, 2))
    np.testing.assert_allclose(FITS["logistic"]().values(zero, z), np.log(2))
    np.testing.assert_allclose(FITS["softmax"]().values(zero, z), [[np.log(2)]])


def test_bad_fits():
    X, U = RNG.normal(size=(2, 7)), RNG.normal(size=(2, 7))
    for given, words in (
        (3, "3 is no fit"),
        (("huber",), "a pair for Z and for Y"),
        (("huber", "logistic"), "Y holds values .* needs labels 0 and 1"),
        (("huber", "softmax"), "Y must hold class probabilities"),
    ):
        with pytest.raises(InputError, match=words):
            Relaxed(X, U, X, 9.0 + U, fit=given)
    with pytest.raises(UnknownNameError, match="hubber"):
        OutputRow(X, U, X[0], fit="hubber")
    for make in (lambda: HuberFit(0.0), lambda: QuantileFit(1.0), lambda: as_fit(HuberFit)):
        with pytest.raises(InputError):
            make()


def test_probabilities_in_float32_are_made_to_sum_to_one():
    X, U = RNG.normal(size=(2, 7)), RNG.normal(size=(2, 7))
    problem = Relaxed(X, U, X, Z.T.astype(np.float32), fit=("huber", "softmax"))
    assert np.abs(problem.record.fit.target[:, 2:].sum(axis=1) - 1.0).max() < 1e-15
    assert not problem.record.separable
