"""Results in a second format say the same as in the first."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cimf.runs.companions import latex, save_figure, table_beside
from cimf.runs.folder import RunFolder
from cimf.studies.sweep_tables import markdown


def test_a_run_ends_with_both_formats(tmp_path):
    table = pd.DataFrame(
        {"kappa": [0.1, 1e-300, 1 / 3], "name": ["a", "b, c", "d"], "gap": [1e-9, np.nan, 2.0],
         "rows": [1, 2, 3], "met": [True, False, True]}
    )  # fmt: skip
    cells = [["a|b", "1"], ["50 %", ""]]
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    with RunFolder.claim(tmp_path, {}) as run:
        run.write("early.csv", table.to_csv(index=False))
        run.finish(
            {"table.csv": table.to_csv(index=False), "note.md": "no table | here\n",
             "table.md": f"# t\n\n{markdown(['x', 'y_z'], cells)}\nwords\n"},
            {"line.png": lambda path: save_figure(figure, path)},
        )  # fmt: skip
    names = {path.name for path in tmp_path.iterdir()} - {"manifest.json"}
    assert names == {
        "early.csv", "early.parquet", "table.csv", "table.parquet", "note.md", "table.md",
        "table.tex", "line.png", "line.pdf", "report.html",
    }  # fmt: skip
    for name in ("early", "table"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / f"{name}.parquet"), table, check_dtype=False,
            check_exact=True,
        )  # fmt: skip
    assert (tmp_path / "table.tex").read_text() == latex(["x", "y_z"], cells)
    assert (tmp_path / "line.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")


def test_every_table_of_a_text_is_there(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(f"{markdown(['a'], [['1']])}\n## b\n\n{markdown(['b', 'c'], [['2', '3']])}")
    name, text = table_beside(path)
    assert name == "a.tex"
    assert text == latex(["a"], [["1"]]) + "\n" + latex(["b", "c"], [["2", "3"]])


def test_equal_figures_are_equal_bytes(tmp_path):
    for name in ("a.pdf", "b.pdf"):
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        save_figure(figure, tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_without_pyarrow_there_is_no_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr("cimf.runs.companions.find_spec", lambda name: None)
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert table_beside(tmp_path / "a.csv") is None


@pytest.mark.parametrize(("text", "escaped"), [("5 %", r"5 \%"), ("a_b & c#", r"a\_b \& c\#")])
def test_latex_escapes(text, escaped):
    assert f"{escaped} \\\\" in latex(["x"], [[text]])
