"""Two classifiers on the same test samples: by how much one is better, and how sure that is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cimf.errors import InputError

# Of the standard normal distribution: 95 % lie within.
_Z = 1.959964


class Paired(NamedTuple):
    """The difference of two accuracies.

    Attributes
    ----------
    difference : float
        A share, the first less the second.
    margin : float
        Half of the 95 % interval; 0 where the two are right on the same samples.
    """

    difference: float
    margin: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.difference) > self.margin

    def __str__(self) -> str:
        star = "*" if self.sure else ""
        return f"{100 * self.difference:+.2f} ± {100 * self.margin:.2f}{star}"


def paired_difference(one: ArrayLike, two: ArrayLike) -> Paired:
    """Return by how much more often `one` is right, with the interval of paired samples.

    With b samples that the first alone gets right and c that the second alone does, of m, the
    difference is (b - c) / m, and m times its standard error sqrt(b + c - (b - c)^2 / m): the
    samples on which both agree say nothing (McNemar 1947). Far narrower than two intervals.

    Parameters
    ----------
    one, two : (m,) bool
        Whether each is right.

    Raises
    ------
    InputError
        No samples, or another number.
    """
    first, second = (np.asarray(given, dtype=bool) for given in (one, two))
    if first.ndim != 1 or not first.size or first.shape != second.shape:
        raise InputError(
            f"two vectors of as many samples needed, got {first.shape}, {second.shape}"
        )
    m, b, c = first.size, int((first & ~second).sum()), int((second & ~first).sum())
    return Paired((b - c) / m, _Z * float(np.sqrt(b + c - (b - c) ** 2 / m)) / m)


def packed(right: ArrayLike) -> str:
    """Return (m,) bool as text, for a file."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpacked(text: str, samples: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return what `packed` was given."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=samples)
    return bits.astype(bool)
