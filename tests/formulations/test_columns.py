"""The door of every array: what is refused, and what comes out as float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from formulations.columns import Columns, as_array, as_float64, as_mask, check_range, per_row
from formulations.errors import InputError

MASKED = np.ma.array([1.0, 2.0], mask=[True, False])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (MASKED, "masked"),
        ([MASKED, MASKED], "masked"),
        (np.ma.array([1, 2]), "masked"),
        (np.array([1.0 + 0.0j]), "complex"),
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (np.ones(2, np.float16), "float16"),
        (torch.ones(2, dtype=torch.float16), "float16"),
        (torch.ones(2, dtype=torch.bfloat16), "bfloat16"),
        (scipy.sparse.csr_array(np.eye(2)), "sparse"),
        ([[1.0], [1.0, 2.0]], "cannot be read"),
        (["a", "b"], "dtype"),
        ([None], "dtype"),
    ],
)
def test_what_is_refused_by_name(value, named):
    with pytest.raises(InputError, match=named):
        as_array("x", value)
    with pytest.raises(InputError, match=named):
        as_float64("x", value, (1, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_, np.float32, np.float64])
def test_real_numbers_become_float64(dtype):
    out = as_float64("x", np.array([0, 1, 1], dtype), 1)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, [0.0, 1.0, 1.0])


def test_a_tensor_is_taken_from_its_graph():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    np.testing.assert_array_equal(as_float64("x", 2.0 * value, 1), [2.0, 4.0])


def test_masked_arguments_of_rows_are_refused():
    mask = np.ma.array([True, False], mask=[False, True])
    for call in (
        lambda: Columns.build(2, 1, bounded=mask),
        lambda: Columns.build(2, 1, weights=MASKED),
        lambda: Columns.build(2, 1, signs=np.ma.array([1, 0], mask=[1, 0])),
        lambda: per_row("kappa", MASKED, 2),
        lambda: as_mask("mask", mask, 2),
    ):
        with pytest.raises(InputError, match="masked"):
            call()


@pytest.mark.parametrize("size", [1e-165, 1e-141, 1e141])
def test_values_whose_squares_leave_float64_are_refused(size):
    with pytest.raises(InputError, match="rescale"):
        check_range("x", np.array([0.0, size]))
    check_range("x", np.array([1.0, min(size, 1.0)]))
    with pytest.raises(InputError, match="rescale"):
        check_range("x", np.array([[1.0, 0.0], [1.0, -size]]), axis=0)
    check_range("x", np.zeros((2, 2)), axis=0)
    check_range("x", np.array([255, 0], np.uint8))
