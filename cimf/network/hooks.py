"""Hooks that go again, whatever happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Run the block and take the hooks away, also after an error."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
