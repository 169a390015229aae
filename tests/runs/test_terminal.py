"""What is printed: tables of any width, logs without a terminal, warnings at the caller's line."""

import io
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console

import cimf
from cimf.errors import RunError, warn_outside
from cimf.runs import terminal
from cimf.runs.terminal import duration, log, one_line_errors, print_table, progress_bar

ROOT = Path(__file__).parents[2]
HEADING = [
    "kappa", "accuracy %", "sparsity %", "non-zeros", "output error", "converged", "certified",
    "worst gap",
]  # fmt: skip
ROWS = [
    ["0.005", "91.2", "98.1", "12,345", "0.123", "1,000 of 1,000", "all", "1e-12"],
    ["0.1", "91.5", "88.1", "99,345", "0.023", "12 of 1,000", "111 of 112", "3e-05"],
]


def console(monkeypatch, name, width, encoding="utf-8", **options):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(
        terminal, name, Console(file=stream, width=width, highlight=False, **options)
    )
    return stream


def text(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
def test_no_column_is_lost_at_any_width(monkeypatch, width, encoding):
    stream = console(monkeypatch, "out", width, encoding)
    print_table(HEADING, ROWS, title="a sweep")
    lines = text(stream).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].strip() == "a sweep"
    found = "\n".join(lines)
    for cell in (*ROWS[0], *ROWS[1], *" ".join(HEADING).split()):
        assert cell in found, f"{cell} is cut"
    parts = sum(line.startswith(" 0.005 ") for line in lines)
    assert parts == sum("kappa" in line for line in lines), "every part says which row it is"
    assert (parts == 1) == (width == 120)
    rules = [line.strip() for line in lines if set(line.strip()) in ({"-"}, {"\u2500"})]
    assert len(rules) == parts, "the line under the heading is whole"


def test_a_table_that_fits_stays_in_one_piece_with_its_headings(monkeypatch):
    stream = console(monkeypatch, "out", 96)
    print_table(HEADING, ROWS)
    (heading,) = [line for line in text(stream).splitlines() if "kappa" in line]
    assert heading.split() == " ".join(HEADING).split()


def test_headings_are_bold_where_there_is_a_terminal(monkeypatch):
    stream = console(monkeypatch, "out", 96, force_terminal=True, color_system="standard")
    print_table(HEADING[:2], [row[:2] for row in ROWS])
    heading, *below = [line for line in text(stream).splitlines() if line.strip()]
    assert "\x1b[1m" in heading
    assert not any("\x1b[1m" in line for line in below)


def test_durations_are_read_at_a_glance():
    found = [duration(seconds) for seconds in (0.4, 119.4, 120, 3599, 7500)]
    assert found == ["0 s", "119 s", "2 min 0 s", "59 min 59 s", "2 h 5 min"]


def test_a_run_without_a_terminal_says_what_it_does(monkeypatch):
    stream = console(monkeypatch, "err", 80)
    clock = iter([0.0, 10.0, 31.0, 40.0, 70.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with progress_bar("rows", 4000) as progress:
        for done in (1000, 2000, 3000, 4000):
            progress(done)
    log("level [done]")
    assert text(stream).splitlines() == [
        "rows: 0 of 4,000", "rows: 2,000 of 4,000, 31 s, about 31 s left",
        "rows: 4,000 of 4,000, 70 s", "level [done]",
    ]  # fmt: skip


def test_a_terminal_shows_a_bar_instead(monkeypatch):
    stream = console(monkeypatch, "err", 80, force_terminal=True)
    with progress_bar("rows", 4) as progress:
        progress(4)
    log("level done")
    assert "4/4" in text(stream)
    assert "level done" not in text(stream)


def test_flags_are_added_by_the_command_line_alone(monkeypatch):
    stream = console(monkeypatch, "err", 80)
    with pytest.raises(BaseException, match="1"), one_line_errors():
        raise RunError("is taken", options=["folder", "allow_ill_posed"])
    assert text(stream) == "error: is taken (--out, --allow-ill-posed)\n"


def test_the_library_speaks_no_command_line():
    """Flags are named by cli.py, and by provenance.py to git and in an example of a command."""
    files = [*ROOT.glob("cimf/**/*.py"), *ROOT.glob("formulations/**/*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.name not in ("cli.py", "provenance.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"--[a-z]", line)
    ]
    assert len(files) > 90
    assert found == []


def test_warnings_point_at_the_callers_line():
    """Also through torch's own calls of a module of ours."""

    class Module(torch.nn.Module):
        pass

    def library(code):
        names = {"__name__": "cimf.planted", "warn_outside": warn_outside, "Module": Module}
        exec(code, names)

    library("Module.forward = lambda self, x: warn_outside('module')")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library("warn_outside('plain', FutureWarning)")
        Module()(torch.zeros(1))
        net = torch.nn.Sequential(torch.nn.Linear(9, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        cimf.sparsify(net, [torch.randn(5, 9)])
        cimf.prune(net, [torch.randn(5, 9)], 0.5)
    assert [str(warning.message) for warning in caught[:2]] == ["plain", "module"]
    assert caught[0].category is FutureWarning
    assert len(caught) >= 4
    assert {warning.filename for warning in caught} == {__file__}


def test_every_warning_goes_through_the_one_mechanism():
    found = [
        path.relative_to(ROOT)
        for path in [*ROOT.glob("cimf/**/*.py"), *ROOT.glob("formulations/**/*.py")]
        if "warnings.warn(" in path.read_text(encoding="utf-8")
    ]
    assert found == [Path("cimf/errors.py")]


def test_completion_knows_the_commands():
    """As a shell asks for it, and without loading torch."""
    code = (
        "import sys; from cimf.cli import app\n"
        "try: app(prog_name='cimf')\n"
        "finally: assert not {'torch', 'cvxpy'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={"_CIMF_COMPLETE": "complete_bash", "COMP_WORDS": "cimf s", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["sparsify"], done.stderr
    assert done.stderr == ""
