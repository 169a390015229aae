"""The sensitivity objective: monotone, within its budget, certified, sound."""

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.data import datasets
from cimf.errors import InputError, UnknownNameError
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.gains import Motion
from cimf.methods.stacked.least_sensitivity import SensitivityProblem
from cimf.methods.stacked.output_effect import output_effect
from cimf.methods.stacked.sensitivity_options import SensitivityOptions
from cimf.train.supervised import Schedule, trained_mlp

SEVERAL = ["causal", "predecessors", "full", "no-self-loop"]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
    ).eval()


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(300, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def reference(net, inputs):
    return Reference.capture(net, [inputs])


def problem(reference, design="causal", **options):
    return SensitivityProblem.of(reference, design, SensitivityOptions(n_jobs=1, **options))


def test_slopes_are_the_derivatives_of_the_total(reference):
    """dT / d|W_ij| = l_i r_j, with feedback too; for a block-triangular A exactly linear by row."""
    rng = np.random.default_rng(0)
    start = problem(reference)
    blocks, (rows, columns) = start.motion.blocks, start.start.shape
    n = len(start.motion.states)
    W = rng.normal(size=(rows, columns))
    W[:n, :n] *= 0.5 / np.abs(W[:n, :n]).sum(axis=1, keepdims=True)
    motion = Motion(blocks, rng.uniform(size=columns - n), np.full(n, 0.1), np.full(n, 0.2))
    gains = motion.gains(W)
    for i, j in [(0, 3), (n - 1, 0), (2, columns - 1), (n, 1), (rows - 1, columns - 2)]:
        moved = W.copy()
        moved[i, j] += 1e-6 * np.sign(W[i, j])
        slope = (motion.gains(moved).total - gains.total) / 1e-6
        assert slope == pytest.approx(gains.adjoint[i] * gains.forward[j], rel=1e-4)


def test_the_total_is_the_sum_of_the_sensitivity_matrix(reference, net, inputs):
    own = cimf.ImplicitModel.from_network(net)
    found = problem(reference)
    exact = Motion.of_inputs(found.motion.blocks, found.motion.inputs).gains(found.start).total
    span = np.ptp(inputs.double().numpy(), axis=0)
    assert exact == pytest.approx(float((own.sensitivity()[:, :-1] @ span).sum()), rel=1e-9)


def test_the_effect_is_the_squared_jacobian(reference, net, inputs):
    """Row by row against autograd on the network itself."""
    (states,) = reference.calibration.chunks()
    found = output_effect(reference.own, states)
    z1 = net[0](inputs).double().requires_grad_()
    double = network().double()
    out = double[4](double[3](double[2](double[1](z1))))
    wanted = sum(
        torch.autograd.grad(out[:, k].sum(), z1, retain_graph=True)[0].square().sum(0)
        for k in range(3)
    )
    np.testing.assert_allclose(found[6:], wanted.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("design", SEVERAL)
def test_going_round_never_makes_it_worse(reference, design):
    found = problem(reference, design).descend(5.0)
    steps = np.diff(found.history)
    assert len(steps) >= 1
    assert (steps <= 1e-9 * found.history[0]).all()
    assert found.history[-1] < 0.9 * found.history[0]


def test_a_block_of_rows_is_optimal_for_its_weights(reference):
    """Against CVXPY: the first layer while the others stand."""
    import cvxpy as cp

    found = problem(reference, "predecessors")
    rows, lam = found.groups[0], 5.0
    slopes = found.slopes(found.start)[rows]
    solved = found.solve(found.gram.rows(rows), lam, slopes)
    after = found.start.copy()
    after[rows] = solved
    used = ~np.isinf(slopes[0])
    (states,) = reference.calibration.chunks()
    M = np.concatenate([states.X, states.U]).T[:, used]
    a = cp.Variable((solved.shape[0], int(used.sum())))
    base = found.start.copy()
    base[rows] = 0.0
    effect = found.effect[rows]
    fit = cp.sum(cp.multiply(effect / 2, cp.sum(cp.square(states.Z[rows] - a @ M.T), axis=1)))
    cost = cp.sum(cp.multiply(effect[:, None] * slopes[:, used], cp.abs(a)))
    best = cp.Problem(cp.Minimize(fit + lam * cost)).solve(solver=cp.CLARABEL)
    rest = found.objective(base, lam) - found.misfit(base)[rows].sum()
    assert found.objective(after, lam) - rest == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("design", SEVERAL)
def test_the_budget_holds_and_every_row_is_certified(net, inputs, design):
    report = cimf.sparsify(net, [inputs], 0.4, design, loss="sensitivity").report
    found = report.sensitivity
    assert 0.3 * found.network <= found.model <= 0.4 * found.network
    assert report.certified == 14
    assert report.wellposedness.wellposed
    assert "sensitivity" in str(report)


def test_the_reported_sensitivity_is_that_of_the_model(net, inputs):
    result = cimf.sparsify(net, [inputs], 0.4, "causal", loss="sensitivity")
    span = np.ptp(inputs.double().numpy(), axis=0)
    total = (result.model.sensitivity()[:, :-1] @ span).sum()
    assert result.report.sensitivity.model == pytest.approx(total, rel=1e-9)


def test_no_pair_of_inputs_moves_the_outputs_by_more(net, inputs):
    """|dY| <= S |dU|, on random and on adversarial pairs."""
    model = cimf.sparsify(net, [inputs], 0.4, "full", loss="sensitivity").model
    rng = np.random.default_rng(0)
    u = rng.normal(size=(5, 20_000))
    du = rng.normal(size=u.shape) * rng.uniform(0, 2, size=u.shape[1])
    moved = np.abs(model.predict(u + du) - model.predict(u))
    assert (moved <= model.sensitivity()[:, :-1] @ np.abs(du) + 1e-9).all()


def test_a_budget_of_one_is_the_network_itself(net, inputs):
    result = cimf.sparsify(net, [inputs], 1.0, "causal", loss="sensitivity")
    assert result.report.sensitivity.lam == 0
    np.testing.assert_allclose(
        result.model.predict(inputs.numpy().T),
        net.double()(inputs.double()).detach().numpy().T,
        atol=1e-6,
    )
    net.float()


def test_an_input_that_never_moves_costs_nothing_by_range(inputs):
    """Its weight is kept at a small budget; with unit movements it goes."""
    still = inputs.clone()
    still[:, 0] = 0.7
    report = {
        kind: cimf.sparsify(network(), [still], 0.3, "causal", loss="sensitivity", inputs=kind)
        for kind in ("range", "unit")
    }
    network_ = {kind: r.report.sensitivity.network for kind, r in report.items()}
    own = cimf.ImplicitModel.from_network(network()).sensitivity()[:, :-1]
    assert network_["unit"] == pytest.approx(own.sum(), rel=1e-6)
    span = np.ptp(still.double().numpy(), axis=0)
    assert network_["range"] == pytest.approx((own @ span).sum(), rel=1e-4)


def test_a_penalty_instead_of_a_budget(net, inputs):
    small, large = (
        cimf.sparsify(net, [inputs], None, "causal", loss="sensitivity", lam=lam).report
        for lam in (0.5, 50.0)
    )
    assert small.sensitivity.model > large.sensitivity.model
    assert small.evaluation.output_error < large.evaluation.output_error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kappa": 0.0}, "positive number"),
        ({"kappa": float("nan")}, "positive number"),
        ({"kappa": [0.1, 0.2]}, "positive number"),
        ({"kappa": 0.5, "lam": 1.0}, "kappa=None"),
        ({"kappa": None}, "positive number"),
        ({"kappa": None, "lam": -1.0}, "positive number"),
        ({"refit": 1}, "refit"),
    ],
)
def test_bad_budgets_are_refused_before_any_work(given, words):
    with pytest.raises(InputError, match=words):
        cimf.sparsify(None, None, **{"design": "causal", "loss": "sensitivity", **given})


@pytest.mark.parametrize(
    "given", [{"loss": "sensitivty"}, {"loss": "sensitivity", "inputs": "rnge"}]
)
def test_unknown_names_are_refused(given):
    with pytest.raises(UnknownNameError):
        cimf.sparsify(None, None, 0.5, "causal", **given)


def test_inputs_that_never_move_are_refused(net):
    with pytest.raises(InputError, match="no input moves"):
        cimf.sparsify(net, [torch.ones(30, 5)], 0.5, "causal", loss="sensitivity")


def test_a_budget_that_nothing_meets_is_refused(net, inputs):
    with pytest.raises(InputError, match="cannot be met"):
        cimf.sparsify(net, [inputs], 1e-30, "causal", loss="sensitivity")


class Shortcut(nn.Module):
    """Inputs and states reach the output by paths that have no weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return x + torch.relu(self.b(h)) + h


def test_what_the_network_has_outside_the_design_is_allowed(inputs):
    """The shortcut from the inputs is in D, which else multiplies the bias alone."""
    report = cimf.sparsify(Shortcut(), [inputs], 0.3, "causal", loss="sensitivity").report
    assert report.sensitivity.model <= 0.3 * report.sensitivity.network
    assert report.certified == 10
    with pytest.raises(InputError, match="cannot be met"):
        cimf.prune(Shortcut(), [inputs], method="sensitivity", kappa=1e-3)


@pytest.mark.parametrize("kappa", [0.02, 0.1])
def test_small_budgets_are_certified(kappa):
    """States that nothing reads leave nothing to prove; gaps of 1e-7 at weights of 1e-12 else."""
    data = datasets.digits()
    trained = trained_mlp(
        (64, 64, 32, 10), data, seed=0, schedule=Schedule(5, learning_rate=1e-2, batch_size=64)
    )
    x = torch.from_numpy(data.train_inputs)
    result = cimf.sparsify(trained, [x], kappa, "causal", loss="sensitivity")
    assert result.report.certified == 96
    note = next(text for text in result.report.notes if "reach no output" in text)
    assert int(note.split()[0]) > 10


def test_the_settings_of_a_run_name_the_loss():
    assert SensitivityOptions().decisive["loss"] == "sensitivity"
