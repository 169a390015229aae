"""Accuracy against the share of the data: nested subsets, cells by hand, interruption."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cimf.errors import CertificateError
from cimf.methods.by_name import prune_task
from cimf.studies import compare
from cimf.studies.data_share import SharePlan, data_share, flat_from
from cimf.studies.kappa_steps import STEPS

STEP = "rescaled, corrected"
PLAN = SharePlan((0.25, 0.5, 1.0), (0.5,), (0, 1), (STEP,), data=100, tests=90)


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("share") / "run"
    return folder, data_share("small", folder, lambda: case, PLAN)


def test_every_cell_is_that_of_nested_subsets_by_hand(case, whole):
    folder, rows = whole
    assert len(rows) == 6
    orders = {seed: np.random.default_rng(seed).permutation(100) for seed in PLAN.seeds}
    for row in rows:
        samples = orders[row["seed"]][: round(100 * row["share"])]
        own = replace(case, calibration=case.calibration[samples])
        options = STEPS[STEP].options(row["kappa"], "4")
        result = prune_task(own.task(None, False), None, "layered", **options)
        classes = result.network(case.inputs[:90]).argmax(1)
        assert row["accuracy"] == float((classes == case.labels[:90]).double().mean())
        assert row["worst_gap"] <= 1e-9
    whole_data = [row["nonzero_weights"] for row in rows if row["share"] == 1.0]
    assert whole_data[0] == whole_data[1], "all the data are the same samples in any order"
    half = [100 * row["accuracy"] for row in rows if row["share"] == 0.5]
    cell = f"{np.mean(half):.1f} ({min(half):.1f}-{max(half):.1f})"
    assert cell in (folder / "table.md").read_text()
    assert (folder / "rescaled-corrected.png").exists()


@pytest.mark.parametrize(
    ("accuracy", "share"),
    [
        ({0.1: 0.7, 0.2: 0.895, 0.5: 0.905, 1.0: 0.9}, 0.2),
        ({0.1: 0.9, 0.2: 0.8, 0.5: 0.85, 1.0: 0.9}, 1.0),  # a lucky small subset is no plateau
        ({0.1: 0.95, 0.5: 0.9, 1.0: 0.9}, 0.5),  # better with less is none either
        ({0.1: 0.9, 1.0: 0.9}, 0.1),
    ],
)
def test_where_the_accuracy_flattens(accuracy, share):
    assert flat_from(accuracy) == share


def test_an_interrupted_run_ends_in_the_same_files(case, whole, tmp_path, monkeypatch):
    plain, calls = compare.prune_task, []

    def stops(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:  # in the second seed
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(compare, "prune_task", stops)
    with pytest.raises(KeyboardInterrupt):
        data_share("small", tmp_path, lambda: case, PLAN)
    data_share("small", tmp_path, lambda: case, PLAN)
    assert len(calls) == 6 + 1
    folder, _ = whole
    for name in ("table.md", "rescaled-corrected.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    one, two = (pd.read_csv(path / "table.csv") for path in (tmp_path, folder))
    assert one.drop(columns="seconds").equals(two.drop(columns="seconds"))


def test_a_cell_without_certificate_fails_the_command(case, tmp_path, monkeypatch):
    plain = compare._row
    monkeypatch.setattr(compare, "_row", lambda result: {**plain(result), "certified_rows": 3})
    with pytest.raises(CertificateError, match=r"share 0\.25, seed 0; "):
        data_share("small", tmp_path, lambda: case, PLAN)
