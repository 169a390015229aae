"""What the tests of several folders share."""

import sys

import pytest
from typer.testing import CliRunner

from cimf.cli import app


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """Return a function of a user's module, name and source, that returns a command line.

    It runs in an empty folder that holds the module.
    """

    def beside(name, source):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        return lambda *arguments: CliRunner().invoke(app, [str(part) for part in arguments])

    return beside
