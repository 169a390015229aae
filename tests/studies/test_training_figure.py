"""The figure of a training run shows what was measured."""

import pytest
from matplotlib.figure import Figure

from cimf.studies.training_figure import plot_training
from cimf.train.training_report import Epoch, TrainingReport


def report(**measures):
    epochs = tuple(
        Epoch(k, 3, 1.0 / k, 0.1, 0.0, {name: value * k for name, value in measures.items()})
        for k in (1, 2, 3)
    )
    return TrainingReport(epochs, 10, True, "cpu", {})


@pytest.mark.parametrize(
    ("measures", "panels"),
    [
        ({}, ["loss"]),
        ({"density": 0.3, "median density": 0.2}, ["loss", "density"]),
        ({"density of 0": 0.3, "multiplier of 0": 2.0}, ["loss", "density", "multiplier"]),
    ],
)
def test_panels_of_what_was_measured(tmp_path, monkeypatch, measures, panels):
    drawn = []
    plain = Figure.savefig

    def save(figure, *arguments, **options):
        drawn.append(figure)
        return plain(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    runs = {"a": report(**measures), "b": report(**measures)}
    plot_training(tmp_path / "run.png", "two runs", runs, target=0.1)
    assert (tmp_path / "run.png").stat().st_size > 1000
    (figure,) = drawn
    assert [axes.get_ylabel() for axes in figure.axes] == panels
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}
    assert lines == {f"{name}: loss": [1.0, 1 / 2, 1 / 3] for name in "ab"}
    if len(panels) > 1:
        labels = [line.get_label() for line in figure.axes[1].get_lines()]
        assert labels[-1] == "target"
        assert len(labels) == 1 + 2 * sum("density" in name for name in measures)
