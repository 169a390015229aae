"""An implicit teacher at a tiny size: trained, matched, tuned, with the zeros kept."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cimf.model import ImplicitModel
from cimf.studies import implicit_teacher as study
from cimf.studies.case import Case

TINY = study.TeacherPlan(8, 0.9, (0.3,), 150, 4, 2, 2e-2)


def case():
    torch.manual_seed(0)
    labels = torch.arange(260) % 3
    inputs = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])[labels]
    inputs = inputs + 0.4 * torch.randn(260, 2)
    return Case(
        nn.Identity(), inputs[:200], inputs[200:], labels[200:], {"data": "blobs"}, labels[:200]
    )


def test_teacher_match_and_tuned_stand_in_one_table(tmp_path):
    table = study.implicit_teacher("toy", tmp_path, case, TINY)
    assert table["model"].tolist() == [
        "teacher", "sparse, kappa 0.3", "tuned, kappa 0.3", "its pattern from nothing, kappa 0.3",
    ]  # fmt: skip
    assert table["labels"].tolist() == [True, False, True, True]
    teacher, sparse, tuned, again = table.to_dict("records")
    assert teacher["accuracy"] > 0.9
    assert sparse["nonzeros"] < teacher["nonzeros"]
    assert tuned["nonzeros"] <= sparse["nonzeros"]
    assert again["nonzeros"] <= sparse["nonzeros"]
    assert (table["seconds"] > 0).all()
    written = ImplicitModel.load(tmp_path / "teacher.safetensors")
    assert np.abs(written.A).sum(axis=1).max() <= 0.9 * (1 + 1e-12)
    assert (tmp_path / "teacher.png").exists()
    assert len(pd.read_csv(tmp_path / "teacher.csv")) == 4


def test_the_teacher_is_not_trained_twice(tmp_path, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    sparse = study._sparse
    monkeypatch.setattr(study, "_sparse", stops)
    with pytest.raises(KeyboardInterrupt):
        study.implicit_teacher("toy", tmp_path, case, TINY)
    monkeypatch.setattr(study, "_sparse", sparse)
    monkeypatch.setattr(study, "_teacher", stops)  # would stop again
    assert len(study.implicit_teacher("toy", tmp_path, case, TINY)) == 4
    assert (tmp_path / "teacher.safetensors").exists()
