import importlib.machinery
import json
import subprocess
import sys
import types
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from cimf.runs import provenance


def test_equal_settings_have_equal_fingerprints_in_any_order():
    first = {"kappas": [0.1, 0.5], "seed": 0, "nested": {"a": 1, "b": None}}
    second = {"nested": {"b": None, "a": 1}, "seed": np.int64(0), "kappas": np.array([0.1, 0.5])}
    assert provenance.fingerprint(first) == provenance.fingerprint(second)


@pytest.mark.parametrize("change", [{"seed": 1}, {"kappas": [0.1]}, {"extra": True}])
def test_any_changed_setting_changes_the_fingerprint(change):
    base = {"kappas": [0.1, 0.5], "seed": 0}
    assert provenance.fingerprint(base) != provenance.fingerprint(base | change)


def test_manifest_is_strict_json_with_the_origin_of_the_run():
    record = provenance.manifest({"seed": 0}, accuracy=np.float32(0.5), gap=float("inf"))
    again = json.loads(provenance.to_json(record))
    assert again["settings"] == {"seed": 0}
    assert again["fingerprint"] == provenance.fingerprint({"seed": 0})
    assert again["gap"] is None
    assert again["accuracy"] == 0.5
    assert again["versions"]["numpy"] == np.__version__
    assert {"command", "commit", "threads", "written"} <= set(again)
    age = datetime.now(UTC) - datetime.fromisoformat(again["written"])
    assert abs(age) < timedelta(minutes=1)
    assert again["written"].endswith("+00:00"), "of no machine's own time zone"


def test_the_command_line_holds_no_machine_path(monkeypatch):
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/home/someone/venv/bin/cimf", "demo", "--seed", "1"])
    assert provenance.command() == "cimf demo --seed 1"
    for spec, name in (("experiments.__main__", "experiments"), ("benchmarks.row_solvers",) * 2):
        main.__spec__ = importlib.machinery.ModuleSpec(spec, None)
        monkeypatch.setattr(sys, "argv", ["/home/someone/x.py", "--rows", "4"])
        assert provenance.command() == f"python -m {name} --rows 4"


def test_no_machine_path_in_the_thread_record():
    assert "/" not in json.dumps(provenance.threads()["libraries"])


def test_commit_is_none_outside_a_repository_that_tracks_the_package(monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "runs" / "provenance.py"))
    assert provenance.commit() is None


def test_the_commit_is_that_of_the_sources_and_says_where_they_changed(monkeypatch, tmp_path):
    def git(*arguments):
        own = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *own, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    for name in ("cimf/runs/provenance.py", "formulations/sets.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "cimf" / "runs" / "provenance.py"))
    head = git("rev-parse", "HEAD")
    assert provenance.commit() == {"id": head, "modified": False}
    (tmp_path / "notes.txt").write_text("new")
    assert provenance.commit() == {"id": head, "modified": False}, "no source"
    (tmp_path / "formulations" / "sets.py").write_text("new")
    assert provenance.commit() == {"id": head, "modified": True}
