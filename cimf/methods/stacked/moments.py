"""All that the row problems see of the calibration samples: moments, from one pass or several."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.samples import BLOCK
from cimf.statistics import Gram

# Relative difference of two computations of the same scale: on other machines its last bits differ.
_SAME = 1e-9


@dataclass(frozen=True)
class Moments:
    """Statistics of the states of one network on any number of samples.

    They can be pickled, and those of other samples added, so that each machine runs the network on
    samples of its own; the bits of the sum depend on the parts and their order, not on who took
    them.

    Attributes
    ----------
    gram : Gram
        Of the design (X~^T, U^T), shape (m, N), and the targets Z~^T, shape (m, n), in the units
        x = s x~.
    scale : (n,)
        s.
    network : str
        `Reference.digest` of the network.
    """

    gram: Gram
    scale: NDArray[np.float64]
    network: str

    @classmethod
    def of(cls, reference: Reference, rescale: Rescale = True) -> Moments:
        """Return the moments of the calibration samples, in one pass.

        Parameters
        ----------
        reference : Reference
        rescale : bool or "layers"
            In the units of `reference.scale(rescale)`.

        Raises
        ------
        CaptureError
            As `Reference.scale`.
        """
        layout = reference.calibration.layout
        scale = reference.scale(rescale)
        gram = Gram(layout.n_columns, layout.n_states)
        for states in reference.calibration.chunks():
            states = states.scaled(scale)
            for start in range(0, states.n_samples, BLOCK):
                part = slice(start, start + BLOCK)
                design = np.concatenate([states.X[:, part], states.U[:, part]]).T
                gram.update(design, states.Z[:, part].T)
        return cls(gram, scale, reference.digest)

    def merge(self, other: Moments) -> Moments:
        """Return the sum with the moments of other samples; neither is changed.

        Raises
        ------
        InputError
            They are of another network, or in other units.
        """
        self.check(other.network, other.scale)
        # A new Gram: a result of a cluster whose workers are threads is the worker's own object.
        gram = Gram(self.gram.n_features, self.gram.n_targets).merge(self.gram).merge(other.gram)
        return replace(self, gram=gram)

    def check(self, network: str, scale: NDArray[np.float64]) -> None:
        """Refuse a network (its digest) or units (n,) other than those of these moments.

        Raises
        ------
        InputError
        """
        if network != self.network:
            raise InputError("these moments are of another network")
        if not np.allclose(scale, self.scale, rtol=_SAME, atol=0.0):
            raise InputError("these moments are in other units: rescale must be the same")


def moments(net: Any, batches: Iterable[Any], rescale: Rescale = True) -> Moments:
    """Return the statistics that the row problems of a network need of calibration samples.

    For samples that are spread over machines: each takes the moments of its own, and
    ``functools.reduce(Moments.merge, parts)`` adds them, to be given to `sparsify_path`.

    Parameters
    ----------
    net, batches, rescale
        As `cimf.sparsify`.

    Raises
    ------
    CaptureError, InputError
        As `Reference.capture` and `Reference.scale`.
    """
    return Moments.of(Reference.capture(net, batches), rescale)
