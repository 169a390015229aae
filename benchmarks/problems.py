"""Row problems of the benchmark: states of trained networks, and one large synthetic design."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import scipy.signal
from numpy.typing import NDArray

from cimf.statistics import Gram

Array = NDArray[np.float64]

# Radii of every problem; the last regime is 1.5 times the l1 norm of each row's least-squares
# solution, so that the ball is inactive.
KAPPAS: tuple[float | str, ...] = (0.5, 0.99, 5.0, 20.0, "inactive")


@dataclass(frozen=True)
class RowProblems:
    """Rows that share one design, with what every contestant may prepare from it.

    Attributes
    ----------
    name : str
    gram : Gram
        Statistics of the sampled rows.
    design : (m, N)
    targets : (m, r)
    """

    name: str
    gram: Gram
    design: Array
    targets: Array

    @classmethod
    def sample(cls, name: str, design: Array, targets: Array, rows: int) -> RowProblems:
        """Keep `rows` of the targets, evenly spread, the last one included."""
        keep = np.unique(np.linspace(0, targets.shape[1] - 1, rows).round().astype(int))
        targets = np.ascontiguousarray(targets[:, keep])
        return cls(name, Gram.from_arrays(design, targets), design, targets)

    @cached_property
    def reduced(self) -> tuple[Array, Array]:
        """R (N, N) and Q'Z (N, r) of the thin QR factorisation: the same problems, m' = N."""
        if self.design.shape[0] <= self.design.shape[1]:
            return self.design, self.targets
        q, r = np.linalg.qr(self.design)
        return np.asfortranarray(r), q.T @ self.targets

    def radii(self, kappa: float | str) -> Array:
        """Return kappa per row, shape (r,)."""
        if isinstance(kappa, str):
            best = scipy.linalg.lstsq(*self.reduced, cond=1e-12, lapack_driver="gelsy")[0]
            return 1.5 * np.abs(best).sum(axis=0)
        return np.full(self.gram.n_targets, float(kappa))


def correlated(rng: np.random.Generator, samples: int, columns: int, rho: float) -> Array:
    """Draw a design (samples, columns) with correlation rho^|i - j| between columns i and j."""
    noise = rng.standard_normal((samples, columns))
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    return scipy.signal.lfilter([1.0], [1.0, -rho], noise, axis=1)


def _states(
    data_name: str, hidden: tuple[int, ...], samples: int, epochs: int
) -> tuple[Array, ...]:
    """Return design and targets of an MLP with the given hidden sizes, trained with seed 0."""
    from cimf import capture_states
    from cimf.data import datasets
    from cimf.train.supervised import Schedule, batches, trained_mlp

    data = datasets.load(data_name)
    sizes = (data.train_inputs.shape[1], *hidden, data.n_classes)
    schedule = Schedule(epochs=epochs, learning_rate=5e-3, batch_size=256)
    cache = datasets.cache_folder() / "networks"
    net = trained_mlp(sizes, data, seed=0, schedule=schedule, cache=cache)
    given = batches(data.train_inputs[:samples], data.train_labels[:samples])
    states = capture_states(net, given)
    return states.design(), np.ascontiguousarray(states.Z.T)


def fashion_small() -> tuple[Array, ...]:
    """Fashion-MNIST, MLP 784-64-32-16-10, m = 2,000: N = 897."""
    return _states("fashion_mnist", (64, 32, 16), 2000, 5)


def fashion_wide() -> tuple[Array, ...]:
    """Fashion-MNIST, MLP 784-512-256-10, m = 4,000: N = 1,553."""
    return _states("fashion_mnist", (512, 256), 4000, 2)


def digits() -> tuple[Array, ...]:
    """Embedded digits, MLP 64-32-16-10."""
    return _states("digits", (32, 16), 2000, 40)


def synthetic() -> tuple[Array, ...]:
    """6,000 samples of 4,000 correlated columns (0.9^|i - j|), 1 to 400 of them behind a target."""
    rng = np.random.default_rng(0)
    design = correlated(rng, 6000, 4000, 0.9)
    targets = rng.standard_normal((6000, 16))
    for i, size in enumerate(np.geomspace(1, 400, 16).astype(int)):
        on = rng.choice(4000, size, replace=False)
        targets[:, i] += design[:, on] @ rng.standard_normal(size)
    return design, targets


PROBLEMS: dict[str, Callable[[], tuple[Array, ...]]] = {
    "digits": digits,
    "fashion-small": fashion_small,
    "fashion-wide": fashion_wide,
    "synthetic": synthetic,
}
