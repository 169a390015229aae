"""Accuracy against the size of perturbations: clean, attacked and certified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from cimf.errors import CertificateError, CimfError, InputError, warn_outside
from cimf.evaluate.attacks import Attack, Ball
from cimf.evaluate.interval_bounds import IntervalBounds
from cimf.methods.stacked.captured import class_labels
from cimf.model import ImplicitModel
from cimf.model.module import ImplicitModule
from cimf.network.batches import iter_batches, run
from cimf.network.copies import plain_copy
from formulations.columns import as_float64

if TYPE_CHECKING:
    import pandas as pd

# A network and the implicit model read from it agree to 1e-10 of the outputs; with reserve.
_AGREEMENT = 1e-9


def robustness(
    model: ImplicitModel | nn.Module,
    inputs: Any,
    labels: Any,
    eps: float | Sequence[float] = (0.0, 0.05, 0.1),
    attack: str = "pgd",
    *,
    steps: int | None = None,
    restarts: int | None = None,
    step_size: float | None = None,
    box: tuple[ArrayLike, ArrayLike] | None = None,
    certify: bool = True,
    seed: int = 0,
    batch_size: int = 250,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Return the accuracy of a classifier on perturbed inputs, against the size of perturbations.

    For every radius, three shares of the samples: those classified correctly (clean), those for
    which the attack found no wrongly classified point (attacked), and those for which there is
    none (certified), within max |u' - u| <= eps and within the box. The true accuracy under the
    worst perturbation lies between the last two.

    Parameters
    ----------
    model : ImplicitModel or nn.Module
        A network is judged in eval mode and in float64; it is not modified.
    inputs : (m, ...)
        Tensor or array, samples first; a bias is no input and is not perturbed.
    labels : (m,)
        Whole numbers.
    eps : sequence of float
        Radii >= 0 in the l-infinity norm, in the units of the inputs.
    attack : {"pgd", "fgsm", "pgd-float32"}
        Projected gradient descent, or one signed step (see `cimf.evaluate.attacks.Attack`).
        Gradients go through the equilibrium by the implicit function theorem.
    steps, restarts, step_size
        Of PGD: gradients of one start, number of starts (the first at the sample, others random),
        length of a step in radii. Default: 10, 1, 2.5 / steps.
    box : (low, high), optional
        Numbers, or arrays of the shape of a sample, that no perturbed input leaves. Default: the
        smallest and the largest number in `inputs`.
    certify : bool
        False leaves `certified` NaN, and saves its time where there are many states.
    seed : int
        Of the random starts.
    batch_size : int
        Samples attacked together; results do not depend on it where there are no random starts.
    progress : callable, optional
        Called with the number of samples done, counted once for every radius.

    Returns
    -------
    DataFrame
        A row per radius, in the order of `eps`: eps; clean, attacked, certified (shares);
        n_samples. Its `attrs` say which attack it was, and how `certified` was proved ("none":
        not). All shares fall as the radius grows: a point found in a small ball counts in the
        larger ones, a proof for a large ball in the smaller ones.

    Raises
    ------
    InputError, UnknownNameError
        Bad arguments: radii below 0 or NaN, labels that are missing, too few or no classes, no
        samples, NaN, inputs outside of the box, an unknown attack; an implicit model that is not
        proved well-posed, or whose activation has no Lipschitz constant.
    CertificateError
        A certified sample was attacked successfully, or an attacked point left its ball: a fault of
        this library.

    Warns
    -----
    UserWarning
        A network that is no implicit model with bounded activations: `certified` is NaN, never a
        number that is not proved.

    Notes
    -----
    The certificate (see `cimf.evaluate.interval_bounds`) takes, sample by sample, the best of the
    closed form |dY| <= S |dU|, of interval equilibria, and of linear bounds through them, of the
    differences of two outputs. It holds in spite of rounding in float64. For a network it is that
    of `ImplicitModel.from_network`, with a reserve of 1e-9 of the outputs, ten times the difference
    at which that conversion is refused; in the network's own float32 arithmetic a margin smaller
    than its rounding may still flip.
    """
    how = Attack.named(attack, steps, restarts, step_size)
    radii = as_float64("eps", np.atleast_1d(np.asarray(eps)), 1)
    if not radii.size or (radii < 0.0).any():
        raise InputError(f"eps must be radii of at least 0, got {radii.tolist()}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number, at least 1, got {batch_size!r}")
    u = torch.cat(list(iter_batches(inputs, torch.float64, "test")))
    low, high = _box(box, u)
    subject = _Subject.of(model, certify, u)
    values = subject.values(u, batch_size)
    classes = class_labels([(u, labels)], values.shape[1], len(u))
    assert classes is not None
    clean = values.argmax(axis=1) == classes
    order = np.argsort(radii)
    balls = {eps: Ball.of(u, eps, low, high) for eps in radii[order].tolist()}

    certified = _certified(subject, balls, classes, values, clean)
    attacked, standing, done = {}, clean, 0
    generator = torch.Generator().manual_seed(seed)
    for radius, ball in balls.items():
        standing = standing.copy()
        for part in np.array_split(np.flatnonzero(standing), -(-standing.sum() // batch_size) or 1):
            index, wanted = torch.from_numpy(part), torch.from_numpy(classes[part])
            if radius > 0 and part.size:
                points = how.worst(subject.outputs, ball.take(index), radius, wanted, generator)
                standing[part] = subject.values(points, batch_size).argmax(axis=1) == classes[part]
        attacked[radius] = standing
        if (certified[radius] & ~standing).any():
            raise CertificateError(
                f"{int((certified[radius] & ~standing).sum())} samples that are certified at "
                f"{radius:g} were attacked successfully: the bounds are wrong"
            )
        done += len(u)
        if progress is not None:
            progress(done)

    import pandas as pd

    proved = subject.bounds is not None
    curve = pd.DataFrame(
        {
            "eps": radii,
            "clean": float(clean.mean()),
            "attacked": [float(attacked[r].mean()) for r in radii.tolist()],
            "certified": [float(certified[r].mean()) if proved else np.nan for r in radii.tolist()],
            "n_samples": len(u),
        }
    )
    curve.attrs["attack"] = str(how)
    curve.attrs["certificate"] = "intervals and linear bounds, float64" if proved else "none"
    return curve


@dataclass(frozen=True)
class _Subject:
    """A classifier: its outputs (k, q) with gradients, the outputs it is judged by, its bounds."""

    outputs: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor], Tensor]
    bounds: IntervalBounds | None
    reserve: float

    @classmethod
    def of(cls, model: Any, certify: bool, u: Tensor) -> _Subject:
        if isinstance(model, ImplicitModule):
            model = ImplicitModel.from_module(model)
        if isinstance(model, ImplicitModel):
            bounds = IntervalBounds(model)  # also where it is not asked for: proves well-posedness
            module = model.to_module()
            return cls(
                lambda u: module(u.flatten(1)),
                lambda u: model.predict(u.flatten(1).T).T,
                bounds if certify else None,
                0.0,
            )
        net = plain_copy(model, torch.float64).eval().requires_grad_(False)
        device = next((p.device for p in net.parameters()), torch.device("cpu"))
        return cls(
            lambda u: net(u.to(device)).to(u.device),
            lambda u: run(net, u.to(device), "test").to(u.device),
            _bounds_of_network(model, tuple(u.shape[1:])) if certify else None,
            _AGREEMENT,
        )

    @torch.no_grad()
    def values(self, u: Tensor, batch_size: int) -> NDArray[np.float64]:
        """Return the outputs (m, q).

        Raises
        ------
        InputError
            Not one vector of at least two finite outputs per sample.
        """
        found = [self.reference(part) for part in u.split(batch_size)]
        if not all(isinstance(y, Tensor) and y.ndim == 2 and y.shape[1] >= 2 for y in found):
            raise InputError(
                "a classifier is needed: one vector of at least two outputs per sample"
            )
        values = torch.cat(found).numpy()
        if not np.isfinite(values).all():
            raise InputError("the outputs on the test samples hold NaN or infinity")
        return values


def _bounds_of_network(net: nn.Module, shape: tuple[int, ...]) -> IntervalBounds | None:
    """Return the bounds of a network's implicit model, or warn that there are none."""
    try:
        return IntervalBounds(ImplicitModel.from_network(net, shape, sparse=True))
    except CimfError as error:
        warn_outside(f"no certificate, `certified` is NaN: {error}")
        return None


def _certified(
    subject: _Subject,
    balls: dict[float, Ball],
    classes: NDArray[np.int64],
    values: NDArray[np.float64],
    clean: NDArray[np.bool_],
) -> dict[float, NDArray[np.bool_]]:
    """Return which samples are certified at every radius, the largest first."""
    out, proved = {}, np.zeros_like(clean)
    for radius, ball in reversed(balls.items()):
        open_ = np.flatnonzero(clean & ~proved)
        if subject.bounds is not None and open_.size:
            low, high = (side[open_].flatten(1).numpy().T for side in (ball.low, ball.high))
            margin = subject.bounds.margins(low, high, classes[open_]).linear.min(axis=0)
            proved = proved.copy()
            proved[open_] = margin > subject.reserve * np.abs(values[open_]).max(axis=1)
        out[radius] = proved
    return out


def _box(box: Any, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two sides of the box, which broadcast with u (m, ...)."""
    if box is None:
        return u.min(), u.max()
    try:
        low, high = box
    except (TypeError, ValueError) as error:
        raise InputError("box must be (low, high)") from error
    low, high = (torch.from_numpy(np.array(side, dtype=np.float64)) for side in (low, high))
    shape = tuple(u.shape[1:])
    if any(side.ndim and tuple(side.shape) != shape for side in (low, high)):
        raise InputError(f"box must hold two numbers, or two arrays of the shape {shape}")
    if not bool(((low <= u) & (u <= high)).all()):
        raise InputError("inputs lie outside of the box, or its low is above its high")
    return low, high
