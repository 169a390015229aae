"""N:M patterns: the rows against enumeration, every group of the network that comes back."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import Task
from cimf.methods.baselines.sparsegpt import sparsegpt
from cimf.methods.by_name import METHODS, prune_task
from cimf.methods.layered import elimination as rows
from cimf.methods.layered.elimination import Groups
from cimf.methods.layered.pattern import Pattern
from cimf.methods.layered.supports import magnitude, obs
from cimf.statistics import Gram

PATTERNED = [name for name, method in METHODS.items() if "pattern" in method.controlled]
G = torch.Generator().manual_seed(0)
MIX = torch.eye(16).double() + 0.5 * torch.randn(16, 16, generator=G, dtype=torch.float64)
X, HELD_OUT = (torch.randn(400, 16, generator=G, dtype=torch.float64) @ MIX for _ in range(2))


def mlp():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    )
    return net.double().eval()


def convolutions():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.Conv2d(8, 4, 2), nn.Flatten(), nn.Linear(36, 4),
    ).eval()  # fmt: skip


def problem(seed, n=6, r=4, free=1):
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((50, n + free)) @ (np.eye(n + free) + 0.4)
    M[:, n:] = 1.0
    dense = rng.standard_normal((r, n + free))
    return Gram.from_arrays(M, M @ dense.T + rng.standard_normal((50, r))), dense


# Strided members, as the channels at one place of a kernel are.
GROUPS = Groups(np.array([[0, 2, 4], [1, 3, 5]]), 2)


def best_loss(gram, i, supports):
    masks = np.zeros((len(supports), gram.n_features), bool)
    for k, support in enumerate(supports):
        masks[k, list(support)] = True
    one = Gram.from_moments(
        gram.gram, np.tile(gram.corr[i], (len(masks), 1)), np.full(len(masks), gram.target_sq[i]),
        gram.n_samples,
    )  # fmt: skip
    return rows.losses(one, rows.polished(one, masks, 1)[0])


@pytest.mark.parametrize("seed", range(5))
def test_rows_against_enumeration(seed):
    """The elimination takes the cheapest allowed column every time; no allowed exchange helps."""
    gram, _ = problem(seed)
    order, increase = rows.elimination(gram, 1, 1, GROUPS)
    assert order.shape == (4, 2)
    mask, _ = rows.swapped(gram, rows.without(order, 7), 1, n_jobs=1, groups=GROUPS)
    for i in range(4):
        left = list(range(7))
        for step in range(2):
            open_ = [j for g in GROUPS.members for j in g if sum(k in left for k in g) > 2]
            now = best_loss(gram, i, [left])[0]
            found = best_loss(gram, i, [[k for k in left if k != j] for j in open_])
            assert order[i, step] == open_[found.argmin()]
            assert increase[i, step] == pytest.approx(found.min() - now, rel=1e-6)
            left.remove(order[i, step])
        pairs = [list(itertools.combinations(g, 2)) for g in GROUPS.members.tolist()]
        every = [[*a, *b, 6] for a in pairs[0] for b in pairs[1]]
        here = frozenset(np.flatnonzero(mask[i]).tolist())
        near = [s for s in every if len(here - set(s)) <= 1]
        assert best_loss(gram, i, [sorted(here)])[0] <= best_loss(gram, i, near).min() + 1e-9


def test_magnitude_keeps_the_largest_of_each_group():
    _, dense = problem(0)
    mask = magnitude(None, dense, np.full(4, 4), 1, groups=GROUPS).mask
    for row, kept in zip(np.abs(dense), mask, strict=True):
        for group in GROUPS.members:
            smallest = group[row[group].argmin()]
            assert not kept[smallest]
            assert kept[group].sum() == 2
    assert mask[:, -1].all()


def test_sparsegpt_with_strided_groups_is_the_pass_over_permuted_columns():
    gram, dense = problem(3)
    order = np.append(GROUPS.members.ravel(), 6)
    permuted = Gram.from_moments(
        gram.gram[np.ix_(order, order)], gram.corr[:, order], gram.target_sq, gram.n_samples
    )
    adjacent = Groups(np.arange(6).reshape(2, 3), 2)
    counts = np.full(4, 4)
    here, there = (
        sparsegpt(gram, dense, counts, 1, groups=GROUPS),
        sparsegpt(permuted, dense[:, order], counts, 1, groups=adjacent),
    )
    np.testing.assert_array_equal(here.mask[:, order], there.mask)
    np.testing.assert_array_equal(here.coef[:, order], there.coef)


def holds(weight, n, m):
    """At most n of m consecutive inputs, at every place of the kernel, counted one by one."""
    flat = weight.detach().flatten(2) if weight.ndim > 2 else weight.detach()[:, :, None]
    for row in flat:
        for place in row.T:
            for start in range(0, len(place), m):
                if int((place[start : start + m] != 0).sum()) > n:
                    return False
    return True


@pytest.mark.parametrize("method", PATTERNED)
@pytest.mark.parametrize(("text", "n", "m"), [("2:4", 2, 4), ("1:2", 1, 2), ("4:8", 4, 8)])
def test_the_pattern_holds_in_every_group(method, text, n, m):
    result = cimf.prune(mlp(), [X], method=method, structure=text, n_jobs=1)
    weights = [module.weight for module in result.network if isinstance(module, nn.Linear)]
    assert all(holds(weight, n, m) for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    assert zeros == total // 2
    assert result.report.matched == (total - zeros, total)


def test_convolutions_count_along_input_channels_and_what_does_not_divide_stays_dense():
    net = convolutions()
    images = torch.randn(40, 3, 8, 8, generator=G)
    with pytest.warns(UserWarning, match=r"4 does not divide the inputs of 0 \(3 inputs\).*2:4, "
                                         r"216 of 776 weights stay dense"):  # fmt: skip
        result = cimf.prune(net, [images], structure="2:4", n_jobs=1)
    found = [result.network[k].weight for k in (0, 3, 5, 7)]
    assert int((found[0] == 0).sum()) == 0
    for weight in found[1:]:
        assert holds(weight, 2, 4)
        assert int((weight != 0).sum()) == weight.numel() // 2
    assert any("does not divide" in note for note in result.report.notes)


def test_layers_that_are_kept_take_no_pattern():
    result = cimf.prune(mlp(), [X], structure="2:4", keep=["0", "4"], n_jobs=1)
    counts = {record.path: record.kept for record in result.report.layers}
    assert counts == {"0": 384, "2": 288, "4": 96}


@pytest.mark.parametrize("method", ["layered", "obs"])
def test_a_pattern_that_keeps_everything_changes_nothing(method):
    net = mlp()
    result = cimf.prune(net, [X], 0.0, method=method, structure="4:4", n_jobs=1)
    torch.testing.assert_close(result.network(HELD_OUT), net(HELD_OUT), rtol=0, atol=1e-10)


@torch.no_grad()
def test_two_of_four_beats_magnitude_and_sparsegpt_on_held_out_inputs():
    net = mlp()
    task = Task(net, [X])
    wanted = net(HELD_OUT)
    error, worst = {}, {}
    for method in ("layered", "sparsegpt", "magnitude-layer"):
        found = prune_task(task, method=method, structure="2:4", n_jobs=1)
        error[method] = float((found.network(HELD_OUT) - wanted).norm() / wanted.norm())
        worst[method] = [record.mismatch for record in found.report.layers]
    assert error["layered"] < 0.9 * error["sparsegpt"] < 0.9 * error["magnitude-layer"]
    assert all(a < b for a, b in zip(worst["layered"], worst["sparsegpt"], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "5:4"}, "1 <= N <= M"),
        ({"structure": "0:4"}, "1 <= N <= M"),
        ({"structure": "2/4"}, 'a pattern "N:M"'),
        ({"structure": 24}, 'a pattern "N:M"'),
        ({"structure": "channel"}, '"channels"'),
        ({"structure": "2:4", "sparsity": 0.8}, "sets the sparsity, 0.5; the target is 0.8"),
        ({"structure": "2:4", "allocation": "error"}, "decides every row"),
        ({"structure": "2:4", "support": "ball"}, "does not choose within groups"),
        ({"structure": "2:7"}, r"no layer takes the pattern 2:7.*0 \(16\), 2 \(24\), 4 \(24\)"),
        ({"structure": "2:4", "keep": ["0", "2", "4"]}, "all kept dense"),
        ({"structure": "2:4", "sparsity": "half"}, "sparsity"),
        ({"structure": "2:4", "method": "wanda", "sparsity": 0.6}, "sets the sparsity"),
        ({"structure": "channels", "method": "wanda", "sparsity": 0.6}, "remove channels"),
    ],
)
def test_bad_patterns_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        cimf.prune(mlp(), [X], **options)


@pytest.mark.parametrize("method", ["fista", "alps", "gates", "sss"])
def test_methods_without_patterns_say_so(method):
    with pytest.raises(UnknownNameError, match="structure"):
        cimf.prune(mlp(), [X], method=method, structure="2:4")


def test_groups_of_a_grouped_convolution():
    conv = nn.Conv2d(8, 4, (1, 2), groups=2)
    layer = type("L", (), {"module": conv, "n_columns": 8})()
    np.testing.assert_array_equal(
        Pattern.parse("1:2").groups(layer).members, [[0, 2], [1, 3], [4, 6], [5, 7]]
    )
    assert Pattern.parse("2:3").groups(layer) is None


def test_obs_without_groups_still_goes_by_counts():
    gram, dense = problem(1)
    assert obs(gram, dense, np.array([1, 2, 3, 4]), 1).mask.sum(1).tolist() == [2, 3, 4, 5]
