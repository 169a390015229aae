"""Dictionaries whose missing keys say which names are known."""

from __future__ import annotations

from typing import NoReturn, TypeVar

from formulations.errors import UnknownNameError

T = TypeVar("T")


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
