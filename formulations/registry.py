"""Missing keys of dictionaries, and unknown keywords, are answered by the names that are known."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, NoReturn, ParamSpec, TypeVar

from formulations.errors import UnknownNameError

T = TypeVar("T")
S = TypeVar("S")
P = ParamSpec("P")


class Registry(dict[str, T]):
    """Name -> class. A name that is not there raises `UnknownNameError` with the known names.

    Parameters
    ----------
    kind : str
        What the names stand for, in the message: "loss", "formulation", ...
    entries : dict
    """

    def __init__(self, kind: str, entries: dict[str, T]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __repr__(self) -> str:
        return f"{self.kind}s: {', '.join(sorted(self))}"

    def __missing__(self, name: object) -> NoReturn:
        raise UnknownNameError(self.kind, name, self)


def known_names(
    init: Callable[Concatenate[S, P], None],
) -> Callable[Concatenate[S, P], None]:
    """Let a class answer a keyword that it does not take by `UnknownNameError`."""
    names = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def checked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in names:
                raise UnknownNameError(f"argument of {type(self).__name__}", name, names)
        init(self, *args, **kwargs)

    return checked
