"""The sensitivity objective: states and outputs matched, the answer to moving inputs bounded.

    minimise F(W) = sum_i w_i / 2 ||z_i - A_i X - B_i U||^2 + 1/2 ||Y - C X - D U||^2 + lam T(W)

with T the total sensitivity of `cimf.methods.stacked.gains` and w_i the mean squared effect of
pre-activation i on the outputs, so that to first order all terms are squared errors of the outputs.
T is linear in the magnitudes of one block of rows while the others stand, with slopes l_i r_j: each
block is a weighted l1 problem Q(lam l_i / w_i) that `solve_rows` certifies, and going round the
blocks never makes F worse. With feedback the slopes are those of a linearisation; a step is halved
until F is no worse. A budget on T is met by a search over lam.

Source: State-driven implicit modelling (Tsai, Gao, El Ghaoui) for the convex problems; the
sensitivity bound is that of El Ghaoui et al., Implicit deep learning (2021), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.methods.penalty_search import within
from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.designs import DESIGNS, column_weights
from cimf.methods.stacked.gains import Motion
from cimf.methods.stacked.output_effect import output_effect
from cimf.methods.stacked.output_rows import output_columns
from cimf.methods.stacked.samples import BLOCK
from cimf.methods.stacked.sensitivity_options import SensitivityOptions
from cimf.solve import solve_rows
from cimf.statistics import Gram

Array = NDArray[np.float64]

# Movement that every state and input is given beside what it has, relative to the network's own,
# and the weight at which every state is heard: no weight l_i r_j is then zero, so no column is free
# by accident (a state whose own row is empty, a pixel that never moves).
_FLOOR = 1e-6
# A round over the blocks that gains less than this share of F is the last one. On Fashion-MNIST
# (112 rows) T of the second round differs from that of the fifth by 1 %, the accuracy by 0.1 %.
_GAIN, _ROUNDS = 3e-3, 20
# Halvings of a step before the rows stay as they are.
_HALVINGS = 10
# F is a sum of differences of moments: two values of it are told apart to about this share.
_ROUNDING = 1e-9
# A budget is met within this share of itself from below, or the search ends.
_CLOSE, _STRIDE = 0.05, 3.0


class Fitted(NamedTuple):
    """A model of least sensitivity and how it was found.

    Attributes
    ----------
    W : (n + q, N)
        [[A, B], [C, D]].
    lam : float
        The multiplier of the sensitivity.
    total : float
        T(W), with the floors: never less than the sensitivity itself.
    history : tuple of float
        F after every round.
    slopes : (n + q, N)
        Weights l_i r_j / w_i of the last step of every row; infinity: excluded, 0: free.
    solved : (n + q, N)
        The rows that solve Q(lam) with these weights: those of W, but where a step was shortened.
    """

    W: Array
    lam: float
    total: float
    history: tuple[float, ...]
    slopes: Array
    solved: Array


@dataclass(frozen=True)
class SensitivityProblem:
    """What the objective is made of, for one network and row design.

    Attributes
    ----------
    gram : Gram
        Design (X, U), targets Z, then Y.
    effect : (n + q,)
        w_i, in squared units of the outputs per squared unit of the row; ones for the outputs.
    mask : (n + q, N)
        1: may be used, 0: free (bias), infinity: excluded.
    motion : Motion
    start : (n + q, N)
        The network itself.
    groups : tuple of slice
        Rows that are solved together: blocks from the inputs on, then the outputs.
    """

    gram: Gram
    effect: Array
    mask: Array
    motion: Motion
    start: Array
    groups: tuple[slice, ...]
    options: SensitivityOptions

    @classmethod
    def of(
        cls, reference: Reference, design: str, options: SensitivityOptions
    ) -> SensitivityProblem:
        """Return the problem of a captured network: one pass over its calibration samples.

        Raises
        ------
        CaptureError
            The network's own matrices cannot be read off.
        InputError
            No input moves; a design without feedback for a teacher that has it.
        """
        reference.check_feedback(design, DESIGNS[design].feedback)
        layout, own = reference.calibration.layout, reference.own
        n, q = layout.n_states, layout.n_outputs
        gram, effect, span = Gram(layout.n_columns, n + q), np.zeros(n), None
        for states in reference.calibration.chunks():
            effect += output_effect(own, states)
            for first in range(0, states.n_samples, BLOCK):
                part = slice(first, first + BLOCK)
                design_part = np.concatenate([states.X[:, part], states.U[:, part]]).T
                gram.update(design_part, np.concatenate([states.Z[:, part], states.Y[:, part]]).T)
            ends = np.stack([states.U.min(axis=1), states.U.max(axis=1)])
            span = (
                ends
                if span is None
                else np.stack([np.minimum(span[0], ends[0]), np.maximum(span[1], ends[1])])
            )
        assert span is not None  # no samples: refused by `Samples.capture`
        moves = span[1] - span[0] if options.inputs == "range" else np.ones(layout.n_inputs)
        moves[layout.free_columns[n:]] = 0.0
        if not moves.any():
            raise InputError(
                "no input moves on the calibration samples: give more of them, or inputs='unit'"
            )
        moves = np.maximum(moves, _FLOOR * moves.max(initial=0.0))
        moves[layout.free_columns[n:]] = 0.0
        start = np.vstack([_dense(own.A, own.B), _dense(own.C, own.D)])
        allowed = DESIGNS[design].allowed(layout)
        outputs = np.where(output_columns(layout, options.output_inputs), 1.0, np.inf)
        outputs[layout.free_columns] = 0.0
        mask = np.vstack(
            [
                np.broadcast_to(column_weights(layout, allowed), allowed.shape),
                np.broadcast_to(outputs, (q, layout.n_columns)),
            ]
        )
        mask = np.where(np.isinf(mask) & (start != 0), 1.0, mask)  # F starts from the network
        effect = _with_floor(effect / gram.n_samples, gram.target_sq[:n])
        exact = Motion.of_inputs(own.blocks, moves).gains(start)
        typical = np.maximum(exact.forward[:n], _FLOOR * exact.forward.max(initial=1.0))
        motion = replace(
            Motion.of_inputs(own.blocks, moves),
            states=_FLOOR * typical,
            counted=_FLOOR * np.sqrt(effect),
        )
        blocks = tuple(block.rows for block in reversed(own.blocks))
        return cls(
            gram, np.concatenate([effect, np.ones(q)]), mask, motion, start,
            (*blocks, slice(n, n + q)), options,
        )  # fmt: skip

    def misfit(self, W: Array) -> Array:
        """Return w_i / 2 ||z_i - W_i M||^2 of every row, (n + q,)."""
        square = np.einsum("ij,ij->i", W @ self.gram.gram, W)
        loss = 0.5 * (square + self.gram.target_sq) - np.einsum("ij,ij->i", W, self.gram.corr)
        return self.effect * np.maximum(loss, 0.0)

    def objective(self, W: Array, lam: float) -> float:
        """Return F(W)."""
        return float(self.misfit(W).sum()) + lam * self.motion.gains(W).total

    def descend(self, lam: float) -> Fitted:
        """Return a point from which no block can gain more than a little, from the network on.

        F never rises; see the module.
        """
        W, slopes, solved = self.start.copy(), self.slopes(self.start), self.start.copy()
        value = self.objective(W, lam)
        history = [value]
        for _ in range(_ROUNDS):
            for rows in self.groups:
                slopes[rows] = self.slopes(W)[rows]
                solved[rows] = self.solve(self.gram.rows(rows), lam, slopes[rows])
                W, value = self._step(W, value, lam, rows, solved[rows])
            history.append(value)
            if history[-2] - value <= _GAIN * history[-2]:
                break
        return Fitted(W, lam, self.motion.gains(W).total, tuple(history), slopes, solved)

    def solve(self, gram: Gram, lam: float, slopes: Array) -> Array:
        """Return the rows of Q(lam) with the weights `slopes`, on some statistics."""
        options = self.options
        return solve_rows(
            gram, lam=lam, weights=slopes, tol=options.tol, n_jobs=options.n_jobs
        ).coef

    def slopes(self, W: Array) -> Array:
        """Return l_i r_j / w_i, with 0 and infinity where the mask has them."""
        gains = self.motion.gains(W)
        slopes = np.outer(gains.adjoint / self.effect, gains.forward)
        return np.where((self.mask == 0) | np.isinf(self.mask), self.mask, slopes)

    def _step(
        self, W: Array, value: float, lam: float, rows: slice, solved: Array
    ) -> tuple[Array, float]:
        """Go towards new rows while the others stand, as far as F does not rise; return F too."""
        step = 1.0
        for _ in range(_HALVINGS):
            trial = W.copy()
            trial[rows] = solved if step == 1.0 else W[rows] + step * (solved - W[rows])
            found = self.objective(trial, lam)
            if found <= value * (1.0 + _ROUNDING):
                return trial, min(found, value)
            step /= 2.0
        return W, value

    def within(self, budget: float) -> Fitted:
        """Return a model with T <= budget, by a search over lam: T falls as lam grows.

        See `cimf.methods.penalty_search`.
        """
        own = self.motion.gains(self.start).total
        if own <= budget:
            value = (self.objective(self.start, 0.0),)
            return Fitted(self.start, 0.0, own, value, self.slopes(self.start), self.start)
        return within(self.descend, budget, self._energy() / own, _CLOSE, _STRIDE)

    def _energy(self) -> float:
        """Return F of the zero model: what there is to match."""
        return float(0.5 * self.effect @ self.gram.target_sq)


def _dense(left: object, right: object) -> Array:
    return np.hstack([part.toarray() for part in (left, right)])  # type: ignore[attr-defined]


def _with_floor(effect: Array, target_sq: Array) -> Array:
    """Return effects of which none is nothing: an error of every row counts a little."""
    energy = effect * target_sq
    floor = _FLOOR * (energy.mean() if energy.any() else 1.0)
    return np.maximum(effect, floor / np.where(target_sq > 0, target_sq, 1.0))
