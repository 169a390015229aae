"""Attacked and certified accuracy: sound bounds, honest attacks, clear refusals."""

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError, UnknownNameError
from cimf.evaluate import robustness as judge
from cimf.evaluate.attacks import Attack, Ball
from cimf.evaluate.interval_bounds import IntervalBounds, Margins


def network(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 10), activation(), nn.Linear(10, 7), activation(), nn.Linear(7, 3)
    ).eval()


def feedback(activation="relu"):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(8, 8))
    A *= 0.8 / np.abs(A).sum(axis=1, keepdims=True)
    B, C, D = rng.normal(size=(8, 5)), rng.normal(size=(3, 8)), rng.normal(size=(3, 5))
    return cimf.ImplicitModel(A, B, C, D, activation, bias=True)


MODELS = {
    "layered": lambda: cimf.ImplicitModel.from_network(network()),
    "gelu": lambda: cimf.ImplicitModel.from_network(network(nn.GELU)),
    "tanh": lambda: cimf.ImplicitModel.from_network(network(nn.Tanh)),
    "feedback": feedback,
    "feedback, silu": lambda: feedback("silu"),
}


def samples(m=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, size=(m, 4)), rng.integers(0, 3, size=m)


def escapes(model, low, high, states, margins, labels, tries):
    """How many of the points of the boxes leave their state bounds or fall below their margins."""
    rng, found = np.random.default_rng(1), 0
    q = np.arange(low.shape[1])
    for k in range(tries):
        share = rng.uniform(size=low.shape)
        if k % 2:  # corners, where the extremes are
            share = np.round(share)
        u = low + share * (high - low)
        X = model.equilibrium(u).X
        found += int(((states.low > X) | (states.high < X)).any(axis=0).sum())
        Y = model.output(X, u)
        for kind in margins:
            found += int((Y[labels, q] - Y < np.where(np.isinf(kind), -np.inf, kind)).any(0).sum())
    return found


@pytest.mark.parametrize("name", MODELS)
def test_no_point_leaves_its_interval(name):
    """10^5 random points and corners over all models."""
    model = MODELS[name]()
    u, labels = samples(100)
    bounds = IntervalBounds(model)
    for eps in (0.01, 0.3):
        low, high = u.T - eps, u.T + eps
        states, margins = bounds.states(low, high), bounds.margins(low, high, labels)
        assert escapes(model, low, high, states, margins, labels, 100) == 0
        # A bound that is a little too good is caught by the same points.
        middle, half = (states.low + states.high) / 2, (states.high - states.low) / 2
        short = type(states)(middle - 0.5 * half, middle + 0.5 * half)
        assert escapes(model, low, high, short, margins, labels, 20) > 0


def test_margins_only_tighten():
    model = MODELS["feedback"]()
    u, labels = samples()
    found = IntervalBounds(model).margins(u.T - 0.1, u.T + 0.1, labels)
    assert (found.intervals >= found.closed_form).all()
    assert (found.linear >= found.intervals).all()
    assert (
        found.linear[np.isfinite(found.linear)] > found.closed_form[np.isfinite(found.linear)]
    ).any()


def test_a_linear_model_is_certified_exactly():
    """Y = D U: the margin falls by eps times the l1 norm of the difference of two rows."""
    rng = np.random.default_rng(0)
    D = rng.normal(size=(3, 4))
    model = cimf.ImplicitModel(np.zeros((0, 0)), np.zeros((0, 4)), np.zeros((3, 0)), D)
    u, labels = samples(200)
    Y = D @ u.T
    for eps in (0.05, 0.2):
        slack = np.full((3, 200), np.inf)
        for k, c in enumerate(labels):
            for j in set(range(3)) - {c}:
                slack[j, k] = Y[c, k] - Y[j, k] - eps * np.abs(D[c] - D[j]).sum()
        wanted = (slack.min(axis=0) > 0).mean()
        found = cimf.robustness(model, u, labels, [eps], box=(-9, 9))
        assert found.certified[0] == pytest.approx(wanted)
        # The worst point is a corner; with three classes the steps may end at another one.
        assert wanted - 1e-9 <= found.attacked[0] <= wanted + 0.01


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("name", ["layered", "feedback"])
def test_the_shares_are_in_order(name, attack):
    model = MODELS[name]()
    u, _ = samples(120)
    labels = model.predict(u.T).argmax(axis=0)
    found = cimf.robustness(model, u, labels, [0.3, 0.0, 0.1, 0.01], attack)
    assert list(found.eps) == [0.3, 0.0, 0.1, 0.01]
    assert (found.clean == 1.0).all()
    ordered = found.sort_values("eps")
    assert (ordered.certified <= ordered.attacked).all()
    assert (np.diff(ordered.attacked) <= 0).all()
    assert (np.diff(ordered.certified) <= 0).all()
    assert ordered.attacked.iloc[0] == 1.0
    assert ordered.attacked.iloc[-1] < 1.0
    assert ordered.certified.iloc[1] > 0.5


def test_a_network_and_its_implicit_model_are_judged_alike():
    net = network()
    u, labels = samples(150)
    one = cimf.robustness(net, torch.from_numpy(u).float(), labels, [0.05, 0.2])
    other = cimf.robustness(
        cimf.ImplicitModel.from_network(net), u.astype(np.float32), labels, [0.05, 0.2]
    )
    for column in ("clean", "attacked", "certified"):
        np.testing.assert_allclose(one[column], other[column], atol=0.011)


def test_the_gradient_goes_through_the_equilibrium():
    """PGD finds what a search over corners finds on a model with feedback."""
    model = feedback()
    u, _ = samples(60)
    labels = model.predict(u.T).argmax(axis=0)
    eps = 0.15
    corners = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1)
    standing = np.ones(60, dtype=bool)
    for corner in corners.T:
        Y = model.predict(u.T + eps * corner[:, None])
        standing &= Y.argmax(axis=0) == labels
    found = cimf.robustness(model, u, labels, [eps], box=(-9, 9), restarts=4)
    assert found.attacked[0] <= standing.mean() + 0.05


def test_a_wrong_bound_is_an_error(monkeypatch):
    """Where the bounds promise too much, the attack finds it and nothing is returned."""

    def generous(self, low, high, labels):
        wide = np.full((3, len(labels)), np.inf)
        return Margins(wide, wide, wide)

    monkeypatch.setattr(IntervalBounds, "margins", generous)
    u, labels = samples(100)
    with pytest.raises(cimf.CimfError, match="bounds are wrong"):
        cimf.robustness(MODELS["layered"](), u, labels, [0.5])


def test_a_network_without_bounds_has_no_certificate():
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).eval()
    u, labels = samples(20)
    with pytest.warns(UserWarning, match="no certificate"):
        found = cimf.robustness(net, u, labels, [0.1])
    assert found.certified.isna().all()
    assert found.attrs == {"attack": "PGD-10, 1 start", "certificate": "none"}
    assert "attacked  certified" in str(found)  # nothing wide hides the shares


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": [-0.1]}, "at least 0"),
        ({"eps": [np.nan]}, "NaN"),
        ({"eps": []}, "at least 0"),
        ({"labels": None}, "labels"),
        ({"labels": [0, 1]}, "labels"),
        ({"labels": np.full(20, 0.5)}, "whole"),
        ({"labels": np.full(20, 7)}, "classes"),
        ({"inputs": np.full((20, 4), np.nan)}, "NaN"),
        ({"inputs": np.zeros((0, 4))}, "no samples|empty"),
        ({"box": (0.5, 0.6)}, "outside of the box"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_refused(change, words):
    u, labels = samples(20)
    given = {"inputs": u, "labels": labels, "eps": [0.1], **change}
    with pytest.raises(InputError, match=words):
        cimf.robustness(MODELS["layered"](), **given)


def test_an_unknown_attack_is_refused():
    u, labels = samples(20)
    with pytest.raises(UnknownNameError, match="pgd"):
        cimf.robustness(MODELS["layered"](), u, labels, [0.1], "cw")


def test_a_model_without_a_proved_equilibrium_is_refused():
    model = cimf.ImplicitModel(1.5 * np.eye(2), np.ones((2, 4)), np.ones((3, 2)), np.zeros((3, 4)))
    u, labels = samples(20)
    with pytest.raises(InputError, match="equilibrium"):
        judge.robustness(model, u, labels, [0.1])


def test_cross_entropy_in_float32_loses_the_own_class():
    """y = (100 + u_1, u_2): one ulp of p_c below 1 is all that float32 has to lower y_c by."""
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        net.bias.copy_(torch.tensor([100.0, 0.0]))
    ball = Ball.of(torch.zeros(1, 2).double(), 1.0, torch.tensor(-9.0), torch.tensor(9.0))
    labels, generator = torch.tensor([0]), torch.Generator().manual_seed(0)
    strong, weak = (
        Attack.named(name, steps=4).worst(net.double(), ball, 1.0, labels, generator)
        for name in ("pgd", "pgd-float32")
    )
    assert strong.tolist() == [[-1.0, 1.0]]
    assert weak.tolist() == [[0.0, 1.0]]
    assert str(Attack.named("pgd-float32")) == "PGD-10 on float32 cross-entropy, 1 start"
