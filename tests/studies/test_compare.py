"""Methods side by side: every number of the results folder against runs by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import RunError
from cimf.methods.by_name import METHODS
from cimf.runs.folder import MANIFEST
from cimf.studies import compare
from cimf.studies.case import Case
from cimf.studies.compare import accuracy_lines

LEVELS, SHOWN = (0.5, 0.3), ("layered", "magnitude-layer")


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    u = torch.randn(230, 6)
    labels = net(u).argmax(1)
    labels[:23] = (labels[:23] + 1) % 4
    return Case(net, torch.randn(70, 6), u, labels, {"name": "made up"})


@pytest.fixture(scope="module")
def compared(case, tmp_path_factory):
    folder, figures = tmp_path_factory.mktemp("compare") / "run", []

    def noted(path, **options):
        figures.append(options)
        path.write_bytes(b"figure")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "plot_lines", noted)
        rows = compare.compare(
            "two methods", folder, {"seed": 3}, lambda: case,
            levels=LEVELS, methods=SHOWN, keep=("2",),
        )  # fmt: skip
    return folder, rows, figures


def by_hand(case, method, level):
    options = compare.FAST if method == "layered" else {**compare.FAST, "keep": ("2",)}
    return cimf.prune(case.network, case.calibration, level, method=method, **options)


def apart(case, level):
    """The difference and its interval, by the formula of McNemar."""
    right = [
        by_hand(case, method, level).network(case.inputs).argmax(1) == case.labels
        for method in ("magnitude-layer", "layered")
    ]
    b, c = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    half = 1.959964 * np.sqrt(b + c - (b - c) ** 2 / 230) / 230
    star = "*" if abs(b - c) / 230 > half else ""
    return f"{100 * (b - c) / 230:+.2f} ± {100 * half:.2f}{star}"


def test_the_trained_network_is_judged_on_every_sample(case):
    """In batches of 100, the last one smaller."""
    assert case.dense == pytest.approx(207 / 230)
    assert torch.equal(case.dense_classes, case.network(case.inputs).argmax(1))


def test_every_row_is_that_of_a_run_by_hand(case, compared):
    _, rows, _ = compared
    assert [(row["method"], row["target"]) for row in rows] == [
        (method, level) for level in LEVELS for method in SHOWN
    ]
    for row in rows:
        result = by_hand(case, row["method"], row["target"])
        classes = result.network(case.inputs).argmax(1)
        assert row["accuracy"] == float((classes == case.labels).double().mean())
        assert row["agreement"] == float((classes == case.dense_classes).double().mean())
        for key, number in result.report.sparsity.items():
            np.testing.assert_equal(row[f"sparsity_{key}"], number)
        kept = sum(int(m.weight.count_nonzero()) for m in result.network if hasattr(m, "weight"))
        assert row["nonzero_weights"] == kept
        assert row["seconds"] > 0
        assert [path for path, _ in row["layers"]] == ["0", "2"]
        for path, share in row["layers"]:
            zeros = result.network.get_submodule(path).weight == 0
            assert share == pytest.approx(float(zeros.double().mean()))
        heading, _, table = row["report"].partition("\n")
        name = f"method {row['method']}, target {row['target']}"
        assert heading == f"{name}: {row['accuracy']:.2%} ({row['seconds']:.0f} s)"
        assert table.splitlines()[0] == str(result.report).splitlines()[0]
    baseline = dict(rows[1]["layers"])
    assert baseline["2"] == 0.0, "kept dense by the baselines"
    assert dict(rows[0]["layers"])["2"] > 0.0, "and not by ours"


def test_the_folder_holds_the_rows(case, compared):
    folder, rows, _ = compared
    table = pd.read_csv(folder / "table.csv")
    assert list(table["accuracy"]) == [row["accuracy"] for row in rows]
    assert {"layers", "report", "right"}.isdisjoint(table.columns)
    assert (folder / "layers.txt").read_text() == "\n\n".join(r["report"] for r in rows) + "\n"
    found = json.loads((folder / MANIFEST).read_text())
    assert found["data"] == {"name": "made up"}
    assert found["dense_accuracy"] == case.dense
    assert found["samples"] == {"calibration": 70, "test": 230}
    assert found["settings"] == {
        "seed": 3, "levels": [0.5, 0.3], "methods": ["layered", "magnitude-layer"], "keep": ["2"],
        "options": {"positions": "128", "precision": "torch.float32"},
    }  # fmt: skip
    accuracy = {(row["method"], row["target"]): f"{100 * row['accuracy']:.2f}" for row in rows}
    assert (folder / "table.md").read_text() == (
        "# two methods\n\nTest accuracy in percent at equal sparsity of all convolution and linear "
        "weights; dense 90.00%. The baselines keep 2 dense.\n\n"
        "| method | 50% | 30% |\n| --- | ---: | ---: |\n"
        + "".join(f"| {m} | {accuracy[m, 0.5]} | {accuracy[m, 0.3]} |\n" for m in SHOWN)
        + "\n\nPoints of accuracy less those of layered, with the 95 % interval of paired test "
        "samples (McNemar); *: it excludes 0.\n\n| method | 50% | 30% |\n| --- | ---: | ---: |\n"
        f"| magnitude-layer | {apart(case, 0.5)} | {apart(case, 0.3)} |\n\n"
        + "".join(f"- {m}: {METHODS[m].source}\n" for m in SHOWN)
    )


def test_the_figures_show_the_rows(compared):
    _, rows, (accuracy, _, layers, _) = compared  # every figure is drawn in two formats
    assert accuracy["dense"] == pytest.approx(90.0)
    assert (accuracy["title"], accuracy["bold"]) == ("two methods", ["layered"])
    assert "sparsity" in accuracy["across"]
    assert "accuracy" in accuracy["up"]
    assert accuracy["lines"] == accuracy_lines(SHOWN, rows)
    for method, (across, up) in accuracy["lines"].items():
        own = [row for row in rows if row["method"] == method]
        assert across == [100 * row["sparsity_network_weights"] for row in own]
        assert up == [100 * row["accuracy"] for row in own]
    assert layers["title"] == "two methods: layered"
    assert layers["lines"] == {
        f"{row['target']:.0%} in all": (["0", "2"], [100 * share for _, share in row["layers"]])
        for row in rows[::2]
    }
    assert set(compare._figures("n", ["magnitude-layer"], rows, 0.9)) == {"accuracy.png"}


def test_another_comparison_does_not_take_the_folder(case, compared):
    folder, _, _ = compared
    for changed, name in (
        ({"levels": (0.5,)}, "levels"),
        ({"methods": ("layered",)}, "methods"),
        ({"keep": ()}, "keep"),
    ):
        options = {"levels": LEVELS, "methods": SHOWN, "keep": ("2",), **changed}
        with pytest.raises(RunError, match=rf"\(other {name}\)"):
            compare.compare("n", folder, {"seed": 3}, lambda: pytest.fail("loaded"), **options)
    with pytest.raises(RunError, match=r"\(other seed\)"):
        compare.compare(
            "n", folder, {"seed": 4}, lambda: pytest.fail("loaded"),
            levels=LEVELS, methods=SHOWN, keep=("2",),
        )  # fmt: skip
