"""The list of experiments: every command, its sentence, and times that manifests hold."""

import json

import pytest
from typer.testing import CliRunner

from experiments.__main__ import app
from experiments.measured_times import measured_times


def manifest(folder, command, **record):
    folder.mkdir(parents=True)
    record = {"command": command, "settings": {}, "files": [], "versions": {}, **record}
    (folder / "manifest.json").write_text(json.dumps(record))


@pytest.fixture
def results(tmp_path):
    run = "python -m experiments"
    manifest(tmp_path / "a", f"{run} gates --full", wall_seconds=100.0)
    manifest(tmp_path / "b" / "c", f"{run} gates --network x --full --keep-going", wall_seconds=30)
    manifest(tmp_path / "d", f"{run} gates", wall_seconds=7.0)
    manifest(tmp_path / "e", f"{run} resnet20 --images 5", wall_seconds=1.0)  # another run
    manifest(tmp_path / "f", f"{run} table2 --full")  # says nothing of its time
    manifest(tmp_path / "h", f"{run} figure4", seconds={"train": 61.0}, files=["table.csv"])
    (tmp_path / "h" / "table.csv").write_text("kappa,seconds\n0.1,60\n0.5,70\n")
    manifest(tmp_path / "g", "python -m cimf demo", wall_seconds=3.0)
    return tmp_path


def test_times_are_summed_over_the_folders_of_a_command(results):
    assert measured_times(results) == {
        "gates --full": (130.0, True), "gates": (7.0, True), "figure4": (191.0, False),
    }  # fmt: skip
    manifest(results / "i", "python -m experiments figure4", wall_seconds=9)
    assert measured_times(results)["figure4"] == (200.0, False)


def test_every_experiment_is_listed_with_its_time(results):
    shown = CliRunner().invoke(app, ["list", "--results", str(results)])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert "gates (quick 7 s, full 2 min 10 s)" in lines
    assert "resnet20 (not measured)" in lines
    assert "figure4 (quick at least 3 min 11 s, full not measured)" in lines
    assert "table2 (quick not measured, full not measured)" in lines
    names = {command.name for command in app.registered_commands} - {"list"}
    assert names == {line.split(" (")[0] for line in lines[::2]}
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])


def test_a_damaged_manifest_is_named_in_one_line(results):
    (results / "a" / "manifest.json").write_text("{")
    shown = CliRunner().invoke(app, ["list", "--results", str(results)])
    assert shown.exit_code == 1
    assert "manifest.json cannot be read" in shown.output
