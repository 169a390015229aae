"""Robust curves at a tiny size: every method in one table, continued where it stopped."""

import pandas as pd
import pytest
import torch
from torch import nn

from cimf.errors import InputError
from cimf.model import ImplicitModel
from cimf.studies import robust_curves as study
from cimf.studies.case import Case
from cimf.train.adversarial import train_adversarially
from cimf.train.training_options import Training

TINY = study.Curves(200, 60, (0.0, 0.1), (0.5,), (0.4,), 0.1)


def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(260, 4)
    labels = net(inputs).argmax(1)
    return Case(net, inputs[:200], inputs[200:], labels[200:], {"data": "toy"}, labels[:200])


def test_every_method_is_judged_and_kept(tmp_path, monkeypatch):
    table = study.robust_curves("toy", tmp_path, case, TINY)
    assert list(dict.fromkeys(table["method"])) == [
        "network",
        "plain ball, kappa 0.5",
        "sensitivity, kappa 0.4",
        "adversarial training, eps 0.1",
    ]
    assert (table["certified"] <= table["attacked"]).all()
    assert (table["attacked"] <= table["clean"]).all()
    by = table.groupby("method", sort=False).first()
    assert by["labels"].tolist() == [False, False, False, True]
    network, _, sensitive, _ = by["sensitivity"]
    assert sensitive < 0.6 * network
    names = {"curves.csv", "curves.md", "curves.png", "manifest.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    written = pd.read_csv(tmp_path / "curves.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    seen = []

    def stops(label, method, case, curves):
        seen.append(label)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return judged(label, method, case, curves)

    judged = study._judged
    monkeypatch.setattr(study, "_judged", stops)
    with pytest.raises(KeyboardInterrupt):
        study.robust_curves("toy", tmp_path, case, TINY)
    study.robust_curves("toy", tmp_path, case, TINY)
    assert seen[2:] == ["sensitivity, kappa 0.4", *seen[2:3], "adversarial training, eps 0.1"]


def test_adversarial_training_resists_more():
    """Two blobs along one axis and a second axis that is noise: the attack finds the second one."""
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (600,))
    inputs = torch.randn(600, 2) * torch.tensor([0.3, 0.05]) + torch.stack(
        [labels * 2.0 - 1.0, (labels - 0.5) * 0.1], 1
    )
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    options = Training(epochs=8, optimizer="adamw", learning_rate=2e-2)
    plain, robust = (
        train_adversarially(net, [(inputs, labels)], eps, options) for eps in (1e-6, 0.5)
    )
    from cimf.evaluate.robustness import robustness

    one, two = (robustness(n, inputs, labels, [0.5]).attacked[0] for n in (plain, robust))
    assert two >= one
    assert two > 0.9


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_a_radius_must_be_positive(eps):
    with pytest.raises(InputError, match="positive"):
        train_adversarially(nn.Linear(2, 2), [], eps)


def conv_case():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    inputs = torch.randn(240, 1, 4, 4)
    labels = net(inputs).argmax(1)
    return Case(net, inputs[:180], inputs[180:], labels[180:], {"data": "toy"}, labels[:180])


def test_pruned_networks_are_compared_at_the_same_zeros(tmp_path):
    curves = study.LayeredCurves(180, 60, (1e-4, 0.02, 0.3), (0.6, 0.3), ("layered",))
    table = study.robust_curves("toy", tmp_path, conv_case, curves)
    by = table.groupby("method", sort=False).first()
    assert list(by.index) == [
        "network", "sensitivity, kappa 0.6", "layered, as many zeros", "sensitivity, kappa 0.3",
    ]  # fmt: skip
    network, first, layered, second = by["nonzeros"]
    assert network > first == layered > second
    shares = by["sensitivity"] / by["sensitivity"].iloc[0]
    assert (shares.iloc[[1, 3]] < [0.7, 0.4]).all()
    assert (table["certified"] <= table["attacked"]).all()
    assert (table["attacked"] <= table["clean"]).all()
    certified = table.set_index(["method", "eps"])["certified"]
    assert certified["network", 1e-4] == 1.0
    assert certified["network", 0.3] == 0.0


def test_the_closed_form_certifies_what_the_implicit_model_does():
    case = conv_case()
    curves = study.LayeredCurves(180, 60, (0.01, 0.05, 0.1), (), ())
    found = curves.judge(case.network, case)
    matrix = ImplicitModel.from_network(case.network, (1, 4, 4)).sensitivity()[:, :-1]
    assert found["sensitivity"][0] == pytest.approx(matrix.sum() / 3, rel=1e-6)
    values, own = case.network(case.inputs).detach().numpy(), case.labels.numpy()
    for eps, share in zip(curves.eps, found["certified"], strict=True):
        moved = eps * matrix.sum(axis=1)
        worst = values + moved
        least = values[range(60), own] - moved[own]
        worst[range(60), own] = -1e9
        assert share == pytest.approx((least > worst.max(axis=1)).mean())
