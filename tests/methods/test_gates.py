"""Hard-concrete gates: closed forms, the constrained optimum, purging, targets that are met."""

import copy
import math
import re
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.data import datasets
from cimf.errors import InputError, TrainingError, UnknownNameError
from cimf.methods.gates.gated_layers import Gated
from cimf.methods.gates.hard_concrete import HIGH, LOW, TEMPERATURE, HardConcrete
from cimf.methods.gates.lagrangian import DescentAscent, constrained_problem
from cimf.methods.gates.prune_gates import GatesOptions, bisect_penalty
from cimf.train.supervised import Schedule, batches, trained_mlp

G = torch.Generator().manual_seed(0)


class Network(nn.Module):
    """A convolution with a batch norm, one with a bias, two linear layers, one of them spare."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 4, 2)
        self.body, self.head = nn.Linear(36, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu_(self.norm(self.one(x)))
        return self.head(torch.relu(self.body(torch.relu(self.two(x)).flatten(1))))


NORMS = {"one": "norm"}
X = torch.randn(40, 2, 6, 6, generator=G)
LABELS = (X.mean((1, 2, 3)) > 0).long()
PAIRS = list(zip(X.split(20), LABELS.split(20), strict=True))


def network():
    torch.manual_seed(3)
    net = Network()
    with torch.no_grad():
        net.train()(X)
        net.norm.weight.uniform_(0.5, 2.0)
        net.norm.bias.normal_()
    return net.eval()


def gated(structure, spread=2.5, **given):
    made = Gated(network(), X[:2], structure=structure, norms=NORMS, **given)
    with torch.no_grad():
        for alpha in made.gate_parameters():
            alpha.add_(spread * torch.randn(alpha.shape, generator=G) - 3.5)
    made.clamp()
    return made.eval()


def test_closed_forms_against_sampling():
    alphas = torch.linspace(-4.5, 4.5, 19, dtype=torch.float64)
    gates = HardConcrete((19,), 0.5, alphas)
    assert torch.equal(gates.log_alpha, torch.zeros(19, dtype=torch.float64))
    gates.log_alpha.data.copy_(alphas)
    torch.manual_seed(0)
    drawn = []
    for _ in range(20_000):
        gates.draw()
        drawn.append(gates().detach())
    z = torch.stack(drawn)
    assert ((z >= 0) & (z <= 1)).all()
    share = (z > 0).double().mean(0)
    assert torch.allclose(gates.open_probability(), share, atol=4 * 0.5 / 20_000**0.5)
    assert torch.allclose(gates.medians(), z.median(0).values, atol=0.02)
    assert torch.equal(gates.medians() == 0, gates.open_probability() <= 0.5)
    assert torch.equal(gates.eval()(), gates.medians())
    # by the definition, at one noise
    u = 0.3
    s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + float(alphas[12])) / TEMPERATURE))
    gates.train().noise = torch.full_like(alphas, u)
    expected = min(1.0, max(0.0, s * (HIGH - LOW) + LOW))
    assert gates()[12].item() == pytest.approx(expected, rel=1e-9)
    # kept although closed: the median of the open ones
    gates.keep(torch.ones(19, dtype=torch.bool))
    opened = torch.stack([z[:, k][z[:, k] > 0].median() for k in range(3)])
    assert torch.allclose(gates.medians()[:3], opened, atol=0.1)
    assert (gates.medians() > 0).all()


def test_densities_by_hand():
    made = gated(None, keep=["body"]).requires_grad_(False)
    active = {layer.path: float(layer.gates.open_probability().sum()) for layer in made.layers}
    sizes = {"one": 6 * 2 * 9, "two": 4 * 6 * 4, "head": 24}
    places = {"one": 16, "two": 9, "head": 1}
    assert list(active) == list(sizes)
    for path, density in zip(sizes, made.densities().tolist(), strict=True):
        assert density == pytest.approx(active[path] / sizes[path], rel=1e-5)
    wanted = sum(active.values()) / sum(sizes.values())
    assert float(made.density()) == pytest.approx(wanted, rel=1e-5)
    wanted = sum(active[p] * places[p] for p in sizes) / sum(sizes[p] * places[p] for p in sizes)
    assert float(made.density(multiply_adds=True)) == pytest.approx(wanted, rel=1e-5)
    zeros = sum(int((layer.module.weight == 0).sum()) for layer in made.layers)
    assert made.median_density() == pytest.approx(1 - zeros / sum(sizes.values()), rel=1e-6)
    structured = gated("channels")
    assert [layer.group for layer in structured.layers] == [18, 24, 8, 3]
    assert [layer.gates.log_alpha.numel() for layer in structured.layers] == [6, 4, 36, 8]


@pytest.mark.parametrize("structure", [None, "channels"])
def test_the_purged_network_is_the_gated_one_at_test_time(structure):
    plain = network()
    start = Gated(network(), X[:2], structure=structure, norms=NORMS, drop=0.5).eval()
    with torch.no_grad():
        assert torch.allclose(start(X), plain(X), atol=1e-5)  # gates do not change the function
        made = gated(structure)
        purged = made.purge()
        assert torch.allclose(purged(X), made(X), atol=1e-5)
        assert not torch.allclose(purged(X), plain(X), atol=1e-2)
    assert [type(m) for m in purged.modules()] == [type(m) for m in plain.modules()]
    assert set(purged.state_dict()) == set(plain.state_dict())
    for layer in made.layers:
        closed = layer.gates.medians() == 0
        weight = purged.get_submodule(layer.path).weight
        if structure is None:
            assert torch.equal(weight == 0, closed)
        else:
            assert 0 < int(closed.sum()) < closed.numel()
            rows = weight.flatten(1).abs().sum(1 if weight.ndim > 2 else 0) == 0
            assert torch.equal(rows, closed)
    if structure:
        with torch.no_grad():
            inner = purged.norm(purged.one(X))
        assert (inner[:, made.layers[0].gates.medians() == 0] == 0).all()  # the shift is gone too


def test_in_training_mode_every_pass_draws_anew_and_weight_and_bias_share_a_gate():
    made = gated("channels", spread=0.0).train()
    freeze = made.network.norm.eval()
    assert not torch.equal(made(X), made(X))
    layer = made.layers[0]
    z = layer.gates()
    stored = freeze.parametrizations
    assert torch.equal(freeze.weight, stored.weight.original * z)
    assert torch.equal(freeze.bias, stored.bias.original * z)


def projection(c, a, b):
    """min 1/2 |x - c|^2 s.t. a x <= b, with its multipliers, by CVXPY."""
    x = cp.Variable(len(c))
    constraint = a @ x <= b
    cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [constraint]).solve(cp.CLARABEL)
    return x.value, constraint.dual_value


C, A, B = np.array([2.0, 1.0, -1.0]), np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 3.0]]), [1.0, 2.0]


def ascend(restarts, steps=400, strict=None):
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    c, a, b = (torch.tensor(v, dtype=torch.float64) for v in (C, A, B))
    problem = constrained_problem(
        lambda inputs, labels: 0.5 * (x - c).square().sum(), lambda: a @ x - b, 2, x, strict
    )
    ascent = DescentAscent(problem, [torch.optim.SGD([x], 0.1)], 0.1, restarts)
    values = []
    for _ in range(steps):
        ascent.step()
        values.append(ascent.multiplier.weight.detach().clone())
    return x.detach().numpy(), torch.stack(values).numpy()


def test_the_constrained_optimum_primal_and_dual_against_cvxpy():
    wanted, multipliers = projection(C, A, B)
    assert multipliers[0] > 0.5  # active
    assert multipliers[1] < 1e-6  # slack
    x, found = ascend(restarts=False)
    np.testing.assert_allclose(x, wanted, atol=1e-6)
    np.testing.assert_allclose(found[-1], multipliers, atol=1e-6)


def test_a_restart_forgets_a_multiplier_when_its_constraint_holds():
    _, plain = ascend(restarts=False)
    x, found = ascend(restarts=True)
    assert (found[:, 0] == 0).any()  # the constraint was met, the multiplier began anew
    assert not (plain[5:, 0] == 0).any()
    assert found[:, 0].max() <= plain[:, 0].max() + 1e-12
    assert (np.asarray(A) @ x - B).max() < 0.2


def test_the_multipliers_go_by_the_strict_violation():
    _, found = ascend(False, steps=3, strict=lambda: torch.tensor([-1.0, 0.5]).double())
    np.testing.assert_allclose(found[-1], [0.0, 3 * 0.1 * 0.5])


@pytest.fixture(scope="module")
def digits():
    data = datasets.digits()
    net = trained_mlp(
        (64, 48, 24, 10), data, seed=0, schedule=Schedule(epochs=30, learning_rate=1e-2,
                                                          batch_size=64),
    )  # fmt: skip
    train = batches(data.train_inputs, data.train_labels)
    return net, train, batches(data.test_inputs, data.test_labels)


@pytest.mark.parametrize(
    ("sparsity", "given"),
    [(0.5, {}), (0.9, {}), (0.5, {"constraint": "layer"}), (0.5, {"tune_epochs": 3})],
)
def test_the_medians_meet_the_target_by_themselves(digits, sparsity, given):
    net, train, test = digits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = cimf.prune(net, train, sparsity, "gates", test=test, **given).report
    found = report.training[0].epochs[-1].measures
    assert found["median density"] == pytest.approx(1 - sparsity, abs=0.005)
    weights, total = report.matched
    assert weights == round((1 - sparsity) * total)
    assert report.evaluation.accuracy > report.evaluation.dense_accuracy - 0.06
    assert len(report.training) == (2 if given.get("tune_epochs") else 1)
    table = report.training[0].table()
    assert {"density", "multiply-adds", "loss"} <= set(table)
    assert any("multiplier" in name for name in table)
    assert table["density"].is_monotonic_decreasing or table["density"].iloc[-1] < 1.0


def test_short_runs_on_few_samples_meet_the_target():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    u, labels = torch.randn(240, 6), torch.randint(0, 3, (240,))
    state = torch.get_rng_state()
    before = copy.deepcopy(net.state_dict())
    result = cimf.prune(net, u, 0.5, "gates", train=[(u, labels)])
    assert result.report.matched == (124, 248)
    assert any("opened again" in note for note in result.report.notes)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    again = cimf.prune(net, u, 0.5, "gates", train=[(u, labels)])
    assert torch.equal(again.network[0].weight, result.network[0].weight)


def test_whole_channels_with_batch_norms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whole channels: some tenths beside the target
        result = cimf.prune(network(), PAIRS, 0.4, "gates", structure="channels", epochs=30)
    net = result.network
    assert type(net) is Network
    assert not net.norm.training
    rows = net.one.weight.flatten(1).abs().sum(1) == 0
    assert torch.equal(net.norm.weight == 0, rows)
    assert torch.equal(net.norm.bias == 0, rows)
    columns = net.head.weight.abs().sum(0) == 0
    assert bool(rows.any() or columns.any())
    assert result.report.sparsity["network_weights"] == pytest.approx(0.4, abs=0.05)


def test_a_target_out_of_reach_is_refused_or_named(digits):
    net, train, _ = digits
    with pytest.raises(InputError, match=r"leaves 446 weights, the layers to keep have 3,072"):
        cimf.prune(net, train, 0.9, "gates", keep=("0",))
    with pytest.warns(UserWarning, match=r"gates ended at densities all layers 100.00%"):
        result = cimf.prune(net, train, 0.9, "gates", epochs=1, gates_rate=1e-6)
    weights, total = result.report.matched
    assert weights == round(0.1 * total)
    assert re.search("train for more epochs", result.report.notes[-1])


def test_the_penalised_version_has_no_target(digits):
    net, train, _ = digits
    report = cimf.prune(net, train, method="gates", penalty=3.0, epochs=5).report
    assert report.target is None
    weights, total = report.matched
    share = report.training[0].epochs[-1].measures["median density"]
    assert weights / total == pytest.approx(share, abs=1e-6)
    assert "multiplier" not in report.training[0].table()
    with pytest.raises(InputError, match="not both"):
        cimf.prune(net, train, 0.5, "gates", penalty=1.0)
    with pytest.raises(InputError, match="needs a target"):
        cimf.prune(net, train, method="gates")


def test_bisection_over_the_penalty():
    runs = bisect_penalty(lambda penalty: 1 / (1 + penalty), 0.2)
    assert abs(runs[-1][1] - 0.2) <= 0.01
    assert all(abs(density - 0.2) > 0.01 for _, density in runs[:-1])
    assert len(runs) > 3
    assert len(bisect_penalty(lambda penalty: 1.0, 0.2, runs=4)) == 4
    for wrong in ({"target": 1.0}, {"target": 0.5, "low": 2.0, "high": 1.0}):
        with pytest.raises(InputError):
            bisect_penalty(lambda penalty: 1.0, **wrong)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path):
    def run(**given):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # four epochs are too few
            return cimf.prune(network(), PAIRS, 0.5, "gates", epochs=4, tune_epochs=2, **given)

    def stop(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "gates", on_epoch=stop)
    resumed = run(checkpoint=tmp_path / "gates")
    pairs = zip(whole.network.state_dict().values(), resumed.network.state_dict().values(),
                strict=True)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in pairs)
    measures = [[e.measures for e in r.report.training[0].epochs] for r in (whole, resumed)]
    assert measures[0] == measures[1]


def test_divergence_is_named():
    with pytest.raises(TrainingError, match="epoch 1"):
        cimf.prune(network(), [(1e30 * X, LABELS)], 0.5, "gates", optimizer="sgd",
                   learning_rate=1e30)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"structure": "rows"}, UnknownNameError, "structure of gates 'rows'"),
        ({"constraint": "layers"}, UnknownNameError, "did you mean 'layer'"),
        ({"measure": "mean"}, UnknownNameError, "measure of density"),
        ({"gates_rate": 0.0}, InputError, "gates_rate must be a number > 0"),
        ({"dual_rate": -1.0}, InputError, "dual_rate must be a number > 0"),
        ({"penalty": -1.0}, InputError, "penalty must be a number >= 0"),
        ({"restarts": 1}, InputError, "restarts must be True or False"),
        ({"tune_epochs": -1}, InputError, "tune_epochs must be a whole number >= 0"),
    ],
)
def test_options_that_cannot_be_right(given, kind, message):
    with pytest.raises(kind, match=message):
        GatesOptions(**given)


def test_layers_and_drops_that_cannot_be_right():
    with pytest.raises(UnknownNameError, match=r"layer 'twoo'.*did you mean 'two'"):
        Gated(network(), X[:2], keep=["twoo"])
    with pytest.raises(UnknownNameError, match="layer 'twoo'"):
        cimf.prune(network(), PAIRS, 0.5, "gates", keep=("twoo",))
    for drop in (0.0, 0.9):
        with pytest.raises(InputError, match="drop must be in"):
            Gated(network(), X[:2], drop=drop)
    with pytest.raises(InputError, match="no convolution or linear layer"):
        Gated(network(), X[:2], keep=["one", "two", "body", "head"])
    with pytest.raises(InputError, match="requires_grad_"):
        cimf.prune(network().requires_grad_(False), PAIRS, 0.5, "gates")
    with pytest.raises(InputError, match="'one' is computed"):
        Gated(cimf.keep_zeros(cimf.prune(network(), X, 0.5, "magnitude-layer").network), X[:2])


def test_on_the_command_line(command_line):
    source = """
import torch
from torch import nn

def job():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    u = torch.randn(120, 6)
    return net, [(u, (u[:, 0] > 0).long())]
"""
    result = command_line("job", source)(
        "prune", "job:job", "--sparsity", 0.5, "--method", "gates", "--option", "epochs=30"
    )
    assert result.exit_code == 0, result.output
    assert "trained 30 epochs on 120 samples with labels" in result.output
    assert "72 of 144" in result.output
