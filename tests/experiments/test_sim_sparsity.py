"""Accuracy at equal non-zeros at a tiny size: equal counts, certificates, a run that goes on."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import CertificateError
from cimf.methods.stacked.captured import Reference
from cimf.studies import convex_objectives as objectives
from cimf.studies import sparsity_curves as study
from cimf.studies.case import Case
from cimf.studies.implicit_teacher import TeacherPlan

ALL = {
    "plain ball": (0.3,), "l1": (5.0,), "sensitivity": (0.5,), "perspective": (5.0,),
    "row sums": (20.0,), "group columns": (10.0,), "group rows": (10.0,),
}  # fmt: skip
CHEAP = {"plain ball": (0.3,), "l1": (5.0,)}
TINY = study.SparsityPlan(
    200, 60, 6, TeacherPlan(6, 0.9, (), 200, 3, 0, 2e-2),
    study.Side(
        "predecessors", (60, 80, 100), CHEAP, (), (0.5,), (0.5,), ("magnitude-layer", "obs"),
    ),
    study.Side("full", (60, 70, 80), {"plain ball": (0.3,)}, ("plain ball",), (0.5,)),
    "Left out: nothing.",
)  # fmt: skip


def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    inputs = torch.randn(260, 6)
    outputs = net(inputs)
    labels = (outputs - outputs.mean(0)).argmax(1)  # all three classes
    return Case(net.eval(), inputs[:200], inputs[200:], labels[200:], {"data": "toy"}, labels[:200])


@pytest.fixture(scope="module")
def problem():
    toy = case()
    tests = [(toy.inputs, toy.labels)]
    return objectives.Problem.of(
        Reference.capture(toy.network, [toy.calibration], tests), "predecessors"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, study.sparsity_curves("toy", folder, case, TINY)


def test_all_methods_are_compared_at_equal_non_zeros(whole):
    folder, table = whole
    layered = table[table["teacher"] == "layered"]
    for count in (60, 80, 100):
        for method in ("magnitude-layer", "obs"):
            assert count in layered.loc[layered["objective"] == method, "nonzeros"].tolist()
        for objective in CHEAP:
            found = layered.loc[layered["objective"] == objective, "nonzeros"]
            assert ((found >= 0.9 * count) & (found <= count)).any(), (objective, count)
    solved = table[~table["objective"].isin(["magnitude-layer"])]
    assert (table["certified"] == table["rows"]).all()
    assert solved.loc[solved["rows"] > 0, "worst_gap"].max() <= 1e-6
    implicit = table[table["teacher"] == "implicit"]
    assert set(implicit["objective"]) == {"plain ball"}
    assert implicit["nonzeros"].between(63, 70).any()  # the middle count, which is searched alone

    units = pd.read_csv(folder / "units.csv")
    assert units.groupby("teacher").size().to_dict() == {"implicit": 3, "layered": 6}
    own = units[(units["teacher"] == "layered") & (units["objective"] == "plain ball")]
    by = own.set_index("units")["state_error"]
    assert by["Theorem 8"] < by["as captured"]  # the ball forbids the network in its own units
    written = pd.read_csv(folder / "sparsity.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    text = (folder / "sparsity.md").read_text(encoding="utf-8")
    assert "obs (network)" in text
    assert text.endswith("Left out: nothing.\n")
    names = {"sparsity.png", "sparsity.pdf", "manifest.json", "teacher.safetensors"}
    assert names <= {path.name for path in folder.iterdir()}


def test_a_run_that_was_stopped_gives_the_same_rows(tmp_path, monkeypatch, whole):
    made, measured = [], study.measured

    def stops(found, **aside):
        made.append(aside["objective"])
        if len(made) == 4:
            raise KeyboardInterrupt
        return measured(found, **aside)

    monkeypatch.setattr(study, "measured", stops)
    with pytest.raises(KeyboardInterrupt):
        study.sparsity_curves("toy", tmp_path, case, TINY)
    table = study.sparsity_curves("toy", tmp_path, case, TINY)
    seconds = ["seconds"]
    pd.testing.assert_frame_equal(table.drop(columns=seconds), whole[1].drop(columns=seconds))
    units = pd.read_csv(tmp_path / "units.csv")
    convex = table[~table["objective"].isin(["magnitude-layer", "obs"])]
    assert len(made) == len(convex) + len(units) + 1  # only the one that was stopped was repeated
    assert (tmp_path / "teacher.safetensors").exists()


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_objective_is_certified_and_sparser_at_its_stronger_end(name, problem):
    objective = objectives.OBJECTIVES[name]
    (level,) = ALL[name]
    weak, strong = (
        objectives.measured(objective.solve(problem, level * 4.0 ** (objective.sign * side)))
        for side in (-1, 1)
    )
    assert strong["nonzeros"] < weak["nonzeros"]
    for row in (weak, strong):
        assert row["certified"] == row["rows"] == 16
        assert row["worst_gap"] <= 1e-6


def test_l1_by_the_row_solver_is_the_loss_of_the_main_job(problem):
    toy = case()
    found = objectives.lasso(problem, 5.0)
    main = cimf.sparsify(
        toy.network, [toy.calibration], None, "predecessors", loss="l1", lam=5.0, tol=1e-12
    )
    np.testing.assert_allclose(found.model.A, main.model.A, atol=1e-5)
    np.testing.assert_allclose(found.model.B, main.model.B, atol=1e-5)
    rows = found.report.solution.coef[:, :-1]
    assert np.abs(rows).sum(axis=1).max() <= 0.99


def spoiled(solution):
    """The solution with a gap in row 3 that its tolerance does not allow."""
    certificate = solution.certificate
    passed, gap = certificate.passed.copy(), certificate.gap.copy()
    passed[3], gap[3] = False, 1.0
    return replace(solution, certificate=replace(certificate, passed=passed, gap=gap))


def test_a_row_that_is_not_certified_ends_the_run(tmp_path, monkeypatch, problem):
    found = objectives.plain_ball(problem, 0.3)
    bad = replace(found, report=replace(found.report, solution=spoiled(found.report.solution)))
    with pytest.raises(CertificateError, match="1 of 16 rows failed"):
        objectives.measured(bad)
    solve = objectives.solve_rows
    monkeypatch.setattr(objectives, "solve_rows", lambda *a, **k: spoiled(solve(*a, **k)))
    with pytest.raises(CertificateError, match="1 of 16 rows failed"):
        study.sparsity_curves("toy", tmp_path, case, TINY)
    assert not (tmp_path / "sparsity.md").exists()


@pytest.mark.parametrize("count", [60, 900, 20_000])
@pytest.mark.parametrize("start", [-3.0, 2.0, 9.0])
def test_the_search_closes_in_on_a_count(count, start):
    def nonzeros(strength):  # 50,000 falling to 5, as a logistic curve
        return round(5 + 50_000 / (1 + np.exp(strength - 1.0)))

    known = {start: nonzeros(start)}
    for _ in range(12):
        if any(0.9 * count <= number <= count for number in known.values()):
            break
        strength = study.next_strength(known, count)
        assert strength not in known
        known[strength] = nonzeros(strength)
    else:
        pytest.fail(f"not found: {known}")
