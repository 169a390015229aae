"""The demonstration: what it hands to its two halves, and the figure of both."""

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cimf.data import datasets
from cimf.methods.stacked.path_options import PathOptions
from cimf.studies import demo
from cimf.train.supervised import Schedule

REPORT = {
    "design": "full", "rescale": True, "kappa": 0.5, "accuracy": 0.9, "dense_accuracy": 0.95,
    "control_accuracy": 0.8, "sparsity_network_weights": 0.75, "nonzero_weights": 500,
    "output_error": 0.1,
}  # fmt: skip
TABLE = pd.DataFrame([REPORT])
PRUNED = [
    {"method": method, "sparsity_network_weights": 0.6, "accuracy": 0.85} for method in demo.METHODS
]


@pytest.mark.parametrize("overwrite", [True, False])
def test_both_halves_see_one_network_and_all_options(tmp_path, monkeypatch, overwrite):
    asked, trained = {}, []
    real = demo.trained_mlp

    def train(*arguments, **options):
        trained.append(options)
        return real(*arguments, **options)

    def swept(*arguments, **options):
        asked["sweep"] = (*arguments, options)
        return TABLE

    def compared(*arguments, **options):
        asked["compare"] = (*arguments, options)
        return PRUNED

    monkeypatch.setattr(demo, "SCHEDULE", Schedule(epochs=1, learning_rate=1e-2, batch_size=128))
    monkeypatch.setattr(demo, "trained_mlp", train)
    monkeypatch.setattr(demo, "run_sweep", swept)
    monkeypatch.setattr(demo, "compare", compared)
    options = PathOptions(tol=1e-7)
    assert demo.run(tmp_path, seed=5, overwrite=overwrite, options=options) is TABLE
    data = datasets.digits()
    name, folder, settings, reference, given = asked["sweep"]
    assert (name, folder) == ("digits, MLP 64-32-16-10: implicit models", tmp_path / "kappa")
    assert settings["seed"] == 5
    assert settings["network"]["sizes"] == demo.SIZES
    assert settings["network"]["epochs"] == 1
    assert given.pop("dataset").describe() == data.describe()
    assert given == {
        "configurations": (("full", True), ("full", False)), "paper": True,
        "overwrite": overwrite, "options": options,
    }  # fmt: skip
    title, place, same, load, chosen = asked["compare"]
    assert (title, place) == (
        "digits, MLP 64-32-16-10: the same network, sparse",
        tmp_path / "prune",
    )
    assert same == settings
    assert chosen == {"levels": demo.LEVELS, "methods": demo.METHODS, "overwrite": overwrite}
    assert trained == [], "nothing before a folder is claimed"
    case, captured = load(), reference()
    assert [options["seed"] for options in trained] == [5], "trained once"
    assert torch.equal(case.calibration, torch.from_numpy(data.train_inputs))
    assert torch.equal(case.inputs, torch.from_numpy(data.test_inputs))
    assert torch.equal(case.labels, torch.from_numpy(data.test_labels))
    assert case.data == data.describe()
    assert captured.calibration.n_samples == len(data.train_inputs)
    assert captured.evaluation.n_samples == len(data.test_inputs)
    assert captured.dense_accuracy == pytest.approx(case.dense)


def test_the_figure_shows_both_halves(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    demo._draw(tmp_path / "demo.png", PRUNED, TABLE)
    left, right = figures[0].axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert list(lines) == [*demo.METHODS, "dense network"]
    assert lines["obs"].get_xydata().tolist() == [[60.0, 85.0]]
    assert list(lines["dense network"].get_ydata()) == [95.0, 95.0]
    assert [text.get_text() for text in left.get_legend().get_texts()] == list(lines)
    assert "accuracy" in left.get_ylabel()
    assert left.get_xlabel() == "sparsity of all weights (%)"
    assert left.get_title("left").startswith("cimf.prune: ")
    assert right.get_title("left").startswith("cimf.sparsify: ")
    assert right.get_lines()[0].get_xydata().tolist() == [[0.25, pytest.approx(0.1)]]
    with Image.open(tmp_path / "demo.png") as image:
        assert image.format == "PNG"
        assert "Software" not in image.info, "the same bytes with any version"
