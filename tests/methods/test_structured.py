"""SSS, SPR, MLA: their steps and losses against definitions, channels that go as wholes."""

import copy
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError
from cimf.methods.base import Task
from cimf.methods.structured import mla
from cimf.methods.structured.channels import Channels, clear_unread, removable, remove_to_target
from cimf.methods.structured.spr import SprOptions, indicators, perspective
from cimf.methods.structured.sss import FactorDescent, Factors, SssOptions, proximal_step
from cimf.train.descent import Descent
from cimf.train.training_options import Training
from formulations import LOSSES
from formulations.matrix_rows import Rows

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 2, 6, 6, generator=G)
LABELS = (X[:, 0].mean((1, 2)) > 0).long() + (X[:, 1].mean((1, 2)) > 0).long()
PAIRS = list(zip(X.split(20), LABELS.split(20), strict=True))


class Network(nn.Module):
    """A chain, a residual block, a head of two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm_two = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.three = nn.Conv2d(8, 6, 2, stride=2)
        self.body, self.head = nn.Linear(24, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu_(self.norm_one(self.one(x)))
        x = torch.relu(self.norm_two(self.two(x)) + x)
        x = torch.relu(self.three(x)).flatten(1)
        return self.head(torch.relu(self.body(x)))


def network():
    torch.manual_seed(3)
    net = Network()
    with torch.no_grad():
        net.train()(X)
        for norm in (net.norm_one, net.norm_two):
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.normal_()
    return net.eval()


@pytest.fixture(scope="module")
def graph():
    return Task(network(), X).graph


# --- SSS ---


def scalar_step(factor, gradient, velocity, rate, penalty, momentum):
    """The paper's three lines for one number, the proximal step by CVXPY."""
    z = factor - rate * gradient
    s = cp.Variable()
    cp.Problem(cp.Minimize(0.5 * cp.square(s - z) + rate * penalty * cp.abs(s))).solve(cp.CLARABEL)
    new = float(s.value) - factor + momentum * velocity
    return max(float(s.value) + momentum * new, 0.0), new


def test_the_step_against_its_closed_form():
    rng = np.random.default_rng(0)
    factor, gradient, velocity = rng.normal(size=(3, 8))
    found = proximal_step(*map(torch.tensor, (factor, gradient, velocity)), 0.3, 0.7, 0.9)
    wanted = [
        scalar_step(f, g, v, 0.3, 0.7, 0.9)
        for f, g, v in zip(factor, gradient, velocity, strict=True)
    ]
    np.testing.assert_allclose(np.stack(found), np.transpose(wanted), atol=1e-5)


def test_the_steps_end_at_the_lasso_solution():
    target = torch.tensor([1.5, 0.3, -1.0, 0.05])
    part, other = Factors(4, target), nn.Linear(1, 1)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.other = part, other

    training = Training(optimizer="sgd", learning_rate=0.1, schedule="constant")

    def objective(inputs, labels):
        unused = sum(0.0 * p.sum() for p in other.parameters())
        return 0.5 * (part() - target).square().sum() + unused

    descent = FactorDescent(Both(), [part], objective, training, 10, penalty=0.2)
    for _ in range(300):
        descent.step(None, None)
    assert torch.allclose(part.values, torch.tensor([1.3, 0.1, 0.0, 0.0]), atol=1e-5)
    assert (part.values[2:] == 0).all()  # exactly
    assert descent.measures()["zero factors"] == 0.5


# --- SPR ---


@pytest.mark.parametrize("alpha", [0.2, 0.7])
def test_the_regulariser_is_the_loss_of_the_formulations(alpha):
    groups = torch.randn(5, 4, dtype=torch.float64, generator=G)
    groups[0] = 0.0
    groups[1] *= 1e-3
    for bound in (5.0, 40.0):
        loss = LOSSES["structured-perspective"](1.0, alpha, bound, [0] * 4)
        wanted = loss.value(Rows(groups.numpy(), np.arange(5), 4)) / 4
        assert perspective(groups, alpha, bound).sum().item() == pytest.approx(wanted, rel=1e-12)
    beyond = perspective(100 * groups[2:], alpha, 1.0)  # y = 1: finite, so that training goes on
    wanted = alpha * (100 * groups[2:]).square().sum(1) + 1 - alpha
    assert torch.allclose(beyond, wanted)


def test_its_gradient_is_right_and_finite_at_zero():
    groups = torch.randn(6, 4, dtype=torch.float64, generator=G, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: perspective(w, 0.4, 3.0), groups)
    zero = torch.zeros(2, 4, requires_grad=True)
    perspective(zero, 0.4, 3.0).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(2, 4))
    assert torch.equal(indicators(zero.detach(), 0.4, 3.0), torch.zeros(2))


def test_training_under_it_ends_at_the_optimum_of_cvxpy():
    """A linear layer on least squares: groups are its rows, indicators are explicit in CVXPY."""
    u = torch.randn(50, 3, dtype=torch.float64, generator=G)
    goal = u @ torch.tensor([[1.0, -1.0, 0.5], [0.02, 0.01, 0.0]], dtype=torch.float64).T
    alpha, bound, weight = 0.3, 2.0, 0.5
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)

    def objective(inputs, labels):
        fit = (layer(inputs) - labels).square().sum() / 50
        return fit + weight * perspective(layer.weight, alpha, bound).sum()

    training = Training(epochs=1500, batch_size=50, learning_rate=1e-2)
    descent = Descent(layer, objective, training, 50)
    for _ in range(1500):
        descent.step(u, goal)
    w, y = cp.Variable((2, 3)), cp.Variable(2, nonneg=True)
    cost = cp.sum_squares(u.numpy() @ w.T - goal.numpy()) / 50
    for i in range(2):
        cost += weight * (alpha * cp.quad_over_lin(w[i], y[i]) + (1 - alpha) * y[i])
    problem = cp.Problem(cp.Minimize(cost), [y <= 1, cp.max(cp.abs(w), axis=1) <= bound * y])
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(cp.CLARABEL)
    assert objective(u, goal).item() == pytest.approx(problem.value, rel=1e-4)
    np.testing.assert_allclose(layer.weight.detach().numpy(), w.value, atol=5e-3)
    assert indicators(layer.weight.detach(), alpha, bound)[1] < 0.02


# --- MLA ---


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 3, 3)])
def test_scores_are_the_losses_of_the_removals(shape):
    features = torch.randn(shape, dtype=torch.float64, generator=G)
    for c in range(4):
        without = features.clone()
        without[:, c] = 0.0
        for scores, loss in (
            (mla.feature_scores, mla.feature_loss),
            (mla.semantic_scores, mla.semantic_loss),
        ):
            wanted = loss(without, features)
            assert scores(features)[c].item() == pytest.approx(wanted.item(), rel=1e-9)
            assert loss(features, features).item() == pytest.approx(0.0, abs=1e-15)


def test_correlations_by_hand():
    features = torch.randn(3, 2, 4, generator=G)
    found = mla.feature_correlations(features)
    assert found[1, 0, 1].item() == pytest.approx((features[1, 0] @ features[1, 1]).item() / 4)
    one, two = features[0].flatten(), features[2].flatten()
    wanted = (one @ two / one.norm() / two.norm()).item()
    assert mla.semantic_correlations(features)[0, 2].item() == pytest.approx(wanted, rel=1e-5)


# --- channels ---


def test_removed_channels_are_zero_and_their_readers_too(graph):
    net = network()
    layers = removable(graph, ())
    assert [layer.path for layer in layers] == ["one", "two", "three", "body"]
    scores = {layer.path: torch.arange(layer.rows).double() + 1 for layer in layers}
    scores["three"][:2] = -1.0
    scores["one"][0] = scores["two"][0] = -2.0
    removal = remove_to_target(net, layers, graph, scores, 0.26, X[:4])
    made = removal.network
    with torch.no_grad():
        inner = made.norm_one(made.one(X))
        assert (inner[:, 0] == 0).all()
        assert (made.three.weight[:, 0] == 0).all()  # zero in both summands of the shortcut
        assert (made.three(X.new_ones(5, 8, 4, 4))[:, :2] == 0).all()
        assert (made.body.weight[:, :8] == 0).all()  # the places of two channels
        assert (made.body.weight[:, 8:] != 0).any()
        before = copy.deepcopy(made)
        for layer in (before.two, before.three, before.body, before.head):
            layer.weight[layer.weight == 0] = torch.randn(1)  # readers of zeros
        before.two.weight[0] = before.three.weight[:2] = 0.0
        for layer in layers:
            layer.remove(before, removal.gone[layer.path])
        assert torch.allclose(before(X), made(X), atol=1e-6)
    zeros = sum(int((made.get_submodule(x.path).weight == 0).sum()) for x in graph.layers)
    assert zeros == removal.zeros
    assert abs(zeros / removal.total - 0.26) < 0.02


def test_a_channel_of_one_summand_only_is_still_read(graph):
    net = network()
    layers = removable(graph, ())
    gone = torch.zeros(8, dtype=torch.bool)
    gone[3] = True
    layers[1].remove(net, gone)
    clear_unread(net, X[:4])
    assert (net.three.weight != 0).all()


def test_a_shift_or_an_activation_keeps_a_channel_alive():
    torch.manual_seed(0)
    for between, alive in (
        (nn.ReLU(), False), (nn.GELU(), False), (nn.Tanh(), False), (nn.Sigmoid(), True),
        (nn.BatchNorm1d(4), True), (nn.LeakyReLU(), False), (nn.Dropout(), False),
    ):  # fmt: skip
        net = nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2)).eval()
        if isinstance(between, nn.BatchNorm1d):
            nn.init.normal_(between.bias)
        with torch.no_grad():
            net[0].weight[1] = net[0].bias[1] = 0.0
        clear_unread(net, torch.zeros(2, 3))
        assert bool((net[2].weight[:, 1] != 0).any()) == alive, between
        assert (net[2].weight[:, [0, 2, 3]] != 0).all(), between


def test_inputs_that_the_data_never_use_stay():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].bias[2] = -100.0  # never open on the data
    clear_unread(net, torch.zeros(4, 3))
    assert (net[0].weight != 0).all()
    assert (net[2].weight != 0).all()


def test_the_largest_of_every_layer_stays_and_the_target_may_be_out_of_reach(graph):
    layers = removable(graph, ())
    scores = {layer.path: torch.zeros(layer.rows) for layer in layers}
    removal = remove_to_target(network(), layers, graph, scores, 0.9, X[:4])
    assert all(int((~mask).sum()) >= 1 for mask in removal.gone.values())
    with pytest.raises(InputError, match=r"reach a sparsity of 9\d.\d% at most.*the target is 99"):
        remove_to_target(network(), layers, graph, scores, 0.99, X[:4])
    with pytest.raises(InputError, match="no layer is left"):
        removable(graph, [layer.path for layer in layers])


@pytest.mark.parametrize("name", ["sss", "spr", "mla"])
def test_methods_meet_the_target_with_whole_channels(name):
    net = network()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    given = {"epochs": 4, "tune_epochs": 2, "batch_size": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whole channels: a point beside the target
        result = cimf.prune(net, PAIRS, 0.5, name, **given)
        kept = cimf.prune(net, PAIRS, 0.2, name, keep=("one", "two"), **given)
    made = result.network
    assert result.report.sparsity["network_weights"] == pytest.approx(0.5, abs=0.05)
    assert "channels are removed" in "".join(result.report.notes)
    assert type(made) is Network
    assert not made.training
    assert [type(m) for m in made.modules()] == [type(m) for m in net.modules()]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for path, norm in (("one", "norm_one"), ("two", "norm_two")):
        rows = made.get_submodule(path).weight.flatten(1).abs().sum(1) == 0
        behind = made.get_submodule(norm)
        assert torch.equal(behind.weight == 0, rows)
        assert torch.equal(behind.bias == 0, rows)
    assert (made.head.weight.abs().sum(1) > 0).all()
    assert (kept.network.one.weight != 0).all()


def test_channels_whose_indicators_are_all_one_are_told_apart_by_their_size():
    """95 % of the indicators of a trained ResNet-20 are 1: ties, once removed layer by layer."""
    net = network()
    with torch.no_grad():
        for layer in (net.one, net.two, net.three, net.body):
            rows = layer.weight.flatten(1)
            size = torch.full((len(rows),), 4.0)
            if layer is net.body:
                size[:6] = 1.5
            layer.weight.mul_((size / rows.norm(dim=1)).reshape(-1, *[1] * (layer.weight.ndim - 1)))
    layers = removable(Task(net, X).graph, ())
    for layer in layers:
        groups = layer.flat(net).detach()
        assert (indicators(groups, 0.5, float(groups.abs().max())) == 1.0).all()
    share = 6 * (24 + 3) / sum(v.numel() for k, v in net.state_dict().items()
                               if k.endswith("weight") and v.ndim > 1)  # fmt: skip
    result = cimf.prune(net, PAIRS, share, "spr", epochs=1, tune_epochs=0, learning_rate=1e-9,
                        batch_size=20)  # fmt: skip
    made = result.network
    assert (made.body.weight == 0).all(1).tolist() == [True] * 6 + [False] * 4
    assert all((layer.weight != 0).all() for layer in (made.one, made.two, made.three))


@pytest.mark.parametrize("name", ["sss", "spr", "mla"])
def test_an_interrupted_run_goes_on_to_the_same_bits(name, tmp_path):
    def run(**more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cimf.prune(network(), PAIRS, 0.5, name, epochs=3, tune_epochs=2,
                              batch_size=20, **more).network.state_dict()  # fmt: skip

    def stop_at(calls):
        def stop(epoch):
            calls.append(epoch)
            if len(calls) == 2:
                raise KeyboardInterrupt

        return stop

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "run", on_epoch=stop_at([]))
    resumed = run(checkpoint=tmp_path / "run")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


class Tokens(nn.Module):
    """Linear layers over tokens, channels last, as many tokens as channels."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)).mean(1))


def test_channels_of_tokens_are_the_last_axis():
    torch.manual_seed(0)
    net, u = Tokens().eval(), torch.randn(30, 4, 5, generator=G)
    layers = removable(Task(net, u).graph, ())
    features = mla.channels_first(net, layers[0], {"one": net.one(u)})
    assert torch.equal(features[:, 2], net.one(u)[..., 2])
    made = cimf.prune(net, [(u, torch.arange(30) % 3)], 0.5, "mla", epochs=2).network
    rows = made.one.weight.abs().sum(1) == 0
    assert int(rows.sum()) == 2
    assert torch.equal(rows, made.two.weight.abs().sum(0) == 0)


def test_options_that_cannot_be_right():
    for kind, given in (
        (SssOptions, {"penalty": -1.0}),
        (SprOptions, {"alpha": 1.0}),
        (SprOptions, {"bound": 0.0}),
        (mla.MlaOptions, {"scored": 0}),
        (mla.MlaOptions, {"feature_weight": float("nan")}),
    ):
        with pytest.raises(InputError):
            kind(**given)


def test_flat_holds_what_belongs_to_a_channel():
    net = network()
    flat = Channels("two", "norm_two", 8, 72).flat(net)
    assert flat.shape == (8, 72 + 3)
    assert torch.equal(flat[:, -2], net.norm_two.weight)
    assert Channels("three", "", 6, 32).flat(net).shape == (6, 33)


@pytest.mark.parametrize("act", [nn.Softshrink(5.0), nn.Threshold(30.0, 0.0)])
def test_channels_behind_a_threshold_are_not_zero_for_every_input(act):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 3)).eval()
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].bias[1] = 0.0
    clear_unread(net, torch.randn(4, 6))
    assert (net[2].weight != 0).any(0).tolist() == [True, False, True, True, True]
