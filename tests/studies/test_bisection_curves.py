"""Accuracy along the bisection: every step by hand, the end against the layered method."""

import numpy as np
import pandas as pd
import pytest
import torch

from cimf.solve.bisection.algorithms import bisect_rows
from cimf.studies import bisection_curves as study
from cimf.studies.teacher_rows import network_of, teacher_rows

PLAN = study.CurvePlan(120, (0.3, 0.9), ("rows", "none"))


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves") / "run"
    return folder, study.bisection_curves("small", folder, lambda: case, PLAN)


def test_rows_are_those_of_the_network(case):
    """Least squares on the teacher's states without a ball gives the network back."""
    task = case.task(None, labelled=False)
    problems = teacher_rows(task)
    assert [(p.layer.path, p.own.shape) for p in problems] == [("0", (9, 7)), ("2", (7, 10))]
    fits = [np.linalg.solve(p.gram.gram, p.gram.corr.T).T for p in problems]
    net = network_of(task, problems, fits)
    for mine, own in zip(net.parameters(), case.network.parameters(), strict=True):
        torch.testing.assert_close(mine, own, atol=1e-4, rtol=1e-4)
    radii = problems[0].radii("relative", 0.5)
    np.testing.assert_allclose(radii, 0.5 * case.network[0].weight.abs().sum(1).detach(), rtol=1e-5)
    assert problems[1].radii("kappa", 0.5).tolist() == [0.5] * 7
    assert problems[0].weights.tolist() == [1.0] * 6 + [0.0]


def test_every_step_is_that_of_the_rows_by_hand(case, whole):
    _, table = whole
    task = case.task(None, labelled=False)
    problems = teacher_rows(task)
    part = table[(table["kappa"] == 0.9) & (table["warm_start"] == "none")]
    found = [
        bisect_rows(p.gram, p.radii("relative", 0.9), weights=p.weights, warm_start="none",
                    trace=True)
        for p in problems
    ]  # fmt: skip
    assert len(part) == max(int(f.steps.max()) for f in found)
    for step in (0, 4, len(part) - 1):
        coef, passes = [], 0
        for problem, one in zip(problems, found, strict=True):
            rows = np.zeros(problem.own.shape)
            for i in range(len(rows)):
                own = np.flatnonzero(one.trace.row == i)
                rows[i] = one.trace.coef[[own[min(step, own.size - 1)]]].toarray()[0]
                passes += int(one.trace.inner[own[: step + 1]].sum())
            coef.append(rows)
        net = network_of(task, problems, coef)
        line = part.iloc[step]
        assert line["iteration"] == step + 1
        assert line["passes"] == passes
        right = (net(case.inputs).argmax(1) == case.labels).double().mean()
        assert line["accuracy"] == float(right)
        assert line["nonzero_weights"] == sum(int(net[k].weight.count_nonzero()) for k in (0, 2))


def test_a_row_without_steps_is_zero():
    problem = np.array([[2.0, 1.0], [1.0, 3.0]])
    from cimf.statistics import Gram

    gram = Gram.from_moments(problem, np.array([[1.0, 0.5], [0.0, 0.0]]), [1.0, 0.0], 4)
    trace = bisect_rows(gram, 0.3, trace=True).trace
    assert not study._iterate(trace, 2, 3)[1].any()
    assert study._iterate(trace, 2, 3)[0].any()


def test_warm_starts_end_at_the_same_solution_with_fewer_passes(whole):
    folder, table = whole
    last = table.groupby(["kappa", "warm_start"], sort=False).last()
    for kappa in PLAN.kappas:
        assert last.loc[(kappa, "rows"), "passes"] < last.loc[(kappa, "none"), "passes"]
    lines = (folder / "curves.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| 0.3", "| 0.9"))]
    assert len(rows) == 4
    assert rows[0][2] == rows[1][2], "the certified accuracy"
    assert {path.name for path in folder.iterdir()} == {
        "curves.csv", "curves.parquet", "curves.md", "curves.tex", "iteration.png",
        "iteration.pdf", "passes.png", "passes.pdf", "manifest.json",
        "report.html",
    }  # fmt: skip


def test_an_interrupted_run_ends_in_the_same_files(case, whole, tmp_path, monkeypatch):
    plain, calls = study._followed, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(study, "_followed", stops)
    with pytest.raises(KeyboardInterrupt):
        study.bisection_curves("small", tmp_path, lambda: case, PLAN)
    table = study.bisection_curves("small", tmp_path, lambda: case, PLAN)
    assert len(calls) == 4 + 1
    folder, first = whole
    pd.testing.assert_frame_equal(table, first)
    for name in ("curves.csv", "curves.md", "iteration.png", "passes.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
