"""The user's own code, named on a command line: functions, methods and options by their names."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from cimf.errors import InputError
from cimf.files import sha256
from cimf.runs.terminal import err


def load_function(target: str) -> Callable[[], Any]:
    """Return the function named by ``module:function``; errors as `load_named`."""
    return load_named(target, "function", callable)[1]


def load_method(target: str) -> tuple[Any, str | None]:
    """Return the `Method` named by ``module:name``, and the SHA-256 of the module's file.

    Raises
    ------
    InputError
        As `load_named`.
    """
    from cimf.methods.base import Method

    return _with_digest(target, "Method", lambda value: isinstance(value, Method))


def load_loss(target: str) -> tuple[Any, str | None]:
    """Return the loss (a `formulations.Loss` or a function) named by ``module:name``, and a digest.

    Raises
    ------
    InputError
        As `load_named`.
    """
    from formulations import Loss

    def fits(value: Any) -> bool:
        return isinstance(value, Loss) or (callable(value) and not inspect.isclass(value))

    return _with_digest(target, "loss", fits)


def _with_digest(target: str, kind: str, fits: Callable[[Any], bool]) -> tuple[Any, str | None]:
    module, value = load_named(target, kind, fits)
    path = inspect.getsourcefile(module)
    return value, sha256(path) if path else None


def load_named(target: str, kind: str, fits: Callable[[Any], bool]) -> tuple[ModuleType, Any]:
    """Return a module, looked up in the current folder first, and what ``module:name`` names in it.

    Parameters
    ----------
    kind : str
        What is looked for, in errors.
    fits : value -> bool
        Whether a value is of that kind.

    Raises
    ------
    InputError
        If the text has another form, or the module or the name does not exist. An error inside
        the module keeps its traceback.
    """
    module_name, separator, name = target.partition(":")
    if not (module_name and separator and name):
        raise InputError(f"{target!r} is not of the form module:{kind.lower()}, e.g. mynet:load")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise InputError(
            f"there is no module {module_name!r} in the current folder or the environment"
            + ("; leave out .py" if module_name.endswith(".py") else "")
        ) from error
    value = getattr(module, name, None)
    if not fits(value):
        known = [key for key, other in vars(module).items() if fits(other)]
        raise InputError(
            f"{module_name} has no {kind} {name!r}; it has {', '.join(known) or 'none'}"
        )
    return module, value


def source_digest(function: Callable[[], Any]) -> str | None:
    """Return the SHA-256 of the file of `function`: an edited one makes another run.

    None where there is no such file, as for a function of Python itself.
    """
    while isinstance(function, functools.partial):
        function = function.func
    named = inspect.isroutine(function) or inspect.isclass(function)
    try:
        path = inspect.getsourcefile(function if named else type(function))
    except (TypeError, OSError):
        return None
    return sha256(path) if path else None


def made(target: str, function: Callable[[], Any], seed: int) -> tuple[Any, ...]:
    """Return what `call_seeded` returns, saying that the user's function runs: it may train."""
    err.print(f"running {target} ...", soft_wrap=True, markup=False)
    return call_seeded(function, seed)


def call_seeded(function: Callable[[], Any], seed: int) -> tuple[Any, ...]:
    """Call `function` with numpy's and torch's global generators seeded; return its 2 or 3 values.

    Raises
    ------
    InputError
        If it returns anything but (net, batches) or (net, batches, test batches).
    """
    import numpy as np
    import torch

    np.random.seed(seed)  # noqa: NPY002 - the user's code may use the global generator
    torch.manual_seed(seed)
    value = function()
    name = getattr(function, "__name__", "the function")
    if not (isinstance(value, tuple) and len(value) in (2, 3)):
        raise InputError(
            f"{name} returned {type(value).__name__}; (net, calibration batches) or "
            "(net, calibration batches, test batches) needed"
        )
    if not isinstance(value[0], torch.nn.Module):
        raise InputError(f"{name} returned {type(value[0]).__name__} first, not a torch.nn.Module")
    return value


def named_value(text: str) -> tuple[str, Any]:
    """Return name and value of "name=value"; the value is a Python literal, else text.

    Raises
    ------
    InputError
        Another form.
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(
            f"{text!r}: NAME=VALUE needed, for example swaps=False", options=["option"]
        )
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value
