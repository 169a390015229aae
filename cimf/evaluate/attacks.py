"""Attacks: the inputs of a box around each sample at which a classifier does worst."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cimf.errors import CertificateError, InputError, UnknownNameError

# Of the way across the ball that all steps together may go, as usual for PGD.
_TRAVEL = 2.5
_FLOAT32 = "pgd-float32"


class Ball(NamedTuple):
    """Samples (m, ...), and the box low <= u <= high around each that an attack may use."""

    centre: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, u: Tensor, eps: float, low: Tensor, high: Tensor) -> Ball:
        """Return the l-infinity ball of radius eps around u within low <= u <= high."""
        return cls(u, (u - eps).maximum(low), (u + eps).minimum(high))

    def take(self, index: Tensor) -> Ball:
        """Return the balls of some of the samples."""
        return Ball(self.centre[index], self.low[index], self.high[index])


@dataclass(frozen=True)
class Attack:
    """Signed gradient steps within a ball: FGSM and PGD.

    The loss is log sum_j exp(y_j) - y_c over the classes j other than c: cross-entropy is
    log(1 + exp(loss)), so the signs of its gradient, and so the steps, are the same, but they do
    not vanish where the network is sure of itself.

    Attributes
    ----------
    name : str
        "fgsm": one step of the radius, from the sample. "pgd": projected gradient descent, the
        first start at the sample, others uniform in its ball. "pgd-float32": the same on the
        cross-entropy of outputs in float32, as most published tables have it. It is weaker: where
        the network is sure, 1 - p_c rounds to 0, and with it goes what lowers y_c. For comparison;
        on the MLPs of Fashion-MNIST it leaves 0 to 0.4 points more.
    steps, restarts : int
        Gradients of one start; number of starts.
    step_size : float
        In radii.
    """

    name: str
    steps: int
    restarts: int
    step_size: float

    @classmethod
    def named(
        cls,
        name: str,
        steps: int | None = None,
        restarts: int | None = None,
        step_size: float | None = None,
    ) -> Attack:
        """Return an attack with its defaults: PGD takes 10 steps of 2.5 / steps radii from 1 start.

        Raises
        ------
        UnknownNameError, InputError
            Another name; counts below 1, a step size that is not positive; any of them for FGSM.
        """
        if name == "fgsm":
            if not steps is restarts is step_size is None:
                raise InputError("FGSM is one step of the radius: it takes no options; use 'pgd'")
            return cls(name, 1, 1, 1.0)
        if name not in ("pgd", _FLOAT32):
            raise UnknownNameError("attack", name, ("fgsm", "pgd", _FLOAT32))
        steps, restarts = 10 if steps is None else steps, 1 if restarts is None else restarts
        for what, count in (("steps", steps), ("restarts", restarts)):
            if not isinstance(count, int) or count < 1:
                raise InputError(f"{what} must be a whole number, at least 1, got {count!r}")
        step_size = _TRAVEL / steps if step_size is None else float(step_size)
        if not 0.0 < step_size < float("inf"):
            raise InputError(f"step_size must be positive, in radii, got {step_size}")
        return cls(name, steps, restarts, step_size)

    def __str__(self) -> str:
        if self.name == "fgsm":
            return "FGSM"
        on = " on float32 cross-entropy" if self.name == _FLOAT32 else ""
        return f"PGD-{self.steps}{on}, {self.restarts} start{'s' * (self.restarts > 1)}"

    def worst(
        self,
        outputs: Callable[[Tensor], Tensor],
        ball: Ball,
        eps: float,
        labels: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the points (m, ...) of the ball with the smallest margin that was met.

        Parameters
        ----------
        outputs : (k, ...) -> (k, q)
            Differentiable.
        eps : float
            The radius, in units of which steps are taken.
        labels : (m,)
        generator : torch.Generator
            Of the random starts, on the CPU.

        Raises
        ------
        CertificateError
            A point is outside of its ball.
        """
        worst = ball.centre.clone()
        least = margins(outputs(worst).detach(), labels)
        for restart in range(self.restarts):
            x = ball.centre
            if restart:
                share = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
                x = ball.low + share * (ball.high - ball.low)
            for _ in range(self.steps):
                x = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self._loss(outputs(x), labels), x)
                x = x.detach() + self.step_size * eps * gradient.sign()
                x = x.maximum(ball.low).minimum(ball.high)
                margin = margins(outputs(x).detach(), labels)
                worse = margin < least
                least = torch.where(worse, margin, least)
                worst[worse] = x[worse]
        if not bool(((ball.low <= worst) & (worst <= ball.high)).all()):
            raise CertificateError("an attacked point is outside of its ball")
        return worst

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.name == _FLOAT32:
            return functional.cross_entropy(outputs.float(), labels, reduction="sum")
        return -margins(outputs, labels, soft=True).sum()


def margins(outputs: Tensor, labels: Tensor, *, soft: bool = False) -> Tensor:
    """Return y_c - max y_j over the classes j other than c, (m,); soft: log sum exp for max."""
    own = outputs.gather(1, labels[:, None])[:, 0]
    others = outputs.scatter(1, labels[:, None], -torch.inf)
    return own - (others.logsumexp(1) if soft else others.amax(1))
