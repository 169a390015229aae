"""The path of a row: monotone, its multiplier the slope of the optimum, certified."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cimf.errors import CertificateError
from cimf.judge import Solution
from cimf.studies import row_path as study
from cimf.studies.case import Case


def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(160, 5)
    return Case(net.eval(), inputs[:120], inputs[120:], torch.zeros(40).long(), {"data": "toy"})


def test_every_point_is_the_optimum_in_its_ball(tmp_path):
    table = study.row_path("toy", tmp_path, case, 11)
    assert table["kappa"].is_monotonic_increasing
    assert (table["gap"] <= 1e-9).all()
    assert (np.diff(table["objective"]) <= 1e-9).all()
    assert (np.diff(table["lam"]) <= 1e-9).all()
    coef = pd.read_csv(tmp_path / "coefficients.csv").pivot(
        index="kappa", columns="column", values="coefficient"
    )
    np.testing.assert_allclose(
        np.abs(coef).sum(axis=1), np.minimum(table["kappa"], table["kappa"].max() / 1.05), rtol=1e-6
    )
    # The ends by hand: nothing, and least squares; the derivative of the optimum is -lam.
    assert not coef.iloc[0].any()
    slope = np.gradient(table["objective"], table["kappa"])
    np.testing.assert_allclose(slope[1:-2], -table["lam"][1:-2], rtol=0.2, atol=1e-2)
    names = {"path.csv", "coefficients.csv", "path.md", "path.png", "manifest.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}


def test_a_point_that_is_not_certified_ends_the_run(tmp_path, monkeypatch):
    def fail(self):
        raise CertificateError("planted")

    monkeypatch.setattr(Solution, "raise_if_failed", fail)
    with pytest.raises(CertificateError, match="planted"):
        study.row_path("toy", tmp_path, case, 5)
    assert not (tmp_path / "path.csv").exists()
