"""`python -m cimf`: the same as the command `cimf`."""

from cimf.cli import app

app()
