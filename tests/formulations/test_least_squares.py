"""Row data: every form of the same data has the same objective, and bad data is refused."""

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.errors import InputError
from formulations.least_squares import LeastSquares


def data(m=40, n=7, r=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, n)), rng.normal(size=(m, r)), rng.normal(size=(r, n))


def direct(design, target, coef):
    return np.array([0.5 * np.sum((design @ a - z) ** 2) for a, z in zip(coef, target.T)])  # noqa: B905


@pytest.mark.parametrize("m", [3, 7, 40])
@pytest.mark.parametrize("form", ["given", "reduced", "moments", "moments reduced", "sparse"])
def test_every_form_has_the_same_objective(m, form):
    design, target, coef = data(m)
    fit = LeastSquares.from_arrays(design, target)
    if "moments" in form:
        fit = LeastSquares.from_moments(
            design.T @ design, target.T @ design, np.square(target).sum(axis=0)
        )
    if form == "sparse":
        fit = LeastSquares.from_arrays(scipy.sparse.csr_matrix(design), target)
    if "reduced" in form:
        fit = fit.reduced()
        assert fit.design.shape[0] <= fit.n_features
    expected = direct(design, target, coef)
    np.testing.assert_allclose(fit.value(coef), expected, rtol=1e-12)
    np.testing.assert_allclose(fit.target_sq, np.square(target).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fit.rows([2]).value(coef[2:]), expected[2:], rtol=1e-12)
    with pytest.raises(AssertionError):  # the test can fail
        np.testing.assert_allclose(fit.value(coef * 1.001), expected, rtol=1e-12)


@pytest.mark.parametrize("form", ["given", "reduced", "moments", "sparse"])
def test_scaled_data_of_targets_outside_the_span(form):
    """h of M_j / d_j and z_i / t_i at d_j a_j / t_i is h / t_i^2, the remainder included."""
    design, target, coef = data(40)
    fit = LeastSquares.from_arrays(
        scipy.sparse.csr_array(design) if form == "sparse" else design, target
    )
    if form == "moments":
        fit = LeastSquares.from_moments(
            design.T @ design, target.T @ design, np.square(target).sum(axis=0)
        )
    if form == "reduced":
        fit = fit.reduced()
    assert (fit.remainder > 1.0).all() == (form in ("reduced", "moments"))
    column, size = np.geomspace(0.1, 10.0, 7), np.array([2.0, 5.0, 0.1])
    small = fit.scaled(column, size)
    np.testing.assert_allclose(
        small.value(coef * column / size[:, None]), fit.value(coef) / size**2, rtol=1e-12
    )
    np.testing.assert_allclose(small.target_sq, fit.target_sq / size**2, rtol=1e-12)
    np.testing.assert_allclose(small.column_norms, fit.column_norms / column, rtol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_moments_of_any_rank(seed, m, n):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(m, n)) * 10.0 ** rng.integers(-8, 9, size=n)
    design[:, rng.integers(n)] = design[:, 0]
    target = rng.normal(size=(m, 2))
    fit = LeastSquares.from_moments(
        design.T @ design, target.T @ design, np.square(target).sum(axis=0)
    )
    coef = rng.normal(size=(2, n)) / np.abs(design).max(axis=0)
    expected = direct(design, target, coef)
    np.testing.assert_allclose(fit.value(coef), expected, rtol=1e-9)


def test_condition_number_1e17():
    """The factor of the Gram is accurate where the Gram as a quadratic form is hopeless."""
    design = np.vander(np.linspace(0, 1, 60), 25)
    assert np.linalg.cond(design.T @ design) > 1e16
    target = np.sin(5 * np.linspace(0, 1, 60))[:, None]
    fit = LeastSquares.from_moments(
        design.T @ design, target.T @ design, np.square(target).sum(axis=0)
    )
    coef = np.random.default_rng(0).normal(size=(1, 25))
    np.testing.assert_allclose(fit.value(coef), direct(design, target, coef), rtol=1e-12)
    assert fit.design.shape[0] < 25


def test_a_gram_rounded_to_float32_is_refused():
    design = np.random.default_rng(0).normal(size=(50, 80))
    gram = (design.T @ design).astype(np.float32)
    with pytest.raises(InputError, match="accumulate it in float64"):
        LeastSquares.from_moments(gram, design.T @ np.ones(50), 50.0)


@pytest.mark.parametrize(
    ("design", "target", "words"),
    [
        (np.zeros((0, 3)), np.zeros(0), "must not be empty"),
        (np.zeros((3, 0)), np.zeros(3), "must not be empty"),
        (np.zeros((3, 2)), np.zeros(4), "do not fit"),
        (np.full((3, 2), np.nan), np.zeros(3), "NaN"),
        (np.zeros((3, 2)), np.full(3, np.inf), "NaN or infinite"),
        (np.zeros((3, 2), np.float16), np.zeros(3), "float16"),
        (np.zeros((3, 2)), np.zeros((3, 1, 1)), "dimension"),
        (np.array([["a", "b"]]), np.zeros(1), "dtype"),
        (scipy.sparse.csr_array(np.array([[np.nan, 1.0]])), np.zeros(1), "NaN"),
    ],
)
def test_bad_data(design, target, words):
    with pytest.raises(InputError, match=words):
        LeastSquares.from_arrays(design, target)


@pytest.mark.parametrize(
    ("gram", "corr", "square"),
    [
        (np.eye(3), np.zeros(2), 1.0),
        (np.triu(np.ones((2, 2))), np.zeros(2), 1.0),
        (np.eye(2), np.zeros(2), -1.0),
        (-np.eye(2), np.zeros(2), 1.0),
    ],
)
def test_bad_moments(gram, corr, square):
    with pytest.raises(InputError):
        LeastSquares.from_moments(gram, corr, square)


def test_zero_columns_stay_zero_through_every_reduction():
    """Their rounding, 1e-14, was scaled to unit norm: gaps of 0.5 on states with dead pixels."""
    rng = np.random.default_rng(3)
    design = np.maximum(rng.normal(size=(60, 20)) @ rng.normal(size=(20, 30)), 0.0)
    design[:, [0, 7, 29]] = 0.0
    target = rng.normal(size=60)
    moments = LeastSquares.from_moments(design.T @ design, design.T @ target, target @ target)
    for fit in (moments, moments.reduced(), LeastSquares.from_arrays(design, target).reduced()):
        assert (np.flatnonzero(fit.column_norms == 0.0) == [0, 7, 29]).all()
        np.testing.assert_allclose(fit.column_norms, np.linalg.norm(design, axis=0), rtol=1e-10)
