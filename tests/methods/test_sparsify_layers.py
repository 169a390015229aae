from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.data.networks import BasicBlock
from cimf.errors import CaptureError, InputError, UnknownNameError
from cimf.methods.base import Task
from cimf.methods.by_name import prune_task
from cimf.methods.layered.calibration import Calibration
from cimf.methods.layered.statistics_options import Statistics
from cimf.methods.layered.supports import Convex

SIZES = {"n_jobs": 1}


def small_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        BasicBlock(6, 8, 2, projection=True, relu=True),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    u = torch.randn(64, 2, 8, 8)
    net(u)  # running statistics
    return net.eval(), u


def error(net, reference, u):
    with torch.no_grad():
        return float((net(u) - reference(u)).square().mean())


@pytest.mark.parametrize("target", [0.0, 0.371, 0.8, 0.999])
@pytest.mark.parametrize("allocation", ["uniform", "error", "output"])
def test_the_target_is_met_by_the_network_that_comes_back(target, allocation):
    net, u = small_net()
    result = cimf.prune(net, u, target, allocation=allocation, **SIZES)
    weights = [m.weight for m in result.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    total = sum(w.numel() for w in weights)
    zeros = sum(int((w == 0).sum()) for w in weights)
    assert abs(zeros / total - target) <= 0.5 / total + 1e-12
    assert result.report.sparsity["network_weights"] == pytest.approx(zeros / total)
    assert type(result.network) is type(net)


def test_no_sparsity_is_the_network_itself():
    net, u = small_net()
    result = cimf.prune(net.double(), u.double(), 0.0, **SIZES)
    torch.testing.assert_close(result.network(u.double()), net(u.double()))
    assert max(layer.mismatch for layer in result.report.layers) < 1e-20


def test_error_correction_and_polish_and_swaps_each_help():
    net, u = small_net()
    calibration = partial(prune_task, Task(net, u), positions=None, **SIZES)

    def run(**options):
        return error(calibration(0.6, **options).network, net, u)

    ours = run()
    assert ours < run(correct=False)
    assert ours < run(polish=False)
    assert run(support="magnitude") < run(support="magnitude", swaps=False)


def test_output_allocation_beats_uniform_rows():
    net, u = small_net()
    calibration = partial(prune_task, Task(net, u), **SIZES)
    by_output = calibration(0.7)
    assert error(by_output.network, net, u) < error(
        calibration(0.7, allocation="uniform").network, net, u
    )


def same_weights(first, second):
    return all(map(torch.equal, first.network.state_dict().values(),
                   second.network.state_dict().values()))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_runs_do_not_influence_each_other_and_repeat(dtype):
    net, u = small_net()
    net = nn.Sequential(*net[:-1], nn.Linear(32, 5, bias=False)).eval().to(dtype)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    calibration = partial(prune_task, Task(net, u), **SIZES)
    first = calibration(0.7)
    calibration(0.9, support="magnitude")
    assert same_weights(first, calibration(0.7)), "a run left something behind"
    assert same_weights(first, prune_task(Task(net, u), 0.7, n_jobs=2))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_mismatch_is_that_of_the_returned_network():
    net, u = small_net()
    result = cimf.prune(net, u, 0.7, **SIZES)
    with torch.no_grad():
        z, s = net(u), result.network(u)
    spread = (z - z.mean(0)).square().sum()
    assert result.report.layers[-1].mismatch == pytest.approx(
        float((s - z).square().sum() / spread), rel=1e-3
    )
    assert "mismatch" in str(result.report)


def test_certificates_of_the_convex_problem_and_of_the_polish():
    net, u = small_net()
    result = cimf.prune(net, u, 0.5, support="ball", **SIZES)
    for layer in result.report.layers:
        assert layer.certified == layer.solved == layer.rows
        assert layer.worst_gap <= 1e-9
        assert layer.polish_gap <= 1e-12


def test_convex_budgets_decide_the_sparsity():
    net, u = small_net()
    calibration = partial(prune_task, Task(net, u), **SIZES)
    kept = [
        calibration(support=Convex("relative", value), swaps=False)
        .report.nonzeros["network_weights"][0]
        for value in (0.2, 0.6, 1.0)
    ]  # fmt: skip
    assert kept[0] < kept[1] < kept[2]
    with pytest.raises(InputError, match="either a target"):
        calibration(0.5, support=Convex("relative", 0.5))
    with pytest.raises(InputError, match="needs a target"):
        calibration()


def test_layers_kept_dense_count_in_the_target():
    net, u = small_net()
    result = cimf.prune(net, u, 0.5, keep=["6"], **SIZES)
    assert result.report.layers[-1].sparsity == 0.0
    assert result.report.sparsity["network_weights"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(InputError, match="at most"):
        cimf.prune(net, u, 0.95, keep=["6"], **SIZES)
    with pytest.raises(UnknownNameError, match=r"3\.conv1"):
        cimf.prune(net, u, 0.5, keep=["head"], **SIZES)


def test_emptied_rows_and_unread_channels_are_flagged():
    net, u = small_net()
    report = cimf.prune(net, u, 0.97, **SIZES).report
    assert any(layer.emptied for layer in report.layers)
    assert any(layer.unread for layer in report.layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mode_and_dtype_come_back(dtype):
    net, u = small_net()
    net = net.to(dtype).train()
    result = cimf.prune(net, u, 0.5, **SIZES)
    assert result.network.training
    assert all(p.dtype == dtype for p in result.network.parameters())
    assert net.training
    half = dtype != torch.float64
    assert any("rounded" in note for note in result.report.notes) == half
    assert result.report.sparsity["network_weights"] == pytest.approx(0.5, abs=1e-3)


def test_token_sequences_are_matched_per_position():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.norm = nn.LayerNorm(6)
            self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
            self.head = nn.Linear(6, 3)

        def forward(self, tokens):
            x = self.norm(self.embed(tokens))
            scores = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 6**0.5, dim=-1)
            return self.head((x + scores @ self.v(x)).mean(1))

    net = Tokens()
    tokens = torch.randint(0, 11, (80, 7))
    result = cimf.prune(net, [tokens[:30], tokens[30:]], 0.5, **SIZES)
    assert {layer.path for layer in result.report.layers} == {"q", "k", "v", "head"}
    assert {layer.samples for layer in result.report.layers} == {560, 80}
    assert error(result.network, net, tokens) < error(lambda t: 0 * net(t), net, tokens)


def test_few_samples_warn_and_name_the_layers():
    net, u = small_net()
    with pytest.warns(UserWarning, match=r"3\.conv2"):
        result = cimf.prune(net, u[:2], 0.5, positions=8, **SIZES)
    assert "3.conv2" in result.report.notes[0]


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "calibration batches are empty"),
        (3, "iterable"),
        ([torch.zeros(4, 3, 8, 8)], r"samples of shape \(3, 8, 8\)"),
        ([torch.zeros(4, 2, 8, 8), torch.zeros(4, 2, 8, 7)], "batch 1"),
        ([torch.zeros(4, 2, 8, 8, dtype=torch.complex64)], "complex"),
        ([torch.zeros(0, 2, 8, 8)], "shape"),
        (["images"], "str"),
        ([torch.full((4, 2, 8, 8), float("nan"))], "NaN"),
    ],
)
def test_bad_batches_are_refused(batches, words):
    with pytest.raises(InputError, match=words):
        cimf.prune(small_net()[0], batches, 0.5)


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ([], "test batches are empty"),
        ([torch.full((4, 2, 8, 8), float("nan"))], "test batch 0"),
        ([torch.zeros(4, 3, 8, 8)], "test samples of shape"),
    ],
)
def test_bad_test_batches_are_refused(test, words):
    net, u = small_net()
    with pytest.raises(InputError, match=words):
        cimf.prune(net, u, 0.5, test=test)


def test_token_ids_outside_the_vocabulary_are_refused():
    net = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 2))
    ids = torch.randint(0, 11, (40, 3))
    ids[30, 2] = 11
    with pytest.raises(InputError, match="from 0 to 11"):
        cimf.prune(net, [ids[:20], ids[20:]], 0.5)
    with pytest.raises(InputError, match="float32"):
        cimf.prune(net, ids.float(), 0.5)


def test_a_norm_over_tokens_stays_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
    u = torch.randn(50, 6, 8)
    net(u)
    result = cimf.prune(net.eval(), u, 0.0, **SIZES)
    torch.testing.assert_close(result.network(u), net(u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"damping": "a"}, {"damping": float("nan")}, {"positions": 0}, {"positions": 2.5},
        {"precision": torch.float16}, {"precision": "float32"}, {"n_jobs": 0},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options):
    net, u = small_net()
    with pytest.raises(InputError, match=next(iter(options))):
        cimf.prune(net, u, 0.5, **options)


def test_partly_labelled_test_batches_are_said():
    net, u = small_net()
    test = [(u, torch.zeros(64, dtype=torch.long)), u]
    result = cimf.prune(net, u, 0.5, test=test, n_jobs=1)
    assert "only 1 of 2 test batches have labels" in str(result.report)


@pytest.mark.parametrize("target", [-0.1, 1.0, float("nan"), "0.8"])
def test_bad_targets_are_refused(target):
    net, u = small_net()
    with pytest.raises(InputError, match="sparsity"):
        cimf.prune(net, u, target)


def test_unknown_names_are_refused():
    net, u = small_net()
    with pytest.raises(UnknownNameError, match="obs"):
        cimf.prune(net, u, 0.5, support="obd")
    with pytest.raises(UnknownNameError, match="uniform"):
        cimf.prune(net, u, 0.5, allocation="even")
    with pytest.raises(InputError, match="damping"):
        cimf.prune(net, u, 0.5, damping=0.0)


def test_activations_in_place_change_nothing():
    torch.manual_seed(0)

    class InPlace(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.inplace = inplace
            self.first = nn.ReLU(inplace)
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = nn.functional.relu(self.a(self.first(x)), inplace=self.inplace)
            z = self.b(h)
            if self.inplace:
                z += h
                z = z.relu_()
            else:
                z = (z + h).relu()
            return self.c(z)

    u = torch.randn(60, 6)
    kept = u.clone()
    states = [
        cimf.prune(InPlace(inplace), u, 0.5, **SIZES).network.state_dict()
        for inplace in (True, False)
    ]
    assert torch.equal(u, kept)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("metric", ["output", "softmax"])
def test_metrics_of_the_allocation(metric):
    net, u = small_net()
    result = cimf.prune(net, u, 0.7, metric=metric, **SIZES)
    assert result.report.sparsity["network_weights"] == pytest.approx(0.7, abs=1e-3)
    with pytest.raises(UnknownNameError, match="softmax"):
        cimf.prune(net, u, 0.7, metric="accuracy")


def test_broken_networks_are_refused():
    net, u = small_net()
    nn.init.constant_(net[6].bias, float("inf"))
    with pytest.raises(CaptureError, match="infinite"):
        cimf.prune(net, u, 0.5)


def test_a_network_that_comes_back_wrong_is_refused(monkeypatch):
    net, u = small_net()
    task = Task(net, u)
    calibration = partial(prune_task, task, **SIZES)
    monkeypatch.setattr(task.graph, "export", lambda *_: net)
    with pytest.raises(CaptureError, match="its own rows"):
        calibration(0.8)
    monkeypatch.undo()
    assert calibration(0.0).report.layers[0].mismatch < 1e-6  # the rows were restored


def test_what_a_convex_budget_does_not_use_is_refused():
    net, u = small_net()
    with pytest.raises(InputError, match="not used"):
        cimf.prune(net, u, support=Convex("relative", 0.5), allocation="uniform", **SIZES)


@pytest.mark.parametrize("correct", [False, True])
def test_layers_outside_a_convex_budget_are_least_squares(correct):
    """The paper's (5): the outputs have no ball; on the teacher's states they are the network's."""
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    u = torch.randn(400, 5)
    result = cimf.prune(
        net, u, support=Convex("kappa", 0.1), keep=["2"], swaps=False, polish=False,
        correct=correct, damping=1e-12, positions=None,
    )  # fmt: skip
    first, last = result.report.layers
    assert (first.solved, last.solved, last.kept) == (7, 0, 21)
    student, teacher = result.network[1](result.network[0](u)), net[1](net[0](u))
    design = np.column_stack([(student if correct else teacher).detach().double(), np.ones(400)])
    target = net(u).detach().double().numpy()
    best, *_ = np.linalg.lstsq(design, target, rcond=None)
    head = result.network[2]
    fitted = np.column_stack([head.weight.detach(), head.bias.detach()]).T
    excess = np.square(design @ fitted - target).sum() - np.square(design @ best - target).sum()
    assert abs(excess) <= 1e-9 * np.square(target).sum()
    if not correct:
        np.testing.assert_allclose(head.weight.detach(), net[2].weight.detach(), atol=1e-4)


def test_layers_outside_a_convex_budget_must_be_there():
    net, u = small_net()
    with pytest.raises(UnknownNameError, match="head"):
        cimf.prune(net, u, support=Convex("kappa", 0.5), keep=["head"], **SIZES)


def test_allocations_by_counts():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    calibration = partial(prune_task, Task(net, torch.randn(50, 4)), **SIZES)
    counts = [np.full(3, 2), np.array([1, 2])]
    assert calibration(0.5, allocation=counts).report.layers[1].kept == 3
    for wrong in (
        counts[:1], np.full(2, 2), [np.full(2, 2), counts[1]], [np.full(3, 9), counts[1]],
        [np.full(3, -1), counts[1]], [np.full(3, 2.0), counts[1]], 3,
    ):  # fmt: skip
        with pytest.raises(InputError, match="allocation"):
            calibration(0.5, allocation=wrong)
    with pytest.raises(InputError, match="keep"):
        calibration(0.5, allocation=counts, keep=["2"])
    for keep in ("2", None):
        with pytest.raises(InputError, match="keep"):
            calibration(0.2, keep=keep)
    with pytest.warns(UserWarning, match="more weights are kept") as caught:
        calibration(0.9, allocation=counts)
    assert caught[0].filename == __file__


def test_a_missed_target_is_said():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight.zero_()
    with pytest.warns(UserWarning, match=r"the target 20.00%.*coefficient 0"):
        report = cimf.prune(net, torch.randn(50, 4), 0.2, **SIZES).report
    assert "the target 20.00%" in str(report)


def test_batches_of_different_sizes_are_the_same_samples():
    net, u = small_net()
    one = cimf.prune(net, u, 0.6, positions=None, **SIZES)
    several = cimf.prune(net, [(u[:7], None), (u[7:9], None), (u[9:], None)], 0.6,
                              positions=None, **SIZES)  # fmt: skip
    np.testing.assert_allclose(
        one.network[6].weight.detach(), several.network[6].weight.detach(), atol=1e-4
    )


def test_the_survey_takes_the_first_batches_that_hold_its_samples(monkeypatch):
    net, u = small_net()
    monkeypatch.setattr("cimf.methods.layered.calibration._SURVEYED", 32)
    for size, seen in ((16, 32), (32, 32), (20, 40), (64, 64)):
        taken = Calibration.of(Task(net, u.split(size)), Statistics()).survey
        assert len(taken.probe) == seen


def test_front_door():
    net, u = small_net()
    result = cimf.prune(net, [u], 0.6, n_jobs=1)
    assert result.report.sparsity["network_weights"] == pytest.approx(0.6, abs=1e-3)
    with pytest.raises(InputError, match=r"cimf\.prune"):
        cimf.sparsify(net, [u], design="layered")


class Exponential(nn.Sequential):
    """Overflows where its weights are large."""

    def forward(self, x):
        return super().forward(x).exp()


def test_an_export_is_no_match_where_both_outputs_are_infinite():
    net, u = Exponential(nn.Linear(4, 2)), torch.rand(50, 4)
    calibration = Calibration.of(Task(net, u), Statistics())
    rows = {"0": (torch.full((2, 4), 1e4), torch.zeros(2))}
    with pytest.raises(CaptureError, match="the sparse network differs from its own rows by inf"):
        calibration.check_export(calibration.graph.export(rows), rows)
