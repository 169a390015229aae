import itertools

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import Task
from cimf.methods.layered import elimination as rows
from cimf.methods.layered import supports
from cimf.methods.layered.allocation import by_price, uniform
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.supports import SUPPORTS, Convex, ball, ball_weights
from cimf.methods.layered.survey import _carried
from cimf.statistics import Gram


def problem(seed=0, m=60, n=7, r=3, free=1):
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((m, n + free)) @ (np.eye(n + free) + 0.4)
    M[:, n:] = 1.0
    dense = rng.standard_normal((r, n + free))
    Z = M @ dense.T + rng.standard_normal((m, r))
    return M, Z, Gram.from_arrays(M, Z), dense


def loss(M, z, support):
    coef = np.linalg.lstsq(M[:, support], z, rcond=None)[0]
    return float(np.square(M[:, support] @ coef - z).sum())


@given(seed=st.integers(0, 10_000))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_elimination_drops_the_cheapest_column_every_time(seed):
    M, Z, gram, _ = problem(seed)
    order, increase = rows.elimination(gram, 1, n_jobs=1)
    for i in range(3):
        left = list(range(8))
        for step in range(7):
            base = loss(M, Z[:, i], left)
            costs = {
                j: loss(M, Z[:, i], [k for k in left if k != j]) - base for j in left if j != 7
            }
            cheapest = min(costs, key=costs.get)
            assert order[i, step] == cheapest
            assert increase[i, step] == pytest.approx(costs[cheapest], rel=1e-6, abs=1e-9)
            left.remove(cheapest)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_no_exchange_of_one_column_improves_a_swapped_support(seed, k):
    M, Z, gram, dense = problem(seed)
    start = rows.largest(np.abs(dense[:, :7]), np.full(3, k), 1)
    mask, exchanges = rows.swapped(gram, start, 1, n_jobs=1)
    coef, gap = rows.polished(gram, mask, n_jobs=1)
    assert gap.max() < 1e-20
    assert (mask.sum(axis=1) == k + 1).all()
    assert mask[:, 7].all()
    for i in range(3):
        value = loss(M, Z[:, i], np.flatnonzero(mask[i]))
        assert rows.losses(gram, coef)[i] == pytest.approx(value, rel=1e-7)
        assert value <= loss(M, Z[:, i], np.flatnonzero(start[i])) * (1 + 1e-9)
        assert (exchanges[i] > 0) == (mask[i] != start[i]).any()
        inside, outside = np.flatnonzero(mask[i, :7]), np.flatnonzero(~mask[i])
        for out, into in itertools.product(inside, outside):
            other = [into, *np.flatnonzero(mask[i] & (np.arange(8) != out))]
            assert loss(M, Z[:, i], other) >= value * (1 - 1e-7)


def test_a_planted_worse_support_is_told_from_the_best():
    _, _, gram, _ = problem()
    mask, _ = rows.swapped(gram, SUPPORTS["obs"](gram, np.ones((3, 8)), np.full(3, 3), 1).mask, 1)
    worse = mask.copy()
    worse[0, np.flatnonzero(mask[0])[0]], worse[0, np.flatnonzero(~mask[0])[0]] = False, True
    better = rows.losses(gram, rows.polished(gram, mask)[0])
    assert rows.losses(gram, rows.polished(gram, worse)[0])[0] > better[0]


def test_damping_is_least_squares_with_extra_samples():
    M, Z, gram, dense = problem()
    damped = rows.damped(gram, dense, 0.1, 1)
    extra = np.diag(np.sqrt(0.1) * np.linalg.norm(M, axis=0))[:7]
    for i in range(3):
        full = Gram.from_arrays(np.vstack([M, extra]), np.r_[Z[:, i], extra @ dense[i]])
        np.testing.assert_allclose(damped.gram, full.gram)
        np.testing.assert_allclose(damped.corr[i], full.corr[0])
        assert damped.target_sq[i] == pytest.approx(full.target_sq[0])
    assert damped.n_samples == gram.n_samples


def choose(M, Z, dense, rule, free=1, damping=1e-4):
    gram = rows.damped(Gram.from_arrays(M, Z), dense, damping, free)
    start = rule(gram, dense, np.array([2, 3, 5]), free, 1).mask
    mask, _ = rows.swapped(gram, start, free, n_jobs=1)
    return mask, rows.polished(gram, mask, 1)[0], rows.elimination(gram, free, 1)


@pytest.mark.parametrize("rule", ["obs", "ball", "ball-saliency"])
@pytest.mark.parametrize("base", [2.0, 3.1])
def test_units_of_the_columns_change_nothing(rule, base):
    """Two of the columns are dead: the samples give them no scale at all."""
    M, Z, _, dense = problem(4)
    M[:, [1, 4]] = 0.0
    units = np.r_[base ** np.array([0.0, 9, -7, 20, -13, 3, -20]), 1.0]
    mask, coef, (order, increase) = choose(M, Z, dense, SUPPORTS[rule])
    scaled = choose(M * units, Z, dense / units, SUPPORTS[rule])
    np.testing.assert_array_equal(scaled[0], mask)
    np.testing.assert_array_equal(scaled[2][0][:, 2:], order[:, 2:])
    if base == 2.0:
        np.testing.assert_array_equal(scaled[1] * units, coef)
        np.testing.assert_array_equal(scaled[2][1][:, 2:], increase[:, 2:])
    np.testing.assert_allclose(scaled[1] * units, coef, rtol=1e-9)
    np.testing.assert_allclose(scaled[2][1][:, 2:], increase[:, 2:], rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_of_the_targets_change_nothing(scale):
    M, Z, _, dense = problem(4)
    units = scale ** np.array([1.0, 0.0, -0.5])
    first = choose(M, Z, dense, SUPPORTS["obs"])
    second = choose(M, Z * units, dense * units[:, None], SUPPORTS["obs"])
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1] / units[:, None], rtol=1e-9)


@pytest.mark.parametrize("power", [-60, 60])
def test_gaps_of_polished_rows_have_no_unit(power):
    M, Z, gram, _ = problem()
    mask = np.ones((3, 8), dtype=bool)
    mask[:, :2] = False
    gap = rows.polished(gram, mask, 1)[1]
    assert (gap > 0).any(), "rounding errors must be left for this to say something"
    scaled = rows.polished(Gram.from_arrays(M, Z * 2.0**power), mask, 1)[1]
    np.testing.assert_array_equal(scaled, gap)


def test_samples_in_another_order_or_twice_change_nothing():
    M, Z, _, dense = problem(5)
    mask, coef, (order, increase) = choose(M, Z, dense, SUPPORTS["obs"])
    shuffled = np.random.default_rng(0).permutation(60)
    for index, times in ((shuffled, 1), (np.tile(shuffled, 2), 2)):
        other = choose(M[index], Z[index], dense, SUPPORTS["obs"])
        np.testing.assert_array_equal(other[0], mask)
        np.testing.assert_allclose(other[1], coef, rtol=1e-9)
        np.testing.assert_array_equal(other[2][0], order)
        np.testing.assert_allclose(other[2][1], times * increase, rtol=1e-9)


def test_dead_columns_go_first_and_stay_as_they_were_where_they_are_kept():
    M, Z, _, dense = problem(6)
    M[:, [2, 5]] = 0.0
    dense[:, [2, 5]] *= np.array([[1e6], [1.0], [1e-6]])
    gram = rows.damped(Gram.from_arrays(M, Z), dense, 1e-4, 1)
    order, increase = rows.elimination(gram, 1, 1)
    assert np.array_equal(np.sort(order[:, :2], axis=1), [[2, 5]] * 3)
    assert (increase[:, :2].max(axis=1) < 1e-12 * gram.target_sq).all()
    share = (
        np.diagonal(gram.gram)[[2, 5]] * dense[:, [2, 5]] ** 2 / np.square(Z).sum(axis=0)[:, None]
    )
    np.testing.assert_allclose(share.max(axis=0), np.finfo(float).eps)  # in any unit
    coef, _ = rows.polished(gram, np.ones((3, 8), dtype=bool), 1)
    np.testing.assert_allclose(coef[:, [2, 5]], dense[:, [2, 5]], rtol=1e-12)


def test_dead_input_leaves_the_rows_as_they_were():
    dense = np.arange(1.0, 5.0)[None]
    gram = rows.damped(Gram.from_arrays(np.zeros((5, 4)), np.zeros((5, 1))), dense, 1e-4, 0)
    order, _ = rows.elimination(gram, 0)
    assert order[0].tolist() == [0, 1, 2, 3]
    mask = rows.last_columns(order, np.array([2]), 0)
    np.testing.assert_allclose(rows.polished(gram, mask)[0], [[0, 0, 3, 4]])


def test_dependent_columns_in_any_units():
    """No Cholesky factor: the pseudo-inverse must not depend on the units either."""
    M, Z, _, _ = problem(7)
    M[:, 3] = M[:, 0] + M[:, 1]
    units = np.r_[2.0 ** np.array([0.0, 12, -15, 20, -20, 3, -9]), 1.0]
    full = np.ones((3, 8), dtype=bool)
    fitted = [
        design @ rows.polished(Gram.from_arrays(design, Z), full, 1)[0].T
        for design in (M, M * units)
    ]
    best = M @ np.linalg.lstsq(M, Z, rcond=None)[0]
    np.testing.assert_allclose(fitted[0], best, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fitted[1], best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [0, 7])
@pytest.mark.parametrize("rule", SUPPORTS)
def test_rules_at_the_ends(rule, count):
    _, _, gram, dense = problem()
    choice = SUPPORTS[rule](gram, dense, np.full(3, count), 1)
    mask, exchanges = rows.swapped(gram, choice.mask, 1)
    assert (mask == choice.mask).all()
    assert not exchanges.any()
    assert (mask[:, :7] == (count == 7)).all()
    assert mask[:, 7].all()


@pytest.mark.parametrize("rule", SUPPORTS)
def test_rules_keep_exactly_what_they_are_told(rule):
    _, _, gram, dense = problem()
    counts = np.array([1, 3, 6])
    choice = SUPPORTS[rule](gram, dense, counts, 1)
    assert (choice.mask[:, :7].sum(axis=1) == counts).all()
    if choice.solution is not None:
        choice.solution.raise_if_failed()
        assert (choice.mask | (choice.solution.coef == 0)).all()


@pytest.mark.parametrize("weighting", ["ones", "inverse", "saliency"])
def test_convex_budgets(weighting):
    _, _, gram, dense = problem()
    full = Convex("relative", 1e3, weighting)(gram, dense, None, 1)
    least = np.linalg.solve(gram.gram, gram.corr.T).T
    np.testing.assert_allclose(full.coef, least, rtol=1e-7, atol=1e-9)
    tight = Convex("relative", 0.2, weighting)(gram, dense, None, 1)
    assert tight.mask.sum() < full.mask.sum()
    price = Convex("lam", 0.5, weighting, reweight=2)(gram, dense, None, 1)
    assert price.solution.certificate.passed.all()


def test_the_multiplier_is_per_sample():
    """Every sample twice is the same problem; the gradient of the mean loss is at most lam w_j."""
    M, Z, gram, dense = problem()
    twice = Gram.from_arrays(np.tile(M, (2, 1)), np.tile(Z, (2, 1)))
    one, two = (Convex("lam", 0.7, "inverse")(g, dense, None, 1) for g in (gram, twice))
    np.testing.assert_allclose(one.coef, two.coef, rtol=1e-6, atol=1e-8)
    weights = ball_weights(gram, dense, "inverse", 1)
    gradient = (one.coef @ gram.gram - gram.corr) / 60
    assert (np.abs(gradient) <= 0.7 * weights + 1e-7).all()
    kept = one.coef != 0
    assert kept.any()
    np.testing.assert_allclose(
        gradient[kept], -0.7 * (weights * np.sign(one.coef))[kept], atol=1e-7
    )


@pytest.mark.parametrize("weighting", ["inverse", "saliency"])
def test_a_relative_budget_is_a_share_of_the_weighted_norm(weighting):
    _, _, gram, dense = problem()
    choice = Convex("relative", 0.3, weighting)(gram, dense, None, 1)
    weights = ball_weights(gram, dense, weighting, 1)
    norms = (weights * np.abs(choice.coef)).sum(axis=1)
    np.testing.assert_allclose(norms, 0.3 * (weights * np.abs(dense)).sum(axis=1), rtol=1e-7)


def test_a_plain_budget_is_the_plain_norm():
    _, _, gram, dense = problem()
    choice = Convex("kappa", 1.3)(gram, dense, None, 1)
    np.testing.assert_allclose(np.abs(choice.coef[:, :7]).sum(axis=1), 1.3, rtol=1e-7)
    assert choice.mask[:, 7].all()


def test_saliency_is_one_over_the_root_of_what_dropping_alone_costs():
    M, Z, _, dense = problem()
    Z = M @ np.sign(dense).T + 0.1 * Z  # no weight is so small that it is floored
    least = np.linalg.lstsq(M, Z, rcond=None)[0].T
    weights = ball_weights(Gram.from_arrays(M, Z), least, "saliency", 1)
    for i in range(3):
        base = loss(M, Z[:, i], range(8))
        cost = [loss(M, Z[:, i], [k for k in range(8) if k != j]) - base for j in range(7)]
        product = weights[i, :7] * np.sqrt(cost)
        np.testing.assert_allclose(product, product[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("size", 1.0), UnknownNameError),
        (("kappa", -1.0), InputError),
        (("lam", float("nan")), InputError),
        (("kappa", 1.0, "ones", 2), InputError),
    ],
)
def test_convex_refuses_bad_budgets(arguments, error):
    with pytest.raises(error):
        Convex(*arguments)


def test_unknown_weighting_is_named():
    _, _, gram, dense = problem()
    with pytest.raises(UnknownNameError, match="inverse"):
        Convex("kappa", 1.0, "invers")(gram, dense, None, 1)


@given(keep=st.integers(0, 62), seed=st.integers(0, 99))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_allocations_meet_the_total_and_prices_decide(keep, seed):
    rng = np.random.default_rng(seed)
    increase = [rng.exponential(size=(4, 8)), rng.exponential(size=(6, 5))]
    counts = by_price(increase, keep)
    assert sum(int(c.sum()) for c in counts) == keep
    curves = [np.maximum.accumulate(layer, axis=1) for layer in increase]
    dropped = [
        c[i, : c.shape[1] - k]
        for c, ks in zip(curves, counts, strict=True)
        for i, k in enumerate(ks)
    ]
    kept = [
        c[i, c.shape[1] - k :]
        for c, ks in zip(curves, counts, strict=True)
        for i, k in enumerate(ks)
    ]
    highest = max((d.max() for d in dropped if d.size), default=0.0)
    assert all(k.min() >= highest for k in kept if k.size)
    even = uniform([(4, 8), (6, 5)], keep)
    assert sum(int(c.sum()) for c in even) == keep
    for c, n in zip(even, (8, 5), strict=True):
        assert np.abs(c - keep * n / 62).max() < 1 + 1e-9


def test_ties_are_broken_in_order():
    """60 values of two sizes: a sort that is not stable shuffles equal ones."""
    price = np.tile([[2.0], [1.0], [1.0]], (20, 1))
    assert by_price([price], 40)[0].tolist() == [1, 0, 0] * 10 + [1, 1, 1] * 10
    # Shares 1.25 and 2.5: the leftovers go to the largest remainders, then in order.
    even = uniform([(20, 5), (20, 10)], 75)
    assert even[0].tolist() == [1] * 20
    assert even[1].tolist() == [3] * 15 + [2] * 5
    mask = rows.largest(price.T, np.array([30]), 1)
    assert mask[0].tolist() == [True, False, False] * 15 + [True] * 16


@pytest.mark.parametrize("weighting", ["ones", "inverse", "saliency"])
def test_reweighting_certifies_rows_that_a_round_emptied(weighting):
    """Weights made from an empty row were 1e18, and their rows failed the certificate."""
    M, Z, _, dense = problem(1)
    weak = Gram.from_arrays(M, Z * np.array([1.0, 1e-6, 0.0]))
    dense = dense * np.array([[1.0], [1e-6], [0.0]])
    priced = Convex("lam", 0.5, weighting, reweight=3)(weak, dense, None, 1)
    assert priced.solution.certificate.passed.all()
    for reweight in range(3):
        counts = np.array([3, 3, 0])
        choice = ball(weak, dense, counts, 1, weighting=weighting, reweight=reweight)
        assert choice.solution.certificate.passed.all()
        assert (choice.mask[:, :7].sum(axis=1) == counts).all()
        assert (np.count_nonzero(choice.coef[:, :7], axis=1) <= counts).all()


def test_weights_of_an_empty_row_are_equal_and_small_entries_are_floored():
    _, _, gram, dense = problem(2)
    norm = np.sqrt(np.diagonal(gram.gram)[:7])
    values = np.vstack([np.zeros(8), np.r_[np.r_[1.0, 1e-9, np.ones(5)] / norm, 1.0], dense[0]])
    weights = ball_weights(gram, values, "inverse", 1)
    np.testing.assert_allclose(weights[0], np.r_[norm, 0.0], rtol=1e-12)
    assert weights[1, 1] / norm[1] == pytest.approx(weights[1, 0] / norm[0] / 0.03)
    assert (weights[:, :7] * np.abs(values[:, :7]))[2].sum() == pytest.approx(7.0)


@pytest.mark.parametrize("rule", [*SUPPORTS.values(), Convex("relative", 0.5), Convex("lam", 0.1)])
def test_rules_use_the_threads_they_are_given(rule, monkeypatch):
    seen = []
    run, solve = joblib.Parallel, supports.solve_rows

    def parallel(n_jobs=None, **options):
        seen.append(n_jobs)
        return run(n_jobs=n_jobs, **options)

    def solve_rows(*arguments, n_jobs=None, **options):
        seen.append(n_jobs)
        return solve(*arguments, n_jobs=n_jobs, **options)

    monkeypatch.setattr(joblib, "Parallel", parallel)
    monkeypatch.setattr(supports, "solve_rows", solve_rows)
    _, _, gram, dense = problem()
    rule(gram, dense, np.full(3, 2), 1, 2)
    assert set(seen) == (set() if rule is SUPPORTS["magnitude"] else {2})


def test_every_step_uses_the_threads_it_is_given_and_gives_the_same_bits(monkeypatch):
    seen = []
    run = joblib.Parallel

    def parallel(n_jobs=None, **options):
        seen.append(n_jobs)
        return run(n_jobs=n_jobs, **options)

    monkeypatch.setattr(joblib, "Parallel", parallel)
    _, _, gram, dense = problem(r=9)
    found = []
    for n_jobs in (1, 2, 5):
        start = rows.largest(np.abs(dense[:, :7]), np.full(9, 3), 1)
        mask, exchanges = rows.swapped(gram, start, 1, n_jobs=n_jobs)
        found.append((*rows.elimination(gram, 1, n_jobs), mask, exchanges,
                      *rows.polished(gram, mask, n_jobs)))  # fmt: skip
    assert seen == [1] * 3 + [2] * 3 + [5] * 3
    for other in found[1:]:
        assert all(map(np.array_equal, found[0], other))


def test_the_pull_of_a_dead_column_is_relative_to_the_targets():
    """A column without samples: its pull times the largest dense share is one constant."""
    rng = np.random.default_rng(0)
    M = rng.standard_normal((50, 4))
    M[:, [1, 2]] = 0.0
    Z = rng.standard_normal((50, 3))
    gram = Gram.from_arrays(M, Z)
    dense = rng.standard_normal((3, 4))
    dense[:, 1] = 0.0  # weights that are zero where the column is: any pull leaves them there
    dense[:, 2] = [0.3, -40.0, 2.0]
    found = rows.damped(gram, dense, 0.1, 1)
    share = (dense[:, 2] ** 2 / gram.target_sq).max()
    assert share > 1  # and below one in the next problem
    constant = found.gram[1, 1]
    assert found.gram[2, 2] == pytest.approx(constant / share, rel=1e-12)
    dense[:, 2] /= 1000.0
    small = rows.damped(gram, dense, 0.1, 1)
    assert small.gram[2, 2] == pytest.approx(1e6 * constant / share, rel=1e-12)
    assert small.gram[1, 1] == constant
    np.testing.assert_allclose(np.linalg.solve(small.gram, small.corr.T)[2], dense[:, 2])


def test_the_share_of_samples_that_a_sum_rests_on():
    assert _carried(np.full(8, 3.0)) == pytest.approx(1.0)
    assert _carried(np.array([0.0, 0.0, 5.0, 0.0])) == pytest.approx(0.25)
    assert _carried(np.array([1.0, 1.0, 0.0, 0.0]) * 1e-200) == pytest.approx(0.5)
    assert _carried(np.zeros(3)) == 0.0


def test_the_variance_of_a_layer_is_that_of_its_outputs():
    """Two groups, with and without a bias: the mean over all rows of both."""
    for bias in (True, False):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 6, 3, groups=2, bias=bias)
        u = torch.randn(40, 4, 5, 5)
        task = Task(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(54, 2)), u)
        survey = Calibration.of(task, Statistics(damping=1e-9, n_jobs=1)).survey
        with torch.no_grad():
            out = conv.double()(u.double()).transpose(0, 1).flatten(1)
        wanted = (out.var(1, correction=0) if bias else out.square().mean(1)).mean()
        assert survey.variance(0) == pytest.approx(float(wanted), rel=1e-5)


def test_ball_weights_of_a_column_without_samples_are_finite():
    M = np.random.default_rng(0).standard_normal((30, 4))
    M[:, 1] = 0.0
    gram = Gram.from_arrays(M, M @ np.ones((4, 1)))
    for weighting in ("ones", "inverse"):
        found = ball_weights(gram, np.array([[1.0, 0.0, 2.0, 3.0]]), weighting, 1)
        assert np.isfinite(found).all()
        assert (found[:, :3] > 0).all()
