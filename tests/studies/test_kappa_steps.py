"""The paper's problem step by step: cells by hand, certificates, interruption at any cell."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

import cimf
from cimf.errors import CertificateError, InputError
from cimf.judge import DENOMINATORS
from cimf.methods.layered.supports import Convex
from cimf.studies import compare
from cimf.studies.kappa_steps import STATISTICS, KappaPlan, kappa_steps

PLAN = KappaPlan(
    80, ("CIFAR-100",), 110, (0.1, 0.99), ("as captured", "rescaled, corrected, polished")
)


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps") / "run"
    return folder, kappa_steps("small", folder, lambda: case, PLAN)


def test_every_cell_is_that_of_a_run_by_hand(case, whole):
    _, rows = whole
    assert [(row["step"], row["kappa"]) for row in rows] == [
        (step, kappa) for step in PLAN.steps for kappa in PLAN.kappas
    ]
    for row in rows:
        last = row["step"] != "as captured"
        result = cimf.prune(
            case.network, case.calibration[:80], **asdict(STATISTICS), swaps=False, correct=last,
            polish=last, keep=("4",),
            support=Convex("relative" if last else "kappa", row["kappa"]),
        )  # fmt: skip
        found = float(
            (result.network(case.inputs[:110]).argmax(1) == case.labels[:110]).double().mean()
        )
        assert row["accuracy"] == found
        for key in DENOMINATORS:
            assert row[f"sparsity_{key}"] == result.report.sparsity[key]
        assert row["certified_rows"] == row["solved_rows"] == 16
        assert 0 <= row["worst_gap"] <= 1e-9
        if not last:
            norms = [result.network[k].weight.abs().sum(1).max() for k in (0, 2)]
            assert max(norms) <= row["kappa"] * (1 + 1e-6)
            np.testing.assert_allclose(
                result.network[4].weight.detach(), case.network[4].weight.detach(), atol=1e-3
            )


def test_the_paper_stands_beside(whole):
    folder, rows = whole
    text = (folder / "table.md").read_text()
    assert "| as captured | 0.1 |" in text
    assert "87.1 / 93.8" in text
    assert "91.0 / 90.1" in text
    distance = np.mean(
        [abs(100 * row["sparsity_dense"] - s) for row, s in zip(rows, (93.8, 90.1), strict=False)]
    )
    assert f"{distance:.1f} points away" in text or "of dense" not in text.split("nearest")[1]
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    assert settings["kappas"] == [0.1, 0.99]
    assert settings["steps"]["as captured"] == {
        "budget": "kappa", "correct": False, "polish": False,
    }  # fmt: skip


@pytest.mark.parametrize("cell", [0, 1, 3])
def test_an_interrupted_run_ends_in_the_same_files(case, whole, tmp_path, monkeypatch, cell):
    plain, calls = compare.prune_task, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == cell + 1:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(compare, "prune_task", stops)
    with pytest.raises(KeyboardInterrupt):
        kappa_steps("small", tmp_path, lambda: case, PLAN)
    kappa_steps("small", tmp_path, lambda: case, PLAN)
    assert len(calls) == 4 + 1, "finished cells are not measured again"
    folder, _ = whole
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in folder.iterdir())
    for name in ("table.md", "table.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    one, two = (pd.read_csv(path / "table.csv") for path in (tmp_path, folder))
    assert one.drop(columns="seconds").equals(two.drop(columns="seconds"))


def test_a_cell_without_certificate_fails_the_command(case, tmp_path, monkeypatch):
    plain = compare._row
    monkeypatch.setattr(compare, "_row", lambda result: {**plain(result), "worst_gap": None})
    with pytest.raises(CertificateError, match=r"4 cell\(s\): step as captured, kappa 0\.1; "):
        kappa_steps("small", tmp_path, lambda: case, PLAN)
    assert (tmp_path / "manifest.json").exists(), "and what was measured is there"


def test_a_cell_that_fails_ends_the_run_unless_it_goes_on(case, tmp_path, monkeypatch):
    plain = compare.prune_task

    def fails(*arguments, support, **options):
        if support.value == 0.99:
            raise InputError("no such row")
        return plain(*arguments, support=support, **options)

    monkeypatch.setattr(compare, "prune_task", fails)
    with pytest.raises(InputError, match="no such row"):
        kappa_steps("small", tmp_path, lambda: case, PLAN)
    with (
        pytest.warns(UserWarning, match=r"kappa 0\.99 failed: no such row"),
        pytest.raises(CertificateError, match=r"2 cell\(s\)"),
    ):
        kappa_steps("small", tmp_path, lambda: case, PLAN, keep_going=True)
    assert list(pd.read_csv(tmp_path / "table.csv")["kappa"]) == [0.1, 0.1]
