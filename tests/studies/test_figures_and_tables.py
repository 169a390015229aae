from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cimf.runs.companions import latex
from cimf.runs.numbers import shortest
from cimf.studies.line_figure import draw_lines, plot_lines
from cimf.studies.sweep_figure import draw_sweep, line_style, plot_sweep
from cimf.studies.sweep_tables import FULL, PAPER_TABLE_1, TERMINAL, markdown, render


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "design": "full",
            "rescale": [True, True, False],
            "kappa": [0.1, 0.99, 0.3],
            "accuracy": [0.81, 0.9, 0.1],
            "accuracy_with_inputs": [0.85, np.nan, 0.85],
            "dense_accuracy": 0.91,
            "control_accuracy": 0.8,
            "sparsity_network_weights": [0.95, -0.5, 0.99],
            "sparsity_admissible": [0.99, 0.5, 0.999],
            "nonzero_weights": [5000, 150000, 1000],
            "emptied_rows": 0,
            "state_error": 0.25,
            "output_error": [0.3, 0.0, np.inf],
            "evaluated": 1000,
            "converged": [1000, 1000, 12],
            "rows": 112,
            "certified": [112, 112, 111],
            "worst_gap": [1e-12, 2e-10, 3e-5],
        }
    )


def dark(path):
    with Image.open(path) as image:
        return float((np.asarray(image.convert("L")) < 160).mean())


def test_what_failed_stands_in_the_table(table):
    heading, rows = render(table, TERMINAL)
    cells = dict(zip(heading, rows[2], strict=True))
    assert cells["converged"] == "12 of 1,000"
    assert cells["certified"] == "111 of 112"
    assert cells["worst gap"] == "3e-05"
    assert dict(zip(heading, rows[1], strict=True))["sparsity %"] == "-50.0"
    assert dict(zip(heading, rows[0], strict=True))["certified"] == "all"


def test_the_papers_values_stand_only_at_its_own_kappas(table):
    heading, rows = render(table, FULL, paper=True)
    paper = [row[heading.index("paper CIFAR-100")] for row in rows]
    assert paper == ["87.1 / 93.8", "91.0 / 90.1", ""]
    assert {kappa: sum(values.values(), ()) for kappa, values in PAPER_TABLE_1.items()} == {
        0.005: (76.7, 98.1, 60.9, 97.8), 0.01: (79.1, 96.4, 74.2, 95.9),
        0.05: (84.2, 95.2, 80.2, 95.3), 0.1: (87.1, 93.8, 87.2, 93.3),
        0.5: (89.0, 93.3, 88.8, 90.7), 0.99: (91.0, 90.1, 90.6, 87.4),
    }  # fmt: skip


def test_a_number_that_is_missing_is_an_empty_cell(table):
    heading, rows = render(table, FULL)
    place = heading.index("with inputs %")
    assert [row[place] for row in rows] == ["85.0", "", "85.0"]


def test_columns_that_are_empty_everywhere_are_left_out(table):
    heading, _ = render(table.assign(accuracy=np.nan, accuracy_with_inputs=None), FULL)
    assert "accuracy %" not in heading
    assert "with inputs %" not in heading
    assert "output error" in heading


def test_markdown_and_latex_are_well_formed(table):
    heading, rows = render(table, FULL, paper=True)
    lines = markdown(heading, rows).splitlines()
    assert {line.count("|") for line in lines} == {len(heading) + 1}
    body = [line for line in latex(heading, rows).splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(heading) - 1}
    assert r"accuracy \%" in body[0]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"accuracy": 1.0, "dense_accuracy": 1.0},
        {"accuracy": 0.0},
        {"accuracy": np.nan},
        {"nonzero_weights": 0},
        {"sparsity_network_weights": -99.0},
    ],
)
def test_a_figure_for_every_table(table, tmp_path, change):
    for part in (table[:2], table[:1]):
        plot_sweep(part.assign(**change), tmp_path / "a.png", "title")
        assert 0.002 < dark(tmp_path / "a.png") < 0.5


def test_the_figure_shows_the_models(table, tmp_path):
    plot_sweep(table[:2], tmp_path / "with.png", "title")
    plot_sweep(table[:2].assign(nonzero_weights=0), tmp_path / "without.png", "title")
    assert dark(tmp_path / "with.png") > dark(tmp_path / "without.png")


@pytest.mark.parametrize(
    ("accuracy", "label"),
    [(0.9, "test accuracy (%), logarithmic in the error"), (np.nan, "relative output error")],
)
def test_the_axes_say_what_they_are(table, tmp_path, monkeypatch, accuracy, label):
    labels = []
    save = Figure.savefig

    def spy(figure, *args, **kwargs):
        labels.extend((figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()))
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    plot_sweep(table[:2].assign(accuracy=accuracy), tmp_path / "a.png", "title")
    assert "logarithmic in the weights kept" in labels[0]
    assert labels[1] == label


def test_close_kappas_are_told_apart(table):
    heading, rows = render(table[:2].assign(kappa=[0.1234567, 0.12345671]), TERMINAL)
    assert [row[heading.index("kappa")] for row in rows] == ["0.1234567", "0.12345671"]
    assert [shortest(value) for value in (1.0, 1e-5, np.float64(0.5))] == ["1", "1e-05", "0.5"]


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown(["variant", "a"], [["1/|w|", "2"]]).splitlines()[2] == r"| 1/\|w\| | 2 |"


def drawn(monkeypatch, draw):
    """Return the figure that `draw` saves."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    draw()
    return figures[-1]


@pytest.mark.parametrize(
    ("accuracy", "sparsity"),
    [([0.893, 0.896], [0.912, 0.931]), ([0.9991, 0.9995], [0.1, 0.2]), ([0.5, 0.9], [-0.4, 0.99])],
)
def test_every_axis_has_at_least_two_ticks_that_are_right(
    table, tmp_path, monkeypatch, accuracy, sparsity
):
    part = table[:2].assign(
        accuracy=accuracy, sparsity_network_weights=sparsity, dense_accuracy=accuracy[1],
        control_accuracy=accuracy[0],
    )  # fmt: skip
    axes = drawn(monkeypatch, lambda: plot_sweep(part, tmp_path / "a.png", "title")).axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        places = axis.get_ticklocs()
        assert 2 <= len(places) <= 12
        assert all(low <= place <= high for place in places)
        labels = [float(label.get_text()) for label in axis.get_ticklabels()]
        np.testing.assert_allclose(labels, 100 * (1 - places), rtol=1e-3, atol=1e-9)


def test_lines_that_coincide_leave_each_other_visible(table, tmp_path, monkeypatch):
    """Four equal configurations: each has pixels of its own colour in the figure."""
    parts = [
        table[:2].assign(design=design, rescale=rescale)
        for design in ("full", "causal")
        for rescale in (True, False)
    ]
    path = tmp_path / "a.png"
    figure = drawn(monkeypatch, lambda: plot_sweep(pd.concat(parts), path, "t"))
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2][:4]
    figure.axes[0].get_legend().remove()
    figure.savefig(path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for line in lines:
        colour = [int(line.get_color()[k : k + 2], 16) for k in (1, 3, 5)]
        assert (np.abs(pixels - colour).max(axis=1) < 12).sum() > 40, line.get_color()


def test_lines_of_accuracies_stand_on_an_axis_of_the_error():
    axes = Figure().add_subplot()
    lines = {"a": ([50.0, 90.0], [80.0, 70.0]), "b": ([40.0, 95.0], [94.0, 60.0])}
    draw_lines(axes, "a title", lines, across="x", up="y", dense=95.0, bold=["b"])
    drawn_ = {line.get_label(): line for line in axes.get_lines()}
    assert list(drawn_) == ["b", "a", "dense network"], "the bold one first, and so broadest"
    assert drawn_["b"].get_linewidth() > drawn_["a"].get_linewidth()
    for name, (x, y) in lines.items():
        assert (list(drawn_[name].get_xdata()), list(drawn_[name].get_ydata())) == (x, y)
    assert list(drawn_["dense network"].get_ydata()) == [95.0, 95.0]
    place = axes.yaxis.get_transform()
    np.testing.assert_allclose(place.transform([0.0, 90.0, 100.0]), -np.log([100.0, 10.0, 1e-2]))
    np.testing.assert_allclose(place.inverted().transform(place.transform([30.0, 99.0])), [30, 99])
    low, high = axes.get_ylim()
    assert low < 60.0
    assert 95.0 < high <= 97.5, "half the error of the dense network is room enough"
    assert set(axes.get_yticks()) == {t for t in (0, 30, 50, 70, 80, 85, 90, 95) if t >= low}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("x", "y", "a title")


def test_lines_across_sample_sizes_and_names():
    axes = Figure().add_subplot()
    lines = {"a": ([100, 2000], [1.0, 2.0]), "b": ([100, 500], [3.0, 4.0])}
    draw_lines(axes, "t", lines, across="x", up="y", logarithmic=True)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "2,000", "500"]
    assert list(axes.get_xticks()) == [100, 2000, 500]
    assert len(axes.get_xticks(minor=True)) == 0
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {0.0}
    axes = Figure().add_subplot()
    draw_lines(axes, "t", {"a": (["first", "second"], [1.0, 2.0])}, across="", up="y")
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90.0}
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert len(axes.get_lines()) == 1, "no dense network"


def test_a_figure_of_lines_has_its_legend_beside_it(tmp_path, monkeypatch):
    lines = {"a": ([50.0, 90.0], [80.0, 70.0])}
    draw = lambda: plot_lines(tmp_path / "a.png", "t", lines, across="x", up="y")  # noqa: E731
    figure = drawn(monkeypatch, draw)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a"]
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert "Software" not in image.info, "the same bytes with any version"


def test_the_models_stand_where_their_numbers_say(table):
    axes = Figure().add_subplot()
    draw_sweep(axes, table, "a title")
    first, second, dense, control = axes.get_lines()
    assert (first.get_label(), second.get_label()) == (
        "full, states rescaled", "full, states as captured",
    )  # fmt: skip
    np.testing.assert_allclose(first.get_xydata(), [[0.05, 0.19], [1.5, 0.1]])
    np.testing.assert_allclose(second.get_xydata(), [[0.01, 0.9]])
    np.testing.assert_allclose(dense.get_ydata(), [0.09, 0.09])
    np.testing.assert_allclose(control.get_ydata(), [0.2, 0.2])
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        "κ 0.1", "κ 0.99", "dense network, 91.0 %",
        "control: linear map from the input alone, 80.0 %",
    ]  # fmt: skip
    np.testing.assert_allclose([text.xy for text in axes.texts[:2]], first.get_xydata())
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.xaxis_inverted()
    assert axes.yaxis_inverted()
    assert axes.get_title("left") == "a title"
    axes = Figure().add_subplot()
    draw_sweep(axes, table.assign(accuracy=[0.5, np.nan, 0.5])[:2], "t")
    assert len(axes.get_lines()) == 1, "no accuracies, no levels"
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0.3, 0.0])
    assert axes.get_yscale() == "linear"
    assert not axes.yaxis_inverted()


def test_kappas_that_would_stand_on_each_other_are_not_all_named(table):
    many = pd.concat([table[:1]] * 4).assign(
        kappa=[0.1, 0.2, 0.3, 0.4], sparsity_network_weights=[0.9, 0.9001, 0.5, 0.0]
    )
    axes = Figure().add_subplot()
    draw_sweep(axes, many, "t")
    named = [text.get_text() for text in axes.texts if text.get_text().startswith("κ")]
    assert named == ["κ 0.1", "κ 0.3", "κ 0.4"]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_every_line_is_thinner_than_the_one_below(count):
    styles = [line_style(k, count) for k in range(count)]
    for key, sign in (("linewidth", -1), ("markersize", -1), ("zorder", 1)):
        assert all(np.diff([style[key] for style in styles]) * sign > 0), key
    assert all(style["markerfacecolor"] == "none" for style in styles)
    for first, second in pairwise(styles):
        for key in ("color", "marker", "linestyle"):
            assert first[key] != second[key]
