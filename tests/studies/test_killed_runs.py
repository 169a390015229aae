"""A run that is killed and begun again ends in the same bytes as one that was left alone.

Every run is a forked process that ends itself by SIGKILL just before its k-th step on the file
system inside the results folder. Clocks stand still, so that files that hold times are compared
too.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SERVER = """
import json, os, signal, sys, time
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

answers, sys.stdout = sys.stdout, open(os.devnull, "w")
time.perf_counter = lambda: 0.0
from cimf.files import write_text
from cimf.runs import folder, provenance
from cimf.runs.folder import RunFolder
from cimf.studies.case import Case
from cimf.studies.kappa_steps import KappaPlan, kappa_steps

provenance.datetime = SimpleNamespace(now=lambda zone: datetime(2026, 1, 1))
provenance.commit = folder.commit = lambda: None

STEPS = {"open", "tempfile.mkstemp", "os.chmod", "os.rename", "os.remove", "os.mkdir"}


def table(place):
    net = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    u, train = (torch.randn(k, 6, generator=generator) for k in (60, 80))
    case = Case(net.eval(), train, u, net(u).argmax(1), {"name": "tiny"})
    plan = KappaPlan(80, (), None, (0.1, 0.99), ("as captured", "rescaled, corrected, polished"))
    kappa_steps("tiny", place, lambda: case, plan)


def points(place):
    def long(checkpoint):
        before = checkpoint.read_text() if checkpoint.exists() else ""
        for k in range(len(before), 3):
            write_text(checkpoint, "x" * (k + 1))
        return checkpoint.read_text()

    def measure(run, key):
        run.write(f"weights-{key}.bin", key)
        return {"key": key, "accuracy": 0.5}

    with RunFolder.claim(place, {"seed": 0}) as run:
        rows = []
        for key in "ab":
            rows.append(run.once(key, lambda: measure(run, key)))
            run.write("table.csv", "key,accuracy\\n" + "".join(f"{r['key']},0.5\\n" for r in rows))
        rows.append(run.resumed("c", long))
        run.finish({"table.md": "# points\\n\\n| a |\\n| --- |\\n| 1 |\\n"},
                   {"a.png": lambda path: write_text(path, "drawn")})


def lived(work, place, last):
    '''Run in a process that kills itself at its step `last`; return its steps, 0 if it died.'''
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        steps = 0

        def count(event, arguments):
            nonlocal steps
            if event in STEPS and str(place) in str(arguments[:2]):
                steps += 1
                if steps == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work(place)
            os.write(writing, str(steps).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said or "killed"


table(Path(sys.argv[1]) / "warm")  # what is compiled and loaded once is there for all
for line in sys.stdin:
    name, place, last = json.loads(line)
    said = lived({"table": table, "points": points}[name], Path(place), last)
    print(said, file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return a function (run, folder, step to be killed at or 0) -> "killed" or steps taken."""
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path_factory.mktemp("server"))], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
    )  # fmt: skip

    def ask(name, place, last=0):
        server.stdin.write(json.dumps([name, str(place), last]) + "\n")
        server.stdin.flush()
        return server.stdout.readline().strip()

    yield ask
    server.communicate()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("chosen", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_killed_at_any_step_the_same_bytes(lived, tmp_path, chosen):
    """At the first ones, and some or all of the others."""
    whole = tmp_path / "whole"
    steps = int(lived("points", whole))
    assert steps > 60
    assert {"report.html", "table.csv", "table.tex", "a.pdf", "weights-a.bin"} < set(files(whole))
    others = range(9, steps + 1)
    for last in [*range(1, 9), *random.Random(0).sample(others, chosen or len(others))]:
        folder = tmp_path / str(last)
        assert lived("points", folder, last) == "killed"
        assert int(lived("points", folder)) > 0, last
        assert files(folder) == files(whole), f"killed at step {last}"


def test_a_table_killed_again_and_again_at_random(lived, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    steps = int(lived("table", whole))
    draw = random.Random(0)
    for _ in range(5):
        assert lived("table", folder, draw.randint(1, steps // 5)) == "killed"
    assert lived("table", folder).isdigit()
    assert files(folder) == files(whole)
