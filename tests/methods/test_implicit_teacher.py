"""Sparse models of an implicit teacher: states from its own equilibria."""

import numpy as np
import pytest
import torch

import cimf
from cimf.errors import CaptureError, InputError
from cimf.model import state_scales


def teacher(norm=0.8, n=6, activation="relu", bias=True):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(n, n))
    A *= norm / np.abs(A).sum(axis=1, keepdims=True)
    B, C = rng.normal(size=(n, 4 + bias)), rng.normal(size=(2, n))
    return cimf.ImplicitModel(A, B, C, np.zeros((2, 4 + bias)), activation, bias=bias)


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(400, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_states_are_the_equilibria_of_the_teacher(inputs, bias):
    model = teacher(bias=bias)
    reference = cimf.Reference.capture(model, [inputs])
    (states,) = reference.calibration.chunks()
    found = model.equilibrium(inputs.double().numpy().T)
    np.testing.assert_allclose(states.X, found.X, atol=1e-12)
    np.testing.assert_allclose(np.maximum(states.Z, 0.0), states.X, atol=1e-9)
    np.testing.assert_allclose(states.Y, model.predict(inputs.double().numpy().T), atol=1e-12)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_large_ball_gives_the_teacher_back(inputs, rescale):
    result = cimf.sparsify(teacher(), [inputs], 0.99, "full", rescale=rescale)
    assert result.report.certified == 6
    assert result.report.wellposedness.wellposed
    wide = cimf.sparsify(teacher(), [inputs], 50.0, "full", rescale=rescale, allow_ill_posed=True)
    assert wide.report.evaluation.output_error < 1e-6
    if rescale:  # the teacher itself is inside the ball
        assert result.report.evaluation.output_error < 1e-6


@pytest.mark.parametrize("loss", [None, "sensitivity"])
def test_a_smaller_ball_is_sparser_and_still_certified(inputs, loss):
    wide, narrow = (
        cimf.sparsify(teacher(), [inputs], kappa, "full", loss=loss).report for kappa in (0.8, 0.2)
    )
    assert narrow.certified == wide.certified == 6
    assert narrow.nonzeros.weights < wide.nonzeros.weights
    assert wide.evaluation.output_error < narrow.evaluation.output_error


def test_scales_make_a_model_with_feedback_feasible():
    model = teacher()
    bounded = np.array([True] * 4 + [False])
    scale = state_scales(model.A, model.B, 0.99, bounded)
    scaled = model.scaled(scale)
    rows = np.abs(scaled.A).sum(axis=1) + np.abs(scaled.B[:, :4]).sum(axis=1)
    np.testing.assert_allclose(rows, 0.99, rtol=1e-12)
    with pytest.raises(InputError, match="eigenvalue"):
        state_scales(1.5 * np.eye(3), np.ones((3, 2)))
    with pytest.raises(InputError, match="rescale=False"):
        state_scales(model.A, model.B, 0.99, bounded, np.arange(6) > 0)


@pytest.mark.parametrize("loss", [None, "sensitivity"])
@pytest.mark.parametrize("design", ["causal", "predecessors"])
def test_designs_without_feedback_are_refused(inputs, design, loss):
    with pytest.raises(InputError, match="feedback"):
        cimf.sparsify(teacher(), [inputs], 0.5, design, loss=loss)


def test_a_teacher_without_equilibrium_is_refused(inputs):
    model = cimf.ImplicitModel(2 * np.eye(3), np.ones((3, 4)), np.ones((1, 3)), np.zeros((1, 4)))
    with pytest.raises(CaptureError, match="no equilibrium"):
        cimf.sparsify(model, [inputs], 0.5, "full")
