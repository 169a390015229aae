"""States that depend on no input are folded into the bias: the same function, read by nobody."""

import numpy as np
import pytest
import scipy.sparse

from cimf.errors import InputError
from cimf.model import ImplicitModel
from cimf.model.constant_states import without_constant_states


def model(constant, seed=0, sparse=False):
    """A causal model of 6 states and 3 inputs; some rows hold nothing but the bias."""
    rng = np.random.default_rng(seed)
    A, B = np.triu(rng.normal(size=(6, 6)), 1), rng.normal(size=(6, 4))
    A[constant], B[constant, :-1] = 0.0, 0.0
    C, D = rng.normal(size=(2, 6)), rng.normal(size=(2, 4))
    wrap = scipy.sparse.csr_array if sparse else np.asarray
    return ImplicitModel(*(wrap(m) for m in (A, B, C, D)), bias=True)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_function_stays_and_nobody_reads_the_constants(sparse):
    before = model([2, 4], sparse=sparse)
    after = without_constant_states(before)
    U = np.random.default_rng(1).normal(size=(3, 50))
    np.testing.assert_allclose(after.predict(U), before.predict(U), rtol=1e-12, atol=1e-12)
    assert not after.A[:, [2, 4]].any()
    assert not after.C[:, [2, 4]].any()
    np.testing.assert_array_equal(after.C[:, [0, 1, 3, 5]], model([2, 4]).C[:, [0, 1, 3, 5]])


def test_a_state_of_constants_alone_is_constant():
    A = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    B = np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 0.5]])
    chain = ImplicitModel(A, B, np.array([[5.0, 0.0, 0.0]]), np.zeros((1, 2)), bias=True)
    after = without_constant_states(chain)  # x = (1 + 2 (3/2 - 1), 3/2 - 1, 1/2)
    assert not after.A.any()
    assert not after.C.any()
    np.testing.assert_allclose(after.D, [[0.0, 10.0]])


def test_nothing_constant_nothing_changed():
    before = model([])
    after = without_constant_states(before)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_without_a_bias_there_is_no_place():
    with pytest.raises(InputError, match="without a bias"):
        without_constant_states(ImplicitModel([[0.0]], [[1.0]], [[1.0]], [[0.0]]))
