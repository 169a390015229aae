"""What every method shares: options refused before work, results counted, test data unseen."""

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import Method, NoOptions, Outcome, Task, run_method
from cimf.methods.baselines.one_shot import one_shot
from cimf.methods.by_name import METHODS, prune_task


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


X = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(90) % 3
PAIRS = list(zip(X.split(30), LABELS.split(30), strict=True))


@dataclass(frozen=True, kw_only=True)
class Toy:
    steps: int = 3


def toy(task, sparsity, options):
    """Train all weights on the labels, then keep the largest."""
    net = copy.deepcopy(task.net).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(options.steps):
        for inputs, labels in task.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            optimizer.step()
    weights = [module.weight for module in net if isinstance(module, nn.Linear)]
    threshold = torch.cat([w.detach().abs().flatten() for w in weights]).quantile(sparsity)
    for weight in weights:
        weight.data[weight.abs() < threshold] = 0.0
    return Outcome(net.eval())


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Method("a test", toy, Toy, needs=("labels", "gradients")))


def test_a_planted_training_method_fits(planted):
    net = network()
    before = copy.deepcopy(net.state_dict())
    result = cimf.prune(net, PAIRS, 0.5, "toy", steps=2, test=PAIRS)
    weights, total = result.report.matched
    assert (weights, total) == (54, 108)
    assert result.report.nonzeros["network_parameters"] == (54 + 15, 123)
    assert result.report.evaluation.accuracy is not None
    assert "54 of" in str(result.report)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    given = cimf.prune(net, X, 0.5, "toy", steps=2, train=PAIRS)
    assert torch.equal(given.network[0].weight, result.network[0].weight)


def test_labels_are_asked_for_before_any_work(planted):
    with pytest.raises(InputError, match=r"'toy' trains on labels: give \(input, label\) pairs"):
        cimf.prune(network(), X, 0.5, "toy")
    with pytest.raises(
        UnknownNameError, match=r"option of 'toy' 'stepz'; known: .*steps.*did you mean 'steps'\?"
    ):
        cimf.prune(network(), PAIRS, 0.5, "toy", stepz=1)


def test_labels_reach_no_method_that_does_not_need_them():
    seen = []

    def look(task, sparsity, options):
        seen.append((task.train, [type(u) for u in task.inputs]))
        return Outcome(copy.deepcopy(task.net))

    run_method(Task(network(), PAIRS), "look", Method("a test", look, Toy), 0.0, Toy())
    assert seen == [(None, [torch.Tensor] * 3)]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_meets_its_target_and_names_its_source(name):
    method = METHODS[name]
    assert method.source
    assert method.controlled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FISTA may return a zero on its support, and says so
        result = cimf.prune(network(), PAIRS, 0.5, name, test=PAIRS)
    assert result.report.method == name
    assert result.report.sparsity["network_weights"] == pytest.approx(0.5, abs=0.02)
    assert type(result.network) is nn.Sequential


def test_methods_on_one_task_share_what_they_compute():
    task = Task(network(), X)
    prune_task(task, 0.5, "obs-error", n_jobs=1)
    calibration = task.once(METHODS["layered"].options(n_jobs=1).statistics, lambda: None)
    survey = calibration.survey
    first = prune_task(task, 0.7, n_jobs=1)
    assert calibration.survey is survey
    alone = prune_task(Task(network(), X), 0.7, n_jobs=1)
    for one, other in zip(first.network.parameters(), alone.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_class_or_damaged_weights_are_no_result():
    def other(task, sparsity, options):
        return Outcome(nn.Linear(6, 3))

    def damaged(task, sparsity, options):
        net = copy.deepcopy(task.net)
        net[2].bias.data[1] = np.nan
        return Outcome(net)

    for run, message in ((other, "returned a Linear, not .* Sequential"), (damaged, "'2.bias'")):
        with pytest.raises(cimf.CimfError, match=message):
            run_method(Task(network(), X), "bad", Method("a test", run, Toy), 0.0, Toy())


def test_a_missed_target_is_warned_about_and_noted():
    def nothing(task, sparsity, options):
        return Outcome(copy.deepcopy(task.net))

    with pytest.warns(UserWarning, match=r"the sparsity is 0.00%, the target 50.00%") as caught:
        result = run_method(Task(network(), X), "no", Method("a test", nothing, Toy), 0.5, Toy())
    assert caught[0].filename == __file__
    assert "more weights are kept" in result.report.notes[-1]


class Auxiliary(nn.Module):
    """Has a head that is only called in training."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 20)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_modules_that_are_not_called_are_counted_and_named():
    torch.manual_seed(0)
    report = cimf.prune(Auxiliary(), X, 0.5, n_jobs=1).report
    assert report.matched == (36, 72)
    assert report.nonzeros["network_weights"] == (36 + 160, 72 + 160)
    assert any("auxiliary" in note and "50.00%" in note for note in report.notes)


def test_what_is_no_outcome_choice_or_rule_of_counts_is_named():
    with pytest.raises(cimf.CimfError, match="'none' returned a NoneType; an Outcome is needed"):
        run_method(Task(network(), X), "none", Method("a test", lambda *_: None), 0.5, NoOptions())
    nothing = one_shot("a test", lambda *_: None, "uniform", False)
    with pytest.raises(InputError, match="rule returned a NoneType; a Choice is needed"):
        run_method(Task(network(), X), "rule", nothing, 0.5, nothing.options())
    with pytest.raises(UnknownNameError, match=r"unknown counts 'unifrm'; known: .*did you mean"):
        one_shot("a test", lambda *_: None, "unifrm", False)
    with pytest.raises(InputError, match="swaps must be True or False, got 'yes'"):
        cimf.prune(network(), X, 0.5, swaps="yes")


def test_a_network_with_two_inputs_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(6, 2)

        def forward(self, x, y):
            return self.lin(x + y)

    with pytest.raises(InputError, match=r"missing a required argument: 'y'.*\(\(x, y\), None\)"):
        cimf.prune(Two(), [(X, X)], 0.5)


def test_short_reprs():
    result = cimf.prune(network(), X, 0.5, n_jobs=1)
    assert repr(result) == "Pruned(Sequential by 'layered', 50.0% of 108 weights are zero)"
    assert "layered, magnitude-global" in repr(METHODS)
    assert "Sun et al. 2023" in repr(METHODS["wanda"])
