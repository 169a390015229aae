"""What a person sees while and after a command runs: one-line errors, progress, tables."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cimf.errors import CimfError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


_INTERRUPTED = "interrupted; nothing half-written was left"


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once while libraries are loaded.

    KeyboardInterrupt raised while a C extension starts is not safe: highspy turns it into an
    ImportError, which CVXPY catches, and the run goes on; torch aborts with a stack dump. Nothing
    is written at that time.
    """

    def stop(*_: object) -> None:
        os.write(2, f"{_INTERRUPTED}\n".encode())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored in the background, or somebody's own
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of our own tree into one line and exit code 1, and warnings into one line each.

    Ctrl-C is one line and exit code 130: files are written atomically, a manifest last.

    Errors of any other kind keep their traceback: they are somebody's bug.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: _say(
            "warning: ", "yellow", message
        )
        try:
            yield
        except CimfError as error:
            _say("error: ", "bold red", error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _say("", "", _INTERRUPTED)
            raise typer.Exit(130) from None


def _say(label: str, style: str, message: object) -> None:
    err.print(Text.assemble((label, style), str(message)), soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of steps done; silent where stderr is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", left: int = 1
) -> None:
    """Print a table, the first `left` columns left-aligned and the others right-aligned."""
    table = Table(
        title=title or None,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for k, name in enumerate(header):
        # Numbers are never broken, headings only between words.
        cells = [*name.split(), *(row[k] for row in rows)] if k >= left else []
        width = max(map(len, cells), default=None)
        table.add_column(name, justify="left" if k < left else "right", min_width=width)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)
