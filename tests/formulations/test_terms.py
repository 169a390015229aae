"""Losses and sets: every entry of the dictionaries, and user-defined ones, checked the same way."""

import cvxpy as cp
import numpy as np
import pytest

from formulations.catalogue import FORMULATIONS
from formulations.constraint_set import ConstraintSet
from formulations.errors import FormulationError, InputError, UnknownNameError
from formulations.loss import minimum
from formulations.losses import (
    L1,
    LOSSES,
    ElasticNet,
    Group,
    Loss,
    Perspective,
    WeightedL1,
    as_loss,
)
from formulations.matrix_rows import Rows
from formulations.relaxed import Relaxed
from formulations.sets import SETS, Box, Causal, NoSelfLoop, Pattern, as_set
from formulations.terms import disagree

N_STATES, N_INPUTS, N_OUTPUTS = 4, 3, 2
SIZES = (N_STATES, N_INPUTS, N_OUTPUTS)
INDEX = np.arange(N_STATES + N_OUTPUTS)


def rows(seed=0, scale=1.0):
    values = scale * np.random.default_rng(seed).normal(size=(6, 7))
    return Rows(values, INDEX, N_STATES)


def some(given, index):
    return Rows(given.values[index], given.index[index], given.n_states)


@pytest.mark.parametrize("name", [*LOSSES, *SETS])
def test_check_passes(name):
    term = {**LOSSES, **SETS}[name].example(*SIZES)
    check = term.check(*SIZES)
    assert check.ok, check.problems
    assert "clarabel" not in check.missing
    check.raise_if_failed()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_convex_and_agree_with_their_expression(name, seed):
    loss = LOSSES[name].example(*SIZES)
    x, y = rows(seed, 3.0), rows(seed + 10, 0.3)
    middle = Rows(0.5 * (x.values + y.values), INDEX, N_STATES)
    assert loss.value(middle) <= 0.5 * (loss.value(x) + loss.value(y)) + 1e-12
    for point in (x, y, Rows(np.zeros((6, 7)), INDEX, N_STATES)):
        expression, constraints = loss.lifted(Rows(cp.Constant(point.values), INDEX, N_STATES))
        written, violation = minimum(expression, constraints)
        tolerance = 1e-6 if constraints else 1e-12  # a minimum over variables of its own
        assert loss.value(point) == pytest.approx(written, rel=tolerance, abs=tolerance - 1e-12)
        assert violation <= tolerance


@pytest.mark.parametrize("name", [n for n in LOSSES if LOSSES[n].separable])
def test_separable_losses_are_sums_over_any_rows(name):
    loss = LOSSES[name].example(*SIZES)
    point = rows(1)
    parts = [some(point, np.array(i)) for i in ([0, 2], [1, 3, 5], [4])]
    assert sum(loss.value(p) for p in parts) == pytest.approx(loss.value(point), rel=1e-12)


def test_column_group_is_not_a_sum_over_rows():
    """The identity above can fail."""
    loss, point = LOSSES["column-group"](), rows(1)
    parts = [some(point, np.array([i])) for i in range(6)]
    assert sum(loss.value(p) for p in parts) > 1.1 * loss.value(point)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("seed", range(3))
def test_nearest_is_inside_and_violation_agrees_with_the_constraints(name, seed):
    term = SETS[name].example(*SIZES)
    point = rows(seed, 3.0)
    assert term.violation(point) > 0  # the test can fail
    inside = Rows(term.nearest(point), INDEX, N_STATES)
    assert term.violation(inside) == 0
    assert np.abs(inside.values).sum() > 0
    np.testing.assert_array_equal(term.nearest(inside), inside.values)
    constant = Rows(cp.Constant(point.values), INDEX, N_STATES)
    worst = max(np.max(c.violation()) for c in term.constraints(constant))
    assert term.violation(point) == pytest.approx(worst, rel=1e-12)


@pytest.mark.parametrize("name", SETS)
def test_sets_of_one_row_are_the_rows_of_the_set(name):
    term, point = SETS[name].example(*SIZES), rows(2, 3.0)
    worst = max(term.violation(some(point, np.array([i]))) for i in range(6))
    assert worst == term.violation(point)


def test_known_values():
    w = Rows(np.array([[3.0, -4.0, 0.0]]), np.array([0]), 2)
    assert L1(2.0).value(w) == 14.0
    assert WeightedL1([1.0, 0.5, 9.0]).value(w) == 5.0
    assert ElasticNet(1.0, 2.0).value(w) == 7.0 + 25.0
    assert Group(1.0).value(w) == pytest.approx(np.sqrt(2) * 5.0)
    assert Group(1.0, [0, 1, 1]).value(w) == pytest.approx(3.0 + np.sqrt(2) * 4.0)
    assert LOSSES["robust"](2.0).value(w) == 10.0
    assert LOSSES["column-group"]().value(w) == 7.0
    # knee at sqrt(2 * 2 / 1) = 2: 3 -> 2 + 4.5, 4 -> 2 + 8, 0 -> 0
    assert Perspective(2.0, 1.0).value(w) == pytest.approx(16.5)
    small = Rows(np.array([[0.5]]), np.array([0]), 1)
    grid = np.linspace(1e-6, 1, 10**6)
    assert Perspective(2.0, 1.0).value(small) == pytest.approx(
        np.min(2.0 * grid + 0.5 * 0.25 / grid), rel=1e-9
    )


def test_norms_of_the_balls():
    w = np.array([[3.0, -4.0, 1.0]])
    for ball, norm in (
        (SETS["weighted-l1-ball"](weights=[1.0, 2.0, 0.0]), 11.0),
        (SETS["l2-ball"](), np.sqrt(26.0)),
        (SETS["l-infinity-ball"](), 4.0),
        (SETS["largest-sum"](k=2), 7.0),
        (SETS["largest-sum"](k=9), 8.0),
        (SETS["sorted-l1-ball"](weights=[2.0, 1.0]), 11.0),
    ):
        assert ball.norm(w)[0] == pytest.approx(norm, rel=1e-15)
        assert ball.written(cp.Constant(w)).value[0] == pytest.approx(norm, rel=1e-12)
        row = Rows(w, np.array([0]), 2)
        assert ball.violation(row) == pytest.approx(norm - 1.0, rel=1e-12)
    states = SETS["l2-ball"](2.5, columns="states")
    np.testing.assert_allclose(states.nearest(row), [[1.5, -2.0, 1.0]], rtol=1e-12)
    assert states.violation(row) == 2.5
    zero = SETS["l2-ball"](0.0, columns="inputs")
    np.testing.assert_array_equal(zero.nearest(row), [[3.0, -4.0, 0.0]])


def test_patterns():
    every = Rows(np.ones((6, 7)), INDEX, N_STATES)
    np.testing.assert_array_equal(
        Causal((2, 1, 1)).nearest(every)[:4, :4],
        [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]],
    )
    assert (Causal((2, 1, 1)).nearest(every)[:, 4:] == 1).all()
    assert (Causal((2, 1, 1)).nearest(every)[4:] == 1).all()
    loops = NoSelfLoop().nearest(every)
    assert (np.flatnonzero(loops == 0) == [0, 8, 16, 24]).all()  # not in (C, D)
    with pytest.raises(InputError, match="do not sum to n = 4"):
        Causal((1, 1)).violation(every)
    with pytest.raises(InputError, match="does not fit"):
        Pattern(np.ones((2, 2), dtype=bool)).violation(every)


@pytest.mark.parametrize(
    "make",
    [
        lambda: L1(-1.0),
        lambda: ElasticNet(np.nan),
        lambda: Perspective(1.0, 0.0),
        lambda: WeightedL1([-1.0]),
        lambda: Box(1.0, 0.0),
        lambda: Pattern([[1, 0]]),
        lambda: Causal(()),
        lambda: SETS["l1-ball"](-1.0),
        lambda: SETS["l1-ball"](1.0, "rows"),
        lambda: SETS["l2-ball"](-1.0),
        lambda: SETS["largest-sum"](k=0),
        lambda: SETS["weighted-l1-ball"](),
        lambda: SETS["weighted-l1-ball"](0.0, weights=[1.0, 0.0]),
        lambda: SETS["sorted-l1-ball"](weights=[0.5, 1.0]),
    ],
)
def test_bad_parameters(make):
    with pytest.raises(InputError):
        make()


def test_small_disagreements_are_found():
    class Off(Loss):
        def expression(self, rows):
            return cp.sum(cp.abs(rows.values))

        def value(self, rows):
            return (1.0 + 1e-7) * float(np.abs(rows.values).sum())

    with pytest.raises(FormulationError, match=r"value\(\) gives"):
        Off().check(*SIZES).raise_if_failed()


def test_wrong_coordinates_are_found():
    class Half(L1):
        def expression(self, rows):
            return 0.5 * super().expression(rows)

        def value(self, rows):
            return 0.5 * super().value(rows)

    for loss in (Half(), 2.0 * Half() + L1()):
        with pytest.raises(FormulationError, match=r"where coordinates\(\) give"):
            loss.check(*SIZES).raise_if_failed()
    total = (2.0 * L1(3.0) + ElasticNet(0.5, 4.0)).coordinates(rows())
    assert [(part == number).all() for part, number in zip(total, (6.5, 4.0), strict=True)]
    assert (L1() + Group()).coordinates(rows()) is None


def test_weights_of_any_size():
    """A weight of 0 is valid; rounding at 1e9 is no disagreement."""
    point = rows(5)
    for weight in (0.0, 0.25, 1e9):
        loss = L1(weight)
        loss.check(*SIZES).raise_if_failed()
        assert loss.value(point) == pytest.approx(weight * np.abs(point.values).sum(), rel=1e-14)


def concave(a, b):
    return -cp.sum_squares(a)


def not_dcp(a, b):
    return cp.norm1(b) + cp.sqrt(cp.sum_squares(a))


def not_dpp(a, b):
    t, s = cp.Parameter(nonneg=True, value=1.0), cp.Parameter(nonneg=True, value=1.0)
    return cp.norm1(b) + t * s * cp.norm1(a)


def a_vector(a, b):
    return a


def a_number(A, B, C, D):
    return 3.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (concave, "is concave, not convex"),
        (not_dcp, r"because of the sub-expression .*\(quad_over_lin\(W\[0, 0:4\]"),
        (not_dpp, "not DPP .* because of the sub-expression param"),
        (a_vector, r"has shape \(4,\)"),
        (a_number, "is a float"),
    ],
)
def test_bad_losses_are_named(function, words):
    check = as_loss(function).check(*SIZES)
    assert function.__name__ in check.name
    with pytest.raises(FormulationError, match=words):
        check.raise_if_failed()


def outside(a, b):
    return cp.sum_squares(a) >= 1


def product(A, B, C, D):
    return [A >= 0, cp.norm(B[:3] @ D.T, "fro") <= 1]


def no_constraint(a, b):
    return [cp.norm1(a)]


def number(a, b):
    return 3


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (outside, r"1.0 <= quad_over_lin.* is not DCP \(1.0 is constant, .* is convex\)"),
        (product, "because of the sub-expression .*@"),
        (no_constraint, "^set no_constraint: the set holds a norm1; CVXPY constraints are needed$"),
        (number, "holds a int; CVXPY constraints are needed"),
    ],
)
def test_bad_sets_are_named(function, words):
    with pytest.raises(FormulationError, match=words):
        as_set(function).check(*SIZES).raise_if_failed()


class WronglySeparable(Loss):
    """The Frobenius norm is no sum over rows."""

    def expression(self, rows):
        return cp.norm(rows.values, "fro")

    def value(self, rows):
        return float(np.linalg.norm(rows.values))


class WrongValue(Loss):
    def expression(self, rows):
        return cp.sum(cp.abs(rows.values))

    def value(self, rows):
        return float(np.abs(rows.values).max())


class WronglySeparableSet(ConstraintSet):
    def constraints(self, rows):
        return [cp.sum(cp.abs(rows.values)) <= 1]

    def violation(self, rows):
        return max(float(np.abs(rows.values).sum()) - 1.0, 0.0)


class WrongViolation(ConstraintSet):
    def constraints(self, rows):
        return [rows.values >= 0]

    def violation(self, rows):
        return 0.0


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (WronglySeparable(), "declared separable.* set separable = False"),
        (WrongValue(), r"value\(\) gives"),
        (WronglySeparableSet(), "declared separable"),
        (WrongViolation(), r"violation\(\) gives 0"),
    ],
)
def test_wrong_declarations_are_found(term, words):
    with pytest.raises(FormulationError, match=words):
        term.check(*SIZES).raise_if_failed()
    rng = np.random.default_rng(0)
    keyword = "loss" if isinstance(term, Loss) else "sets"
    data = [rng.normal(size=(k, 10)) for k in (4, 3, 4, 2)]
    with pytest.raises(FormulationError, match=words):
        Relaxed(*data, **{keyword: term})


class AtMostOnes(ConstraintSet):
    """|A| <= a binary matrix: not convex, and not for Clarabel."""

    def constraints(self, rows):
        return [cp.abs(rows.states) <= cp.Variable(rows.states.shape, boolean=True)]

    def violation(self, rows):
        return max(float(np.abs(rows.states).max()) - 1.0, 0.0)


def test_what_a_backend_lacks_is_said():
    check = AtMostOnes().check(*SIZES)
    assert check.ok
    assert "clarabel" in check.missing


def test_sets_with_variables_of_their_own_are_refused():
    def epigraph(a, b):
        t = cp.Variable(name="slack")
        return [cp.norm1(a) <= t, t <= 1]

    with pytest.raises(FormulationError, match=r"variables of its own \(slack\)"):
        as_set(epigraph).check(*SIZES).raise_if_failed()


def largest(a, b):
    t = cp.Variable()
    return 2.0 * t, [cp.abs(a) <= t]


def parts(a, b):
    u, v = cp.Variable(N_STATES, nonneg=True), cp.Variable(N_STATES, nonneg=True)
    return cp.sum(u + 3.0 * v), a == u - v


def distance(a, b):
    return cp.norm1(a - cp.Variable(N_STATES)) + cp.norm1(b)


def norms(A, B, C, D):
    t = cp.Variable()
    return t, [cp.norm(A, "fro") <= t, cp.norm1(C) <= t]


class Epigraph(Loss):
    """The largest entry of each row, with no numpy value."""

    def expression(self, rows):
        t = cp.Variable(rows.values.shape[0])
        return cp.sum(t), [cp.max(cp.abs(rows.values), axis=1) <= t]


@pytest.mark.parametrize(
    ("given", "by_hand"),
    [
        (largest, lambda w: 2.0 * np.abs(w[:, :4]).max(axis=1).sum()),
        (parts, lambda w: (np.maximum(w, 0) + 3.0 * np.maximum(-w, 0))[:, :4].sum()),
        (distance, lambda w: np.abs(w[:, 4:]).sum()),
        (norms, lambda w: max(np.linalg.norm(w[:4, :4]), np.abs(w[4:, :4]).sum())),
        (Epigraph(), lambda w: np.abs(w).max(axis=1).sum()),
    ],
)
def test_a_loss_may_be_a_minimum_over_variables_of_its_own(given, by_hand):
    loss, point = as_loss(given), rows(3)
    loss.check(*SIZES).raise_if_failed()
    assert loss.separable == (given is not norms)
    assert loss.value(point) == pytest.approx(by_hand(point.values), rel=1e-8)
    assert 0 <= loss.violation(point) <= 1e-8
    zero = Rows(np.zeros((6, 7)), INDEX, N_STATES)
    assert loss.value(zero) == pytest.approx(0.0, abs=1e-8)


def test_a_loss_is_infinite_where_its_constraints_cannot_be_met():
    def bounded(a, b):
        t = cp.Variable()
        return t, [cp.norm1(a) <= t, t <= 1]

    loss = as_loss(bounded)
    loss.check(*SIZES).raise_if_failed()
    small = rows(0, 0.05)
    assert loss.value(small) == pytest.approx(np.abs(small.values[:, :4]).sum(), rel=1e-8)
    assert loss.value(rows(0, 3.0)) == np.inf
    # Without variables of its own: what is violated is said, by how much.
    plain = as_loss(lambda a, b: (cp.norm1(b), [cp.norm1(a) <= 1]))
    point = Rows(np.array([[2.0, -3.0, 5.0]]), np.array([0]), 2)
    assert (plain.value(point), plain.violation(point)) == (5.0, 4.0)


def test_wrong_losses_with_own_variables_are_found():
    shared = cp.Variable()

    class WrongEpigraph(Epigraph):
        def value(self, rows):
            return 0.999 * float(np.abs(rows.values).max(axis=1).sum())

    class Barrier(Epigraph):
        def value(self, rows):
            return np.inf

    for given, words in (
        (Barrier(), r"value\(\) gives inf where expression\(\) gives"),
        (lambda a, b: (shared, [cp.norm1(a) <= shared]), "anew in every call"),
        (lambda a, b: (cp.Variable(), [a >= -9]), "unbounded below over its own variables"),
        (lambda a, b: (cp.Variable(), [cp.norm1(a) >= 1]), "is not DCP"),
        (lambda a, b: (cp.norm1(a), [3]), "holds a int"),
        (WrongEpigraph(), r"value\(\) gives .* where expression\(\) gives"),
    ):
        with pytest.raises(FormulationError, match=words):
            as_loss(given).check(*SIZES).raise_if_failed()
    with pytest.raises(InputError, match="got 3 parts"):
        as_loss(lambda a, b: (cp.norm1(a), [], 1)).check(*SIZES)


def test_losses_add_and_scale():
    def squares(a, b):
        return 0.1 * cp.sum_squares(a)

    point = rows(4)
    w = point.values
    l1, square = np.abs(w).sum(), np.square(w[:, :4]).sum()
    column = LOSSES["column-group"]()
    mu = cp.Parameter(nonneg=True, value=3.0)
    for loss, expected in (
        (L1() + squares, l1 + 0.1 * square),
        (squares + L1(2.0), 2 * l1 + 0.1 * square),
        (np.float64(2.0) * L1() + 3 * (L1() + as_loss(squares)) * 0.5, 3.5 * l1 + 0.15 * square),
        (sum([L1(), L1(2.0)]), 3 * l1),
        (0 * L1() + largest, 2 * np.abs(w[:, :4]).max(axis=1).sum()),
        (L1() * mu + column, 3 * l1 + column.value(point)),
    ):
        loss.check(*SIZES).raise_if_failed()
        assert loss.value(point) == pytest.approx(expected, rel=1e-9)
        assert loss.separable == ("ColumnGroup" not in loss.name)
        constant = Rows(cp.Constant(w), INDEX, N_STATES)
        assert len(loss.lifted(constant)[1]) == (6 if "largest" in loss.name else 0)
    assert (L1() + squares).name == "loss L1 + squares"
    mu.value = 0.5
    assert (L1() * mu).value(point) == pytest.approx(0.5 * l1)
    inside = L1() + (lambda a, b: (cp.norm1(b), [cp.norm1(a) <= 1]))
    assert inside.violation(Rows(np.array([[2.0, -3.0, 5.0]]), np.array([0]), 2)) == 4.0


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf, cp.Parameter(), "x", np.ones(2)])
def test_bad_weights_of_losses(weight):
    with pytest.raises((InputError, TypeError)):
        L1() * weight


def test_bad_parts_of_a_sum_are_named():
    with pytest.raises(FormulationError, match="concave: the expression is concave"):
        (L1() + concave).check(*SIZES).raise_if_failed()
    with pytest.raises(TypeError):
        L1() + 3.0
    with pytest.raises(TypeError):
        L1() + L1


def test_parameters_without_a_value_are_tried_with_one():
    mu, level = cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    as_loss(lambda a, b: mu * cp.norm1(a)).check(*SIZES).raise_if_failed()
    as_set(lambda a, b: cp.norm1(a) <= level).check(*SIZES).raise_if_failed()
    assert mu.value is None
    assert level.value is None
    with pytest.raises(FormulationError, match="not convex"):
        as_loss(lambda a, b: -mu * cp.norm1(a)).check(*SIZES).raise_if_failed()


def test_values_differ_by_more_than_rounding_or_not():
    """Relative to the larger, and to 1 where both are smaller."""
    for x, y, tolerance, different in (
        (1e-9, 2e-9, 1e-8, False),
        (1e6, 1e6 + 1.0, 1e-8, True),
        (1e6 + 1.0, 1e6, 1e-5, False),
        (-1e6, -1e6 - 1.0, 1e-5, False),
        (np.inf, np.inf, 1e-8, False),
        (np.inf, 1.0, 1e-8, True),
        (np.nan, 1.0, 1e-8, True),
        (0.5, 0.5, 0.0, False),
        (1.0, 1.25, 0.2, False),
        (1.0, 1.25, 0.19, True),
    ):
        assert disagree(x, y, tolerance) == disagree(y, x, tolerance) == different


def test_cones_of_the_constraints_are_listed():
    def soft(a, b):
        t = cp.Variable()
        return t, [cp.log_sum_exp(a) <= t]

    assert "exp" in as_loss(soft).check(*SIZES).cones
    assert "soc" in as_set(lambda a, b: cp.norm(a) <= 1).check(*SIZES).cones
    assert as_loss(soft).check(*SIZES, cones=False).cones == ()


def test_row_sums_are_the_induced_norms():
    w = Rows(np.array([[1.0, -2.0, 3.0], [0.0, 4.0, -1.0], [-5.0, 0.0, 2.0]]), np.arange(3), 2)
    assert LOSSES["row-sums"](2.0).value(w) == 2.0 * (4.0 + 3.0 + 5.0 + 2.0)
    norms = [np.linalg.norm(part, np.inf) for part in w.blocks]
    assert LOSSES["row-sums"]().value(w) == sum(norms)
    assert not LOSSES["row-sums"].separable


@pytest.mark.parametrize("given", [{"l0": -1.0}, {"l2": -1.0}, {"l2": 0.0}, {"l0": np.nan}])
def test_a_perspective_needs_sensible_weights(given):
    with pytest.raises(InputError, match=next(iter(given))):
        LOSSES["perspective"](**given)


def test_cones_are_listed():
    assert "psd" in as_loss(lambda A, B, C, D: cp.norm(A, "nuc")).check(*SIZES).cones
    assert "exp" in as_loss(lambda a, b: cp.sum(cp.logistic(a))).check(*SIZES).cones
    assert LOSSES["group"]().check(*SIZES).cones == ("soc",)


@pytest.mark.parametrize("name", sorted(FORMULATIONS))
def test_a_keyword_that_a_problem_does_not_take_is_named(name):
    problem = FORMULATIONS[name]
    with pytest.raises(UnknownNameError, match=f"argument of {problem.__name__} 'lozs'; known: "):
        problem(np.eye(3), np.eye(3), lozs="l1")


def test_a_function_may_ask_for_the_place_of_its_row():
    """Weights per row of W, as an array and as a CVXPY parameter; a set of one row alone."""
    weight = np.linspace(1.0, 2.0, 6)
    mu = cp.Parameter(6, nonneg=True, value=weight)
    point = rows(6)
    expected = (weight[:, None] * np.abs(point.values[:, :4])).sum()
    for function in (
        lambda a, b, row: weight[row] * cp.norm1(a),
        lambda a, b, row: mu[row] * cp.norm1(a),
    ):
        loss = as_loss(function)
        loss.check(*SIZES).raise_if_failed()
        assert loss.separable
        assert loss.value(point) == pytest.approx(expected, rel=1e-12)
        assert loss.value(some(point, np.array([5]))) == pytest.approx(
            2.0 * np.abs(point.values[5, :4]).sum(), rel=1e-12
        )
    fifth = as_set(lambda a, b, row: [b == 0] if row == 4 else [])
    fifth.check(*SIZES).raise_if_failed()
    assert fifth.violation(point) == np.abs(point.values[4, 4:]).max()
    assert fifth.violation(some(point, np.array([0, 5]))) == 0.0
    with pytest.raises(InputError, match=r"takes 5 arguments; \(a, b\) or \(a, b, row\)"):
        as_loss(lambda a, b, c, d, e: cp.norm1(a))


def test_lists_of_losses_are_their_sum():
    point = rows(4)
    l1 = np.abs(point.values).sum()
    loss = as_loss(["l1", 0.5 * L1(), lambda a, b: cp.sum_squares(b)])
    loss.check(*SIZES).raise_if_failed()
    assert loss.value(point) == pytest.approx(1.5 * l1 + np.square(point.values[:, 4:]).sum())
    assert loss.separable
    assert not as_loss(("l1", "column-group")).separable
    with pytest.raises(InputError, match="an empty list of losses"):
        as_loss([])
    with pytest.raises(UnknownNameError):
        as_loss(["l1", "l3"])
