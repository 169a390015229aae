"""Solvers timed side by side: ratios by hand from the runs, certificates, interruption."""

import numpy as np
import pandas as pd
import pytest

import cimf
from cimf.errors import CertificateError
from cimf.judge import Solution
from cimf.studies import solver_times as study

PLAN = study.TimesPlan(150, 2, rows=2, shares=(0.5,), kappas=(0.5,))


SIZES = (150, 10)


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("times") / "run"
    return folder, study.solver_times("small", folder, lambda: case, PLAN)


def test_every_solver_is_timed_on_every_share(whole):
    _, table = whole
    assert len(table) == len(study.SOLVERS) * 2 * 2
    assert (table["rows"] == 16).all()
    assert (table["timed_rows"] == 4).all()
    assert (table[["solve", "statistics"]] > 0).all(axis=None)
    assert (table["worst_gap"] <= 1e-7).all()
    counts = table.groupby(["solver", "share"])["iterations"]
    assert (counts.nunique() == 1).all(), "counts do not depend on the machine"
    full = table[table["share"] == 1.0].groupby("solver")["iterations"].first()
    assert full["bisection, warm (Algorithm 2)"] < full[study.COLD]


def test_speed_ups_are_ratios_within_a_repeat(whole):
    folder, table = whole
    speed = pd.read_csv(folder / "table.csv").set_index(["solver", "what", "by"])
    one = {key: part.sort_values("repeat") for key, part in table.groupby(["solver", "share"])}
    warm = "bisection, warm (Algorithm 2)"
    ratio = one[study.COLD, 1.0]["solve"].to_numpy() / one[warm, 1.0]["solve"].to_numpy()
    found = speed.loc[(warm, "warm start", "solve")]
    np.testing.assert_allclose(found[["lower", "median", "upper"]].astype(float),
                               np.quantile(ratio, (0.25, 0.5, 0.75)))  # fmt: skip
    before, after = (
        (part["solve"] + part["statistics"]).to_numpy()
        for part in (one["CVXPY", 1.0], one["CVXPY", 0.5])
    )
    found = speed.loc[("CVXPY", "50% of the data", "total")]
    assert found["median"] == pytest.approx(np.median(before / after))
    assert ("exact path", "warm start", "iterations") not in speed.index, "other units"
    assert (folder / "table.png").exists()
    assert "2.0 and 7.8 at kappa 0.5" in (folder / "table.md").read_text()


def test_runs_that_were_timed_are_not_timed_again(case, whole, tmp_path, monkeypatch):
    plain, calls = study._timed, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(study, "_timed", stops)
    with pytest.raises(KeyboardInterrupt):
        study.solver_times("small", tmp_path, lambda: case, PLAN)
    table = study.solver_times("small", tmp_path, lambda: case, PLAN)
    assert len(calls) == 20 + 1
    _, first = whole
    times = ["solve", "statistics"]
    pd.testing.assert_frame_equal(table.drop(columns=times), first.drop(columns=times))


def test_a_row_without_certificate_fails(case, tmp_path, monkeypatch):
    def nothing(rows, radii):
        coef = np.zeros(rows.own.shape)
        certificate = cimf.certify(rows.gram, coef, kappa=radii, weights=rows.weights)
        solver, none = np.full(len(coef), "nothing"), np.zeros(len(coef), int)
        return study.Run(Solution(coef, certificate, solver, none, {"certify": 0.0}), 0)

    monkeypatch.setitem(study.SOLVERS, "CVXPY", nothing)
    with pytest.raises(CertificateError):
        study.solver_times("small", tmp_path, lambda: case, PLAN)
