"""What an implicit model can give on a box of inputs: states, and margins between classes.

For inputs low <= u <= high, sample by sample:

1. Closed form. |x - x0| <= w with w = L |A| w + d, x0 the state at the middle of the box; see
   `cimf.model.perturbation`.
2. Interval equilibria. From x0 -+ w on, the box of states is intersected with phi of the interval
   of A x + B u, again and again, until it no longer shrinks: for an acyclic A a forward sweep. The
   equilibrium is in every one of these boxes, because it is in the first and is a fixed point.
3. Linear bounds, from the outputs backwards. The margin y_c - y_j = g'x + h'u is bounded through
   x = phi(z) by linear functions of z = A x + B u (a chord above ReLU, a line below it), so it is
   at least g1'x + h1'u + c on the box of 2, and so on: what is left of x is bounded by its box,
   after any number of steps. (Known for layered networks as CROWN or DeepPoly, Zhang et al. 2018;
   with feedback the same step is repeated, and each of them is a bound.)

Rounding: all bounds are computed in float64, and every product is widened by `product_rounding`
times the same product of absolute values, every activation by `rounding`. They hold for the model
in exact arithmetic, for its evaluation in float64, and for equilibria solved to a residual of
1e-12.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from cimf.errors import CertificateError, InputError
from cimf.model import ImplicitModel
from cimf.model.perturbation import StateGain, product_rounding, working_matrix
from cimf.network.activation_bounds import Lines, bounds, lines, rounding
from formulations.columns import as_float64

Array = NDArray[np.float64]

# The residual, relative to max |phi(B u)|, at which `solve_equilibrium` stops; with reserve.
_RESIDUAL = 2e-12
# Or this share of the largest state, where that is more.
_STATE_ROUNDING = 32 * float(np.finfo(np.float64).eps)
# The sum of the widths must shrink by this share for another round of intersections ...
_PROGRESS = 1e-4
# ... and the states add more than this share to the uncertainty for another step backwards.
_REST = 1e-3
_MAX_ROUNDS = 1000
_MAX_STEPS = 50
# Numbers in the array (k, q, n + p) of one chunk of samples: 160 MB.
_CHUNK_NUMBERS = 2e7
# Sums of products that underflow are off by less.
_TINY = 1e-290


class Interval(NamedTuple):
    """low <= value <= high; arrays of one shape."""

    low: Array
    high: Array


class Margins(NamedTuple):
    """Lower bounds of y_c - y_j on every sample's box, c its class: (q, m), inf in row c.

    Attributes
    ----------
    closed_form, intervals, linear : (q, m)
        From the three bounds of states; each at least the one before.
    """

    closed_form: Array
    intervals: Array
    linear: Array


class _Ball(NamedTuple):
    """|value - centre| <= radius, and size >= |value|; arrays of one shape."""

    centre: Array
    radius: Array

    @property
    def size(self) -> Array:
        return np.abs(self.centre) + self.radius


class _Reach(NamedTuple):
    """What is known of the states of one chunk: boxes before and after they were intersected."""

    inputs: _Ball
    closed_form: _Ball
    states: Interval
    lines: Lines
    size: Array  # of every pre-activation: |A| |x| + |B| |u|


class IntervalBounds:
    """Bounds of the states and margins of one model.

    Parameters
    ----------
    model : ImplicitModel

    Raises
    ------
    InputError
        It is not proved well-posed, or an activation has no Lipschitz constant.
    """

    def __init__(self, model: ImplicitModel) -> None:
        self.model = model
        self._gain = StateGain(model.A, model.blocks)
        self._A, self._B = working_matrix(model.A), working_matrix(model.B)
        self._C, self._D = (
            m.toarray() if scipy.sparse.issparse(m) else m for m in (model.C, model.D)
        )
        self._abs_A, self._abs_B = abs(self._A), abs(self._B)
        self._unit = product_rounding(model.n_states + model.n_inputs)

    def states(self, low: ArrayLike, high: ArrayLike) -> Interval:
        """Return bounds (n, m) of the states for inputs low <= u <= high, each (p, m).

        Raises
        ------
        InputError
            As `ImplicitModel.inputs`; low > high somewhere.
        """
        box = self._box(low, high)
        parts = [self._reach(Interval(*part)).states for part in self._chunks(*box)]
        return Interval(*(np.concatenate(side, axis=1) for side in zip(*parts, strict=True)))

    def margins(self, low: ArrayLike, high: ArrayLike, labels: NDArray[np.int64]) -> Margins:
        """Return bounds of the margins for classes `labels` (m,); parameters as `states`.

        A sample whose linear margins are all positive is classified correctly in its whole box. The
        linear ones are at least those of the intervals, and those at least the closed form.
        """
        box = self._box(low, high)
        parts = [self._margins(Interval(*part[:2]), part[2]) for part in self._chunks(*box, labels)]
        return Margins(*(np.concatenate(kind, axis=1) for kind in zip(*parts, strict=True)))

    def _box(self, low: ArrayLike, high: ArrayLike) -> Interval:
        box = Interval(*(self.model.inputs(as_float64("box", side, 2)) for side in (low, high)))
        if box.low.shape != box.high.shape or not (box.low <= box.high).all() or not box.low.size:
            raise InputError("low <= high of one shape, for at least one sample, is needed")
        return box

    def _chunks(self, *arrays: NDArray[Any]) -> list[tuple[NDArray[Any], ...]]:
        model = self.model
        size = max(model.n_outputs, 1) * (model.n_states + model.n_inputs)
        step = int(max(1, min(256, _CHUNK_NUMBERS // size)))
        starts = range(0, arrays[0].shape[-1], step)
        return [tuple(array[..., s : s + step] for array in arrays) for s in starts]

    def _reach(self, box: Interval) -> _Reach:
        """Return the boxes of the states of one chunk."""
        inputs = _ball(box)
        from_inputs = self._product(self._B, self._abs_B, inputs)
        size_inputs = self._abs_B @ inputs.size
        x = self.model.equilibrium(inputs.centre).X
        z = self._A @ x + self._B @ inputs.centre
        size = self._abs_A @ np.abs(x) + size_inputs
        largest = np.zeros((1, x.shape[1]))  # max |phi(B u)| in the box
        error, value = np.empty_like(x), np.empty_like(x)
        for block in self.model.blocks:
            rows, phi = block.rows, block.activation
            value[rows] = phi.numpy(z[rows])
            error[rows] = rounding(phi, size[rows])
            ends = bounds(phi, *_ends(from_inputs, rows))
            largest = np.maximum(largest, np.abs(ends).max(axis=(0, 1), initial=0.0))
        allowed = _RESIDUAL * largest
        # phi at two points of one box differs by L times their distance, and two errors.
        moved = self._gain.lipschitz[:, None] * (
            self._abs_B @ inputs.radius + 4.0 * self._unit * size
        )
        moved += np.abs(x - value) + 4.0 * error + allowed
        moved += _STATE_ROUNDING * np.abs(x).max(axis=0, initial=0.0)
        radius = self._gain.radius(moved * (1.0 + self._unit) + _TINY)
        closed_form = _Ball(x, radius)
        states, z = self._shrink(closed_form, from_inputs, size_inputs, allowed)
        size = self._abs_A @ _ball(states).size + size_inputs
        slack = allowed + _STATE_ROUNDING * np.abs(states).max(axis=(0, 1), initial=0.0)
        return _Reach(inputs, closed_form, states, self._lines(z, slack), size)

    def _shrink(
        self, start: _Ball, from_inputs: _Ball, size_inputs: Array, allowed: Array
    ) -> tuple[Interval, Interval]:
        """Return the boxes of states and of pre-activations, intersected until they stay."""
        low, high = start.centre - start.radius, start.centre + start.radius
        low, high = low - self._unit * np.abs(low), high + self._unit * np.abs(high)
        width = (high - low).sum(axis=0)
        for _ in range(_MAX_ROUNDS):
            states = _ball(Interval(low, high))
            product = self._product(self._A, self._abs_A, states)
            z = _Ball(product.centre + from_inputs.centre, product.radius + from_inputs.radius)
            z = _Ball(z.centre, z.radius + self._unit * (z.size + size_inputs))
            slack = allowed + _STATE_ROUNDING * states.size.max(axis=0, initial=0.0)
            for block in self.model.blocks:
                rows = block.rows
                least, largest = bounds(block.activation, *_ends(z, rows))
                low[rows] = np.maximum(low[rows], least - slack)
                high[rows] = np.minimum(high[rows], largest + slack)
            if (low > high).any():
                raise CertificateError(
                    "an interval of states is empty: its bounds or the equilibrium are wrong"
                )
            before, width = width, (high - low).sum(axis=0)
            if (width >= (1.0 - _PROGRESS) * before).all():
                break
        return Interval(low, high), Interval(z.centre - z.radius, z.centre + z.radius)

    def _lines(self, z: Interval, slack: Array) -> Lines:
        parts = [np.empty_like(z.low) for _ in range(4)]
        for block in self.model.blocks:
            rows = block.rows
            for part, found in zip(
                parts, lines(block.activation, z.low[rows], z.high[rows]), strict=True
            ):
                part[rows] = found
        slope_low, offset_low, slope_high, offset_high = parts
        return Lines(slope_low, offset_low - slack, slope_high, offset_high + slack)

    def _product(self, matrix: Any, magnitude: Any, ball: _Ball) -> _Ball:
        """Return the ball of matrix @ value, rounding included."""
        radius = magnitude @ ball.radius + self._unit * (magnitude @ ball.size)
        return _Ball(matrix @ ball.centre, radius * (1.0 + self._unit) + _TINY)

    def _margins(self, box: Interval, labels: NDArray[np.int64]) -> Margins:
        reach = self._reach(box)
        rows = _Rows(
            self._C[labels][:, None] - self._C[None], self._D[labels][:, None] - self._D[None]
        )
        states = _ball(reach.states)
        closed_form = self._least(rows, reach.closed_form, reach.inputs)
        intervals = np.maximum(closed_form, self._least(rows, states, reach.inputs))
        best, constant = intervals, np.zeros_like(intervals)
        for _ in range(_MAX_STEPS):
            rest = _dot(np.abs(rows.g), states.radius)
            if (rest <= _REST * _dot(np.abs(rows.h), reach.inputs.radius)).all():
                break
            rows, constant = self._step_back(rows, constant, reach)
            best = np.maximum(best, self._least(rows, states, reach.inputs) + constant)
        out = Margins(closed_form.T, intervals.T, best.T)
        for margin in out:
            margin[labels, np.arange(len(labels))] = np.inf
        return out

    def _least(self, rows: _Rows, states: _Ball, inputs: _Ball) -> Array:
        """Return the least g'x + h'u (k, q), rounding included."""
        value = _dot(rows.g, states.centre) + _dot(rows.h, inputs.centre)
        g, h = np.abs(rows.g), np.abs(rows.h)
        value -= (1.0 + self._unit) * (_dot(g, states.radius) + _dot(h, inputs.radius))
        return value - self._unit * (_dot(g, states.size) + _dot(h, inputs.size)) - _TINY

    def _step_back(self, rows: _Rows, constant: Array, reach: _Reach) -> tuple[_Rows, Array]:
        """Return g1, h1, c1 with g'x + h'u + c >= g1'x + h1'u + c1 on the boxes."""
        part = Lines(*(np.ascontiguousarray(array.T)[:, None] for array in reach.lines))
        above = rows.g >= 0.0
        offset = rows.g * np.where(above, part.offset_low, part.offset_high)
        v = rows.g * np.where(above, part.slope_low, part.slope_high)
        h = rows.h + _times(v, self._B)
        error = np.abs(offset).sum(axis=2) + np.abs(constant)
        error += 2.0 * _dot(np.abs(v), reach.size) + _dot(np.abs(h), reach.inputs.size)
        return _Rows(_times(v, self._A), h), constant + offset.sum(axis=2) - (
            self._unit * error + _TINY
        )


class _Rows(NamedTuple):
    """Rows g'x + h'u of every sample and class: (k, q, n) and (k, q, p)."""

    g: Array
    h: Array


def _ball(box: Interval) -> _Ball:
    centre = 0.5 * box.low + 0.5 * box.high
    radius = np.maximum(box.high - centre, centre - box.low)
    # One rounding of each difference; where low = high it is exactly 0.
    return _Ball(centre, radius * (1.0 + 2.0 * np.finfo(np.float64).eps))


def _ends(ball: _Ball, rows: slice) -> tuple[Array, Array]:
    return ball.centre[rows] - ball.radius[rows], ball.centre[rows] + ball.radius[rows]


def _dot(rows: Array, columns: Array) -> Array:
    """Return (k, q) from rows (k, q, n) and the columns (n, k) of k samples."""
    return (rows @ np.ascontiguousarray(columns.T)[:, :, None])[:, :, 0]


def _times(rows: Array, matrix: Any) -> Array:
    """Return (k, q, n) times a dense or sparse matrix (n, r)."""
    k, q, n = rows.shape
    return (rows.reshape(k * q, n) @ matrix).reshape(k, q, matrix.shape[1])
