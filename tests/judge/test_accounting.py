import math

import numpy as np
import pytest

from cimf.errors import InputError
from cimf.judge import count_nonzeros


def layered(sizes, rng):
    """(A|B), (C|D) of a dense bias-free layered network, its first hidden layer at the bottom."""
    p, *hidden, q = sizes
    n = sum(hidden)
    states, outputs = np.zeros((n, n + p)), np.zeros((q, n + p))
    stop, source = n, slice(n, n + p)
    for width in hidden:
        rows = slice(stop - width, stop)
        states[rows, source] = rng.standard_normal((width, source.stop - source.start))
        stop, source = stop - width, rows
    outputs[:, source] = rng.standard_normal((q, source.stop - source.start))
    return states, outputs


def test_the_network_itself_has_sparsity_zero_against_its_own_weights():
    states, outputs = layered((7, 5, 3, 2), np.random.default_rng(0))
    total = 7 * 5 + 5 * 3 + 3 * 2
    count = count_nonzeros(
        states, outputs, bias=False, network_weights=total, network_parameters=total
    )
    assert count.weights == total
    assert count.sparsity["network_weights"] == 0.0
    assert count.dense == (8 + 2) * (8 + 7)
    assert count.sparsity["dense"] == pytest.approx(1 - total / count.dense)
    assert count.emptied == ()


def test_one_removed_weight_is_one_removed_weight():
    states, outputs = layered((7, 5, 3, 2), np.random.default_rng(0))
    states[4, 9] = 0.0
    count = count_nonzeros(states, outputs, bias=False, network_weights=56)
    assert count.weights == 55
    assert count.sparsity["network_weights"] == pytest.approx(1 / 56)
    assert math.isnan(count.sparsity["network_parameters"])


def test_biases_are_counted_apart_and_do_not_fill_an_emptied_row():
    states = np.array([[0.0, 0.0, 0.5], [0.3, 1e-300, 0.0]])
    outputs = np.array([[1.0, 0.0, -1.0]])
    count = count_nonzeros(states, outputs, bias=True, blocks=[("b", 0, 1), ("a", 1, 2)])
    assert (count.weights, count.biases) == (3, 2)  # 1e-300 is not zero
    assert count.emptied == (0,)
    assert [block.name for block in count.blocks] == ["b", "a", "output"]
    assert count.per_row.tolist() == [0, 2, 1]


def test_sparsity_is_negative_where_the_model_is_larger_than_the_network():
    count = count_nonzeros(np.ones((2, 4)), np.ones((1, 4)), bias=False, network_weights=6)
    assert count.sparsity["network_weights"] == -1.0


def test_a_nonzero_outside_the_pattern_is_refused():
    coef, outputs = np.ones((2, 3)), np.ones((1, 3))
    pattern = np.ones((2, 3), dtype=bool)
    pattern[0, 0] = False
    with pytest.raises(InputError, match="outside the admissible"):
        count_nonzeros(coef, outputs, bias=False, admissible=(pattern, np.ones((1, 3), bool)))
    coef[0, 0] = 0.0
    count = count_nonzeros(coef, outputs, bias=False, admissible=(pattern, np.ones((1, 3), bool)))
    assert count.admissible == 8
    assert count.sparsity["admissible"] == 0.0


@pytest.mark.parametrize("blocks", [[("a", 0, 1)], [("a", 0, 2), ("b", 1, 2)], [("a", 1, 2)]])
def test_blocks_must_cover_the_rows(blocks):
    with pytest.raises(InputError, match="cover"):
        count_nonzeros(np.ones((2, 3)), np.ones((1, 3)), bias=False, blocks=blocks)


def test_degenerate_shapes():
    count = count_nonzeros(np.zeros((0, 3)), np.zeros((1, 3)), bias=False)
    assert count.weights == 0
    assert count.emptied == (0,)
    with pytest.raises(InputError):
        count_nonzeros(np.ones((2, 3)), np.ones((1, 4)), bias=False)
    with pytest.raises(InputError):
        count_nonzeros(np.full((2, 3), np.nan), np.ones((1, 3)), bias=False)


def test_biases_by_hand():
    states = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 4.0]])  # columns x1, x2, u, 1
    outputs = np.array([[5.0, 0.0, 0.0, 0.0]])
    count = count_nonzeros(states, outputs, bias=True, network_weights=6, network_parameters=10)
    assert (count.weights, count.biases, count.dense) == (3, 2, 12)
    assert count.emptied == (1,)
    assert count.sparsity["network_weights"] == pytest.approx(1 - 3 / 6)
    assert count.sparsity["network_parameters"] == pytest.approx(1 - 5 / 10)
    assert count.sparsity["dense"] == pytest.approx(1 - 5 / 12)
