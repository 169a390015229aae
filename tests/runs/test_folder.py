import json
import os
import subprocess
import sys

import pytest

from cimf.errors import RunError
from cimf.files import write_text
from cimf.runs.folder import MANIFEST, REPORT, UNFINISHED, RunFolder


def finished(path, settings, files):
    RunFolder.claim(path, settings).finish(files, note=1)
    return path


def test_the_same_run_may_be_refreshed(tmp_path):
    folder = finished(tmp_path / "run", {"seed": 0}, {"a.txt": "old", "b.txt": "old"})
    RunFolder.claim(folder, {"seed": 0}).finish({"a.txt": "new"})
    assert (folder / "a.txt").read_text() == "new"
    assert not (folder / "b.txt").exists(), "a file of the run that stood here before is left"
    assert json.loads((folder / MANIFEST).read_text())["files"] == ["a.txt", REPORT]


def test_another_run_is_refused_by_name_of_what_differs(tmp_path):
    folder = finished(tmp_path / "run", {"seed": 0, "kappas": (0.1,)}, {"a.txt": "old"})
    with pytest.raises(RunError, match="other seed") as caught:
        RunFolder.claim(folder, {"seed": 1, "kappas": (0.1,)})
    assert caught.value.options == ("folder", "overwrite")
    assert (folder / "a.txt").read_text() == "old"
    RunFolder.claim(folder, {"seed": 1}, overwrite=True).finish({"c.txt": "new"})
    assert sorted(path.name for path in folder.iterdir()) == ["c.txt", MANIFEST, REPORT]


def test_files_of_unknown_origin_are_refused_and_never_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds files but no manifest"):
        RunFolder.claim(tmp_path, {})
    RunFolder.claim(tmp_path, {}, overwrite=True).finish({"a.txt": ""})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": "x"}', '"text"'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(RunError, match="cannot be read"):
        RunFolder.claim(tmp_path, {})
    RunFolder.claim(tmp_path, {}, overwrite=True)


def test_a_manifest_cannot_name_files_outside_the_folder(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("keep")
    folder = finished(tmp_path / "run", {}, {"a.txt": ""})
    record = json.loads((folder / MANIFEST).read_text())
    record["files"] = ["../outside.txt"]
    (folder / MANIFEST).write_text(json.dumps(record))
    RunFolder.claim(folder, {}).finish({"a.txt": ""})
    assert outside.read_text() == "keep"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.claim(tmp_path / "run", {})


def test_nothing_is_written_before_the_end(tmp_path):
    with RunFolder.claim(tmp_path / "results" / "run", {}):
        assert (tmp_path / "results" / "run").is_dir(), "locked"
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("/proc/nothing/here", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=r"cannot be written .*another folder"):
            RunFolder.claim(path, {})
        with pytest.raises(RunError, match="cannot be written"):
            write_text(f"{path}/a.txt", "text")


def points(path, settings, keys, **options):
    """Measure points; return their values and which of them were measured now."""
    measured = []

    def work(key):
        measured.append(key)
        if key == "killed":
            raise KeyboardInterrupt
        return {"value": len(key), "none": float("nan")}

    with RunFolder.claim(path, settings, **options) as run:
        try:
            values = [run.once(key, lambda key=key: work(key)) for key in keys]
        except KeyboardInterrupt:
            return None, measured
        run.finish({"a.txt": ""})
    return values, measured


def test_an_interrupted_run_continues_where_it_stopped(tmp_path):
    folder = tmp_path / "run"
    assert points(folder, {"seed": 0}, ["a", "bb", "killed"]) == (None, ["a", "bb", "killed"])
    values, measured = points(folder, {"seed": 0}, ["a", "bb", "ccc"])
    assert measured == ["ccc"]
    assert values == [{"value": k, "none": None} for k in (1, 2, 3)], "kept or not: the same"
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", MANIFEST, REPORT]
    assert points(folder, {"seed": 0}, ["a"])[1] == ["a"], "a finished run is made again"


def test_points_of_other_settings_are_refused_and_not_used(tmp_path):
    folder = tmp_path / "run"
    points(folder, {"seed": 0}, ["a", "killed"])
    with pytest.raises(RunError, match=r"another run \(other seed\)"):
        points(folder, {"seed": 1}, ["a"])
    assert points(folder, {"seed": 1}, ["a"], overwrite=True)[1] == ["a"]
    points(folder, {"seed": 0}, ["a", "killed"], overwrite=True)
    assert points(folder, {"seed": 0}, ["a", "bb"], overwrite=True)[1] == ["bb"], "the same run"


def test_a_damaged_file_of_points_is_refused(tmp_path):
    (tmp_path / UNFINISHED).write_text('{"fingerprint": ')
    with pytest.raises(RunError, match="cannot be read"):
        RunFolder.claim(tmp_path, {})
    assert points(tmp_path, {}, ["a"], overwrite=True)[1] == ["a"]


def test_the_manifest_names_the_commits_that_measured(tmp_path, monkeypatch):
    old, new = ({"id": name, "modified": False} for name in ("old", "new"))
    monkeypatch.setattr("cimf.runs.folder.commit", lambda: old)
    with RunFolder.claim(tmp_path, {}) as run:
        run.once("a", lambda: 1)
    monkeypatch.setattr("cimf.runs.folder.commit", lambda: new)
    run = RunFolder.claim(tmp_path, {})
    run.once("a", lambda: pytest.fail("measured again"))
    run.once("b", lambda: 2)
    monkeypatch.setattr("cimf.runs.folder.commit", lambda: {"id": "later", "modified": False})
    run.finish({})
    record = json.loads((tmp_path / MANIFEST).read_text())
    assert record["commit"] == new, "that of the beginning"
    assert record["points_of_other_commits"] == {"a": old}


def test_two_runs_at_once_do_not_share_a_folder(tmp_path):
    """Neither two processes nor two runs of one, whatever the settings; a dead one lets go."""
    folder = tmp_path / "run"
    code = f"""
import os, sys
from cimf.runs.folder import RunFolder
run = RunFolder.claim({str(folder)!r}, {{"seed": 1}})
print("claimed", flush=True)
sys.stdin.read()
os._exit(9)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "claimed\n"
    for options in ({}, {"overwrite": True}):
        with pytest.raises(RunError, match=r"another run is writing to .*run; wait") as caught:
            RunFolder.claim(folder, {"seed": 1}, **options)
        assert caught.value.options == ("folder",)
    child.communicate("")
    assert child.returncode == 9
    with RunFolder.claim(folder, {"seed": 2}) as run:
        with pytest.raises(RunError, match="another run is writing"):
            RunFolder.claim(folder, {"seed": 2})
        run.finish({"a.txt": ""})
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", MANIFEST, REPORT]


def test_a_failing_figure_loses_no_number(tmp_path):
    def broken(path):
        raise ZeroDivisionError("the figure")

    finished(tmp_path, {}, {"old.png": "", "table.txt": "old"})
    run = RunFolder.claim(tmp_path, {})
    with pytest.raises(ZeroDivisionError):
        run.finish({"table.txt": "new"}, {"a.png": lambda path: path.touch(), "b.png": broken})
    names = ["a.pdf", "a.png", REPORT, "table.txt"]
    assert json.loads((tmp_path / MANIFEST).read_text())["files"] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, MANIFEST])
    assert (tmp_path / "table.txt").read_text() == "new"


def test_what_is_written_early_stays_and_the_same_run_may_go_on(tmp_path):
    """The old manifest goes with the first new file, and left files belong to the run."""
    folder = finished(tmp_path / "run", {"seed": 0}, {"table.txt": "old", "b.txt": ""})
    with RunFolder.claim(folder, {"seed": 0}) as run:
        run.write("c.txt", lambda path: write_text(path, "c"))
        run.write("table.txt", "half")
        run.write("table.txt", "more")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["b.txt", "c.txt", "table.txt", UNFINISHED]
    assert (folder / "table.txt").read_text() == "more"
    with pytest.raises(RunError, match="other seed"):
        RunFolder.claim(folder, {"seed": 1})
    RunFolder.claim(folder, {"seed": 0}).finish({"table.txt": "new"})
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, REPORT, "table.txt"]


FULL = """
import resource, sys
import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import save_file
from cimf.errors import RunError
from cimf.files import atomic_path, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # any longer file fails as on a full disk
write_text("first.txt", "kept")
noise = np.random.default_rng(0).random((200, 200))
figure = Figure()
figure.add_subplot().imshow(noise)
for write in (
    lambda path: path.write_text("x" * 5000),
    lambda path: save_file({"a": noise}, path),
    lambda path: figure.savefig(path, format="png"),
):
    try:
        with atomic_path("second") as temporary:
            write(temporary)
    except RunError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_is_an_error_of_ours_and_keeps_what_was_written(tmp_path):
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", FULL], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert all(line.startswith("second cannot be written: ") for line in lines)
    assert all("File too large" in line for line in lines), lines
    assert [path.name for path in tmp_path.iterdir()] == ["first.txt"]


def test_an_interrupt_says_what_is_kept(tmp_path):
    def interrupted(work):
        with RunFolder.claim(tmp_path / "a", {}) as run:
            work(run)
            raise KeyboardInterrupt

    def stopped(work):
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted(work)
        return caught.value.__notes__[0].replace(str(tmp_path), "")

    assert stopped(lambda run: None) == "nothing was written to /a yet"
    written = stopped(lambda run: run.write("b.txt", "text"))
    assert written == "/a keeps b.txt: the same command begins again and replaces them"
    points = stopped(lambda run: run.once("one", lambda: 1))
    assert points == "/a keeps 1 finished point(s): the same command goes on with the others"


def test_work_with_a_checkpoint_of_its_own_goes_on_from_it(tmp_path):
    def interrupted(checkpoint):
        checkpoint.write_text("half")
        checkpoint.with_name(f"{checkpoint.name}.tuned").write_text("more")
        raise KeyboardInterrupt

    settings = {"a": 1}
    with pytest.raises(KeyboardInterrupt), RunFolder.claim(tmp_path / "run", settings) as run:
        run.resumed("long", interrupted)
    with RunFolder.claim(tmp_path / "run", settings) as run:
        assert run.resumed("long", lambda checkpoint: checkpoint.read_text()) == "half"
        assert run.resumed("long", lambda checkpoint: 1 / 0) == "half"
        run.finish({})
    assert {path.name for path in (tmp_path / "run").iterdir()} == {MANIFEST, REPORT}


def test_the_time_of_an_interrupted_run_counts(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cimf.runs.folder.time.perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds
        return 1

    with RunFolder.claim(tmp_path, {}) as run:
        run.once("a", lambda: work(5.0))
    now[0] = 0.0  # another process
    run = RunFolder.claim(tmp_path, {})
    run.once("a", lambda: pytest.fail("measured again"))
    run.once("b", lambda: work(2.0))
    run.finish({})
    assert json.loads((tmp_path / MANIFEST).read_text())["wall_seconds"] == 7.0


def test_interrupted_while_figures_are_drawn_the_run_goes_on_with_its_points(tmp_path):
    def interrupted(path):
        raise KeyboardInterrupt

    def run(draw, measure):
        with RunFolder.claim(tmp_path / "run", {}) as folder:
            folder.once("a", measure)
            folder.finish({"a.txt": "text"}, {"a.png": draw})

    with pytest.raises(KeyboardInterrupt) as caught:
        run(interrupted, lambda: 1)
    assert (
        "keeps 1 finished point(s) and a.txt: the same command goes on"
        in (caught.value.__notes__[0])
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"a.txt", UNFINISHED}
    run(lambda path: write_text(path, "drawn"), lambda: pytest.fail("measured again"))
    assert not (tmp_path / "run" / UNFINISHED).exists()


def test_a_failing_report_loses_no_run(tmp_path, monkeypatch):
    folder = finished(tmp_path / "run", {}, {"a.txt": "old"})
    with monkeypatch.context() as broken:
        broken.setattr("cimf.runs.folder.write_report", lambda _: 1 / 0)
        with pytest.warns(UserWarning, match=r"run has no report\.html, .*ZeroDivisionError"):
            RunFolder.claim(folder, {}).finish({"a.txt": "new"})
    assert json.loads((folder / MANIFEST).read_text())["files"] == ["a.txt"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", MANIFEST], "none of before"

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cimf.runs.folder.write_report", interrupted)
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        RunFolder.claim(folder, {}) as run,
    ):
        run.finish({"a.txt": "newer"})
    assert caught.value.__notes__[0].endswith("run is finished, but its report.html may be missing")
    assert json.loads((folder / MANIFEST).read_text())["files"] == ["a.txt"]


def test_what_a_killed_run_was_writing_goes_and_nothing_else(tmp_path):
    (tmp_path / f".{UNFINISHED}.abcd_123.json").write_text("{")  # killed at its first step
    points(tmp_path, {}, ["a", "killed"])
    halves = [".a.txt.abcd_123.txt", f".{MANIFEST}.abcd_123.json", f".{REPORT}.abcd_123.html"]
    others = [".a.txt.backup", ".thesis.tex.abcd_123.tex", f".{MANIFEST}.abcd_123.json.old"]
    finished(tmp_path, {}, {"a.txt": ""})
    for name in halves + others:
        (tmp_path / name).write_text("")
    with pytest.raises(RunError, match="other seed"):
        RunFolder.claim(tmp_path, {"seed": 1})
    assert {path.name for path in tmp_path.iterdir()} == {
        MANIFEST, REPORT, "a.txt", *halves, *others,
    }, "a refused run touches nothing"  # fmt: skip
    finished(tmp_path, {}, {"a.txt": ""})
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, REPORT, "a.txt", *others}


def test_what_a_finished_point_wrote_is_of_the_run_that_goes_on(tmp_path):
    def measure(run):
        run.write("model.bin", "trained")
        return 1

    with RunFolder.claim(tmp_path / "run", {}) as run:
        run.once("a", lambda: measure(run))
        run.write("table.txt", "of this process only")
    with RunFolder.claim(tmp_path / "run", {}) as run:
        run.once("a", lambda: pytest.fail("measured again"))
        run.finish({"a.txt": ""})
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        MANIFEST, REPORT, "a.txt", "model.bin",
    }  # fmt: skip
    record = json.loads((tmp_path / "run" / MANIFEST).read_text())
    assert record["files"] == ["a.txt", "model.bin", REPORT]
