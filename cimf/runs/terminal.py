"""What a person sees while and after a command runs: one-line errors, progress, tables."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.box import SIMPLE_HEAD, Box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cimf.errors import CimfError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# What parameters of the library are called on the command line, where it is not their own name.
_NAMES = {"folder": "out"}
# Seconds between two lines of progress where there is no terminal.
_QUIET = 30.0
# SIMPLE_HEAD for terminals without Unicode: rich would take a box that is wider.
_PLAIN = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)

_INTERRUPTED = "interrupted: nothing was begun yet"


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

    Ctrl-C is one line and exit code 130; a `RunFolder` adds what it keeps and how to go on.

    Errors of any other kind keep their traceback: they are somebody's bug.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: _say(
            "warning: ", "yellow", message
        )
        try:
            yield
        except CimfError as error:
            flags = ", ".join("--" + _NAMES.get(n, n).replace("_", "-") for n in error.options)
            _say("error: ", "bold red", f"{error} ({flags})" if flags else error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            _say("", "", "; ".join(["interrupted", *getattr(stop, "__notes__", [])]))
            raise typer.Exit(130) from None


def _say(label: str, style: str, message: object) -> None:
    err.print(Text.assemble((label, style), str(message)), soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of steps done, of a total that may be unknown.

    Time so far and time left are shown. Where stderr is no terminal, a line at the beginning and
    then at most one in half a minute.
    """
    if not err.is_terminal:
        yield _lines(title, total)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(title: str, total: int | None) -> Callable[[int], None]:
    start = last = time.monotonic()
    of = "" if total is None else f" of {total:,}"
    log(f"{title}: 0{of}")

    def say(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _QUIET:
            last = now
            rest = (now - start) * (total - done) / done if total and 0 < done < total else 0.0
            left = f", about {duration(rest)} left" if rest else ""
            log(f"{title}: {done:,}{of}, {duration(now - start)}{left}")

    return say


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what is being done: a spinner while it is, or one line where there is no terminal."""
    if err.is_terminal:
        with err.status(what):
            yield
    else:
        log(what)
        yield


def duration(seconds: float) -> str:
    """Return seconds in words: "12 s", "3 min 20 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 2:
        return f"{60 * minutes + rest} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def log(line: str) -> None:
    """Say what has just been done where there is no terminal, and so no progress bar."""
    if not err.is_terminal:
        err.print(line, soft_wrap=True, markup=False)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", left: int = 1
) -> None:
    """Print a table, the first `left` columns left-aligned and the others right-aligned.

    Numbers are never broken or left out, headings broken between words only: what does not fit
    beside each other is printed below, every part with the first columns.
    """
    cells = [[name, *(row[k] for row in rows)] for k, name in enumerate(header)]
    whole = [max(map(len, column)) for column in cells]
    least = [max(map(len, [*column[0].split(), *column[1:]])) for column in cells]
    parts: list[list[int]] = [list(range(left))]
    for k in range(left, len(header)):
        if sum(least[j] + 2 for j in [*parts[-1], k]) > out.width and len(parts[-1]) > left:
            parts.append(list(range(left)))
        parts[-1].append(k)
    for part in parts:
        fits = sum(whole[j] + 2 for j in part) <= out.width
        table = Table(
            title=title or None,
            title_justify="left",
            header_style="bold",
            box=_PLAIN if out.options.ascii_only else SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        title = ""
        for k in part:
            # rich would shorten numbers rather than break a heading, were it free to choose.
            width = None if fits or len(part) == left else least[k]
            table.add_column(header[k], justify="left" if k < left else "right", width=width)
        for row in rows:
            table.add_row(*(Text(row[k]) for k in part))
        out.print(table)
