"""N:M patterns: of every M consecutive inputs of a row at most N are read.

A linear layer counts along its input features. A convolution counts along its input channels, at
each place of the kernel by itself: the layout (out, kernel, in) in which sparse tensor cores read
a convolution as a product of matrices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cimf.errors import InputError
from cimf.methods.layered.allocation import Counts
from cimf.methods.layered.elimination import Groups
from cimf.network.layers import Layer


@dataclass(frozen=True)
class Pattern:
    """N of every M.

    Attributes
    ----------
    kept, of : int
        N and M.
    """

    kept: int
    of: int

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"

    @classmethod
    def parse(cls, text: Any) -> Pattern:
        """Return the pattern that is written "N:M".

        Raises
        ------
        InputError
            It is not, or 1 <= N <= M does not hold.
        """
        found = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text) if isinstance(text, str) else None
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(
                f'unknown structure {text!r}: a pattern "N:M" with 1 <= N <= M, "2:4" say, or, '
                'for methods that remove channels, "channels"',
            )
        return cls(int(found[1]), int(found[2]))

    def check_target(self, sparsity: float) -> None:
        """Refuse a target that is not the pattern's own 1 - N/M.

        Raises
        ------
        InputError
        """
        own = 1.0 - self.kept / self.of
        if abs(sparsity - own) > 1e-9:
            raise InputError(
                f"the pattern {self} sets the sparsity, {own:g}; the target is {sparsity!r}: leave "
                "it out, or choose another pattern",
                options=["sparsity"],
            )

    def groups(self, layer: Layer) -> Groups | None:
        """Return the groups of a layer's columns; None where M does not divide its inputs."""
        inputs = int(layer.module.weight.shape[1])
        if inputs % self.of:
            return None
        columns = np.arange(layer.n_columns).reshape(inputs // self.of, self.of, -1)
        return Groups(columns.swapaxes(1, 2).reshape(-1, self.of), self.kept)

    def by_layer(self, layers: Sequence[Layer], keep: Sequence[str]) -> dict[str, Groups]:
        """Return the groups of all layers that take the pattern, by path.

        Raises
        ------
        InputError
            There is none.
        """
        found = {
            layer.path: groups
            for layer in layers
            if layer.path not in keep and (groups := self.groups(layer)) is not None
        }
        if not found:
            sizes = ", ".join(
                f"{layer.path} ({layer.module.weight.shape[1]})"
                for layer in layers
                if layer.path not in keep
            )
            raise InputError(
                f"no layer takes the pattern {self}: {self.of} must divide a layer's inputs "
                f"(input channels of a convolution), which are {sizes or 'all kept dense'}",
            )
        return found

    def left_dense(self, layers: Sequence[Layer], keep: Sequence[str]) -> list[str]:
        """Name the layers that stay dense because M does not divide their inputs."""
        left = [layer for layer in layers if layer.path not in keep and not self.groups(layer)]
        if not left:
            return []
        names = ", ".join(
            f"{layer.path or 'the network itself'} ({layer.module.weight.shape[1]} inputs)"
            for layer in left
        )
        weights, total = (sum(layer.n_weights for layer in part) for part in (left, layers))
        return [
            f"{self.of} does not divide the inputs of {names}: without the pattern {self}, "
            f"{weights:,} of {total:,} weights stay dense"
        ]


def pattern_counts(layers: Sequence[Layer], groups: dict[str, Groups]) -> Counts:
    """Return how many weights every row keeps: all where a layer has no groups."""
    counts = []
    for layer in layers:
        found = groups.get(layer.path)
        kept = layer.n_columns if found is None else len(found.members) * found.most
        counts.append(np.full(layer.n_rows, kept))
    return counts
