"""The HTML report of a run and the comparison of several: values by hand, hostile text, errors."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cimf.cli import app
from cimf.errors import InputError, RunError
from cimf.runs.comparison_page import SideBySide, write_comparison
from cimf.runs.folder import MANIFEST, REPORT, UNFINISHED, RunFolder
from cimf.runs.layer_tables import layer_tables, statements
from cimf.runs.report_page import Certificates, write_report
from cimf.runs.run_content import RunContent, Table

RESULTS = Path(__file__).parents[2] / "results"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, tables as text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.text, self.cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = tag

    def handle_endtag(self, tag):
        self.cell = None if tag == self.cell else self.cell

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data
        self.text.append(data)


def page(folder):
    return Page((folder / REPORT).read_text())


def run(folder, settings=None, files=None, **sections):
    RunFolder.claim(folder, settings or {}).finish(
        files or {"table.csv": "method,accuracy\na,0.5\n"}, **sections
    )
    return folder


CELLS = """method,kappa,accuracy,certified_rows,solved_rows,worst_gap
ball,0.1,0.25,7,8,0.000123456
ball,0.5,0.75,8,8,1e-10
obs,0.1,0.5,0,0,
"""


def test_the_page_of_a_run(tmp_path):
    text = (
        "# The title & more\n\nWords.\n\n| kappa | accuracy % |\n| --- | ---: |\n| 0.1 | 25.0 |\n"
        "\n## below\n\n- a\n"
    )
    files = {"table.csv": CELLS, "table.md": text, "a.txt": "proved: nothing\n"}
    folder = run(tmp_path / "run", {"seed": 3, "data": {"name": "d"}, "tests": None}, files,
                 dense_accuracy=0.875, samples={"test": 10})  # fmt: skip
    shown = page(folder)
    titles = {tag for tag, _ in shown.tags}
    assert {"h1", "h2", "h3", "details"} <= titles
    words = " ".join(shown.text)
    assert "The title & more" in words
    facts = dict(
        re.findall(r"<div><dt>(.*)</dt><dd>(.*)</dd></div>", (folder / REPORT).read_text())
    )
    assert facts["dense accuracy"] == "87.50%"
    assert facts["accuracy in table.csv"] == "25.00% to 75.00%"
    assert facts["rows certified"] == "15 of 16"
    assert facts["worst gap"] == "1.2e-04"
    assert facts["seed"] == "3"
    assert facts["data, name"] == "d"
    assert facts["tests"] == "not set"
    assert facts["samples, test"] == "10"
    assert facts["numpy"]
    assert "rows without a certificate in 1 cell(s): ball, 0.1" in words
    assert "1 of 3 cells of table.csv solve no convex row problem" in words
    markdown, certificates, table = shown.tables
    assert markdown == [["kappa", "accuracy %"], ["0.1", "25.0"]]
    assert certificates == [
        ["method", "kappa", "rows", "certified", "worst gap"],
        ["ball", "0.1", "8", "7", "1.2e-04"],
        ["ball", "0.5", "8", "8", "1.0e-10"],
    ]
    assert [row[-1] for row in table] == ["worst_gap", "0.00012346", "1e-10", ""]
    full = [a["title"] for tag, a in shown.tags if tag == "td" and "title" in a]
    assert full == ["0.000123456"], "shortened numbers keep their digits"
    assert json.loads((folder / MANIFEST).read_text())["command"] in words
    links = {a["href"] for tag, a in shown.tags if tag == "a"}
    assert {"table.csv", "table.md", "a.txt"} <= links


def test_a_cell_without_a_gap_is_the_worst():
    heading, *rows = (tuple(line.split(",")) for line in CELLS.splitlines())
    found = Certificates.of(Table("t.csv", heading, tuple(rows)))
    assert (found.worst, found.lacking) == (0.000123456, ["ball, 0.1"])
    for gap in ("", "inf", "nan"):
        planted = ("ball", "0.9", "0.5", "8", "8", gap)
        found = Certificates.of(Table("t.csv", heading, (*rows, planted)))
        assert found.worst == float("inf")
        assert found.lacking == ["ball, 0.1", "ball, 0.9"]
    assert Certificates.of(Table("t.csv", heading, (rows[-1],))).worst is None


def test_hostile_text_is_text(tmp_path):
    quoted = HOSTILE.replace('"', '""')
    files = {
        "table.csv": f'{HOSTILE.replace(chr(34), "")},accuracy\n"{quoted}",0.5\n',
        "table.md": f"# {HOSTILE}\n\n| a |\n| --- |\n| {HOSTILE} |\n\n{HOSTILE}\n\n"
        "[link](javascript:alert(1)) ![image](https://example.org/x.png)\n",
        "layers.txt": f"{HOSTILE}\nlayer  kept  sparsity\n<b>a</b>  1  50%\n{HOSTILE}\n",
        "report.txt": HOSTILE,
        "a.svg": SVG,
        '"><b>.txt': "",
    }
    folder = run(tmp_path / "run", {HOSTILE: {"x": HOSTILE}}, files, **{HOSTILE: HOSTILE})
    other = run(tmp_path / HOSTILE.replace("/", "-"), {HOSTILE: 1}, files)
    write_comparison([folder, other], tmp_path / "both.html")
    for path in (folder / REPORT, tmp_path / "both.html"):
        text = path.read_text()
        shown = Page(text)
        assert [tag for tag, _ in shown.tags].count("script") == 1, "its own"
        assert "alert" not in re.search(r"<script>(.*)</script>", text, re.S)[1]
        images = [a for tag, a in shown.tags if tag == "img"]
        assert len(images) == text.count("<figure>")
        assert all(a["src"].startswith("data:image/svg+xml;base64,") for a in images)
        assert "b" not in {tag for tag, _ in shown.tags}
        assert not [name for _, a in shown.tags for name in a if name.startswith("on")]
        assert {a["href"] for tag, a in shown.tags if tag == "a" and ":" in a["href"]} <= {
            "https://example.org/x.png"
        }, "a click may go there, the page loads nothing"
        policy = [a for tag, a in shown.tags if tag == "meta" and "http-equiv" in a]
        assert policy[0]["content"].startswith("default-src 'none'; img-src data:;")


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in RESULTS.rglob(MANIFEST)), ids=lambda path: path.name
)
def test_every_folder_that_was_committed_has_a_report(folder, tmp_path):
    path = write_report(folder, tmp_path / "page.html")
    text = path.read_text()
    record = json.loads((folder / MANIFEST).read_text())
    assert f'<pre class="command">{record["command"]}</pre>' in text
    assert text.count("<figure>") == len(list(folder.glob("*.png")))
    assert text.count("<table") == text.count("</table>")
    for table in RunContent.read(folder).tables():
        assert f"{table.name}: {len(table.rows)} rows" in text
        cells = Certificates.of(table)
        assert (cells is None) == (table.certified is None)
        if cells is not None:
            assert all(len(labels) <= 4 for labels, *_ in cells.cells), "the key, not measurements"
            assert not cells.lacking


def test_layers_are_read_back_from_the_report_of_pruning(tmp_path):
    import torch
    from torch import nn

    import cimf

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    report = cimf.prune(net.eval(), [torch.randn(40, 5)], sparsity=0.5, support="ball").report
    found = layer_tables(f"a headline\n{report}\n\nnothing here\n")
    assert [table.title for table in found] == ["a headline", "nothing here"]
    assert found[0].heading[:5] == ("layer", "rows", "columns", "kept", "sparsity")
    assert len(found[0].rows) == 2
    for row, layer, share in zip(found[0].rows, report.layers, found[0].shares, strict=True):
        assert row[:4] == (layer.path, str(layer.rows), str(layer.columns), str(layer.kept))
        assert share == pytest.approx(layer.sparsity, abs=5e-4)
    assert found[0].rest == tuple(str(report).splitlines()[3:])
    assert layer_tables(str(report))[0].title == ""


def test_blocks_are_read_back_from_the_report_of_a_sweep():
    text = (RESULTS / "demo/kappa/report.txt").read_text()
    found = layer_tables(text)
    assert len(found) == text.count("kappa 0.") == 12
    assert found[0].title == "kappa 0.005, design full, rescaled states"
    assert found[0].rows[0] == ("3", "29", "16", "0.6144", "0.5534", "")
    assert found[0].rows[2] == ("output", "420", "10", "", "", "")
    assert found[0].shares == (29 / 420, 39 / 420, 1.0)
    assert found[0].rest[0].startswith("certificate")


def test_what_was_proved_is_said_once_with_its_range():
    one = "proved: 7 of 8 rows; excess 3e-29\nnot proved: all\n"
    two = "proved: 8 of 8 rows; excess 1e-30\nother: 1\nnot proved: all\n"
    assert statements([one, two, "certificate   2 of 2 rows, gap 7.8e-12"]) == [
        (2, "proved: 7 to 8 of 8 rows; excess 1e-30 to 3e-29"),
        (2, "not proved: all"),
        (1, "certificate: 2 of 2 rows, gap 7.8e-12"),
    ]


def table(text):
    heading, *rows = (tuple(line.split(",")) for line in text.split(" "))
    return Table("t.csv", heading, tuple(rows))


def test_tables_are_joined_on_the_columns_that_tell_their_rows_apart():
    one = table("method,kappa,gap,accuracy,mine a,1,0,0.5,x a,2,0,0.6,x b,1,0,0.7,x")
    two = table("kappa,method,accuracy,gap 2,a,0.8,0 1,b,0.7,0 3,b,0.9,0")
    joined = SideBySide.of("t.csv", {"one": one, "two": two})
    assert joined.key == ("method", "kappa")
    assert (joined.different, joined.same) == (("accuracy",), ("gap",))
    assert joined.rows == (
        ("a", "1", "0.5", "-", "0"),
        ("a", "2", "0.6", "0.8", "0"),
        ("b", "1", "0.7", "0.7", "0"),
        ("b", "3", "-", "0.9", "0"),
    )
    apart = SideBySide.of("t.csv", {"one": one, "two": table("accuracy 0.5 0.5")})
    assert (apart.key, apart.rows) == ((), ())


def test_the_page_of_several_runs(tmp_path):
    one = run(tmp_path / "one", {"seed": 0, "same": 1}, {"t.csv": CELLS}, dense_accuracy=0.9)
    two = run(tmp_path / "b/two", {"seed": 1, "same": 1, "new": 2},
              {"t.csv": CELLS.replace("0.75", "0.8"), "u.csv": "a\n1\n"})  # fmt: skip
    shown = Page(write_comparison([one, two], tmp_path / "both.html").read_text())
    facts, settings, cells = shown.tables
    assert facts[0] == ["what", "one", "b/two"]
    assert ["dense accuracy", "90.00%", "-"] in facts
    assert ["best accuracy in a table", "75.00%", "80.00%"] in facts
    assert settings == [["setting", "one", "b/two"], ["seed", "0", "1"], ["new", "-", "2"]]
    assert cells[1][:4] == ["method", "kappa", "one", "b/two"]
    assert ["ball", "0.5", "0.75", "0.8"] in [row[:4] for row in cells]
    assert "u.csv of b/two" in " ".join(shown.text)
    assert str(tmp_path) not in " ".join(shown.text), "no paths of the machine"
    for folders in ([one], [one, two, one / "../one"]):
        with pytest.raises(InputError, match="two or more different folders"):
            write_comparison(folders, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_folders_without_a_finished_run_are_refused(tmp_path):
    def refused(folder, message):
        with pytest.raises(RunError, match=message):
            write_report(folder)

    refused(tmp_path / "none", "none is no folder; give the folder of a run")
    refused(tmp_path, r"holds no manifest\.json: it is not the folder of a run")
    run(tmp_path / "inside")
    refused(tmp_path, r"holds no manifest\.json, but runs: give one of .*inside")
    with RunFolder.claim(tmp_path / "half", {}) as half:
        half.once("a", lambda: 1)
    refused(tmp_path / "half", "holds an unfinished run; the command that began it goes on")
    assert not (tmp_path / "half" / REPORT).exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "no valid settings, files, command, versions"),
        ('{"settings": {}, "files": [], "versions": {}}', "it has no valid command"),
        ('{"settings": 1, "files": [], "versions": {}, "command": "c"}', "no valid settings"),
        ('{"settings": {}, "files": [], "versions": {}, "command": "c", "commit": "x"}', "commit"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text, message):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RunError, match=message):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("table.csv", b"a,b\n1,2,3\n", r"table\.csv is no table: its lines differ in length"),
        ("table.csv", b"", r"table\.csv is no table"),
        ("table.md", b"\xff", r"table\.md is no text"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, data, message):
    folder = run(tmp_path / "run", files={"table.csv": "a\n1\n", "table.md": "# a\n"})
    (folder / name).write_bytes(data)
    with pytest.raises(RunError, match=message):
        write_report(folder)


def test_what_a_reader_must_know_is_said(tmp_path):
    folder = run(tmp_path / "run", files={"table.csv": CELLS, "a.txt": "a"})
    (folder / "a.txt").unlink()
    record = json.loads((folder / MANIFEST).read_text())
    record |= {"commit": {"id": "x", "modified": True}, "points_of_other_commits": {"a": {}}}
    (folder / MANIFEST).write_text(json.dumps(record))
    (folder / UNFINISHED).write_text("{}")
    words = " ".join(Page(write_report(folder).read_text()).text)
    for part in ("the sources were modified", "1 point(s) were measured at another commit",
                 "not there: a.txt", "a newer run in this folder is unfinished"):  # fmt: skip
        assert part in words


def test_seconds_of_older_manifests_are_a_lower_bound(tmp_path):
    folder = run(tmp_path / "run", files={"table.csv": "a,seconds\nx,60\ny,70.5\n"})
    assert RunContent.read(folder).spent().whole
    record = json.loads((folder / MANIFEST).read_text())
    del record["wall_seconds"]
    for steps, total in (({"train": 30.0, "solve": 0.5}, 161.0), (30, 160.5), (None, 130.5)):
        (folder / MANIFEST).write_text(json.dumps({**record, "seconds": steps}))
        assert RunContent.read(folder).spent() == (total, False)
    assert "at least 2 min 10 s" in write_report(folder).read_text()
    (folder / "table.csv").write_text("a\n1\n")
    assert RunContent.read(folder).spent() is None


def test_the_command_writes_a_page(tmp_path):
    def command(*arguments):
        return CliRunner().invoke(app, ["report", *map(str, arguments)])

    one, two = run(tmp_path / "one"), run(tmp_path / "two", {"seed": 1})
    (one / REPORT).unlink()
    assert command(one).exit_code == 0
    assert page(one).tables
    assert command(one, "--output", tmp_path / "x/page.html").exit_code == 0
    assert (tmp_path / "x/page.html").read_bytes() == (one / REPORT).read_bytes()
    assert command(one, two, "--output", tmp_path / "both.html").exit_code == 0
    refused = command(one, two)
    assert (refused.exit_code, "--output" in refused.output) == (1, True)
    refused = command(tmp_path / "none")
    assert (refused.exit_code, "error: " in refused.output) == (1, True)
