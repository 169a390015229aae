"""Exact solution of P(kappa) and Q(lam) for one row: block pivoting along its path (numba).

The solution a(lam) of Q(lam) is piecewise linear in lam, and the solution of P(kappa) is the point
of that path whose norm is kappa (Osborne, Presnell and Turlach, 2000). A homotopy walks it one
breakpoint at a time; here a step crosses many:

* predict: on the present segment a and the gradient are lines in lam; order the breakpoints that
  they predict and go to a lam between the q-th and the next, exchanging all crossed columns;
* correct: exchange every column that violates the optimality conditions until none does (block
  principal pivoting, the semismooth Newton method of the problem); once the norm passes kappa,
  lam becomes an unknown and the ball an equation of the same linear system;
* if the correction fails, return to the last exact point, kept with its factor, with q/4; q doubles
  after a success. At q = 1 this is the homotopy, so progress never depends on good block steps.

Columns are scaled to a unit diagonal inside the factor and a proximal term ridge ||a - centre||^2
makes each subproblem strictly convex, so duplicate columns and m < N are no special case; the
centre is moved (proximal point method) until the gap of the problem itself is below the goal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cimf.solve.compiled import Array, kernel
from cimf.solve.path.breakpoints import breakpoints, choose_step
from cimf.solve.path.exchange import correct, correct_at, reopen, resume
from cimf.solve.path.path_end import stepped, try_end, unknown_ends, watched
from cimf.solve.path.path_point import Point, Work, at, begin, recentre, save
from cimf.solve.path.point_gap import (
    gap_at,
    judged_gap,
    keep,
    keep_refined,
    passes,
    rounding,
    steepest,
)
from cimf.solve.path.row_problem import Problem
from cimf.solve.path.segment_lines import advance, gradient_slopes, slopes, solve_at
from cimf.solve.path.walk import Best, Pace, Walk, faster, slower

# Linear systems and predictions per row. Real states need 5 to 650 (N = 897), the design of Mairal
# and Yu 1,600 at N = 7; past this a row is reported as it stands.
_BUDGET = 10_000
_MAX_REFUSALS = 16
# Proximal moves in a row that do not halve the gap before rounding is what is left of it.
_MAX_FUTILE = 3
# Share of the way to the limit in which breakpoints are looked for first: most steps end there.
_NEAR = 0.25


class Level(NamedTuple):
    """What is asked for: kappa, and a penalty of 0; or the penalty lam, and kappa infinite.

    Attributes
    ----------
    kappa, lam : float, or arrays of them for several rows or levels
    """

    kappa: Any
    lam: Any


class Found(NamedTuple):
    """Where solutions go: coef (r, L, N), lam (r, L), solves (r, L); without r for one row."""

    coef: Any
    lam: Any
    solves: Any


@kernel
def _step(
    problem: Problem, point: Point, kappa: float, norm: float, limit: float, pace: Pace, work: Work
) -> tuple[bool, Point, int, bool]:
    """Predict a step past a block of breakpoints, at most `limit` or to norm kappa; go and correct.

    norm is that of the point. Returns (done, point, systems solved, whether a breakpoint was
    crossed).
    """
    rate = slopes(problem, point, work)
    gradient_slopes(problem, point, work)
    reach = max((kappa - norm) / rate, 0.0) if rate > 0.0 else np.inf
    if norm >= kappa:
        reach = 0.0
    limit = min(limit, reach)
    near = _NEAR * limit
    count = breakpoints(point, near, work)
    if count > pace.block:
        limit = near
    else:
        count = breakpoints(point, limit, work)
    tie = 1e-12 * point.lam
    step, first = choose_step(work.steps, count, pace.block, pace.beyond, tie, limit)
    advance(point, step, work)
    point = at(point, point.lam - step, reach <= step)
    if first >= step:
        return True, point, 0, False
    allowed = 16 + 2 * pace.block + point.k // 2
    done, point, solves = correct(problem, point, kappa, allowed, work)
    return done, point, solves, True


@kernel
def _limit(problem: Problem, level: Level, point: Point, norm: float) -> float:
    """Return how far lam may fall from here: to its level, or to where the goal is certified."""
    kappa = level.kappa
    # Where the ball is inactive the path is left at a lam that certifies the goal.
    inactive = kappa < np.inf and kappa > norm
    floor = 0.25 * problem.goal / (kappa - norm) if inactive else level.lam
    return float(point.lam - max(floor, level.lam))


@kernel
def _moved_centre(
    problem: Problem, level: Level, point: Point, saved: Point, walk: Walk, work: Work
) -> tuple[bool, bool, Point, Point, Walk]:
    """Move the proximal centre to a point that is exact but for the proximal term, and correct.

    Returns (done, arrived, point, saved, walk).
    """
    recentre(problem, point, work)
    size = point.support.shape[0]
    done, point, used = correct_at(problem, point, level.kappa, size, work)
    pace = walk.pace
    if done:
        saved = save(point, saved)
    else:
        pace = Pace(pace.block, pace.beyond, pace.ceiling, pace.refused + 4)
    arrived = done and (point.on_sphere or level.kappa == np.inf)
    walk = Walk(pace, walk.ends, walk.solves + used, walk.predictions, False, False)
    return done, arrived, point, saved, walk


@kernel
def _stepped(
    problem: Problem, level: Level, point: Point, saved: Point, norm: float, limit: float,
    walk: Walk, work: Work,
) -> tuple[bool, bool, Point, Point, Walk]:  # fmt: skip
    """Take a step of the present pace; returns as `_moved_centre`."""
    pace, ends = walk.pace, walk.ends
    done, point, used, crossed = _step(problem, point, level.kappa, norm, limit, pace, work)
    # A step that went back is none: corrections on the sphere solve for lam.
    done = done and point.lam <= saved.lam * (1.0 + 1e-9)
    if done:
        if crossed:
            saved = save(point, saved)
            pace = faster(pace, point, used)
        saved = at(saved, point.lam, False)
        ends = stepped(ends)
    else:
        pace = slower(pace)
    arrived = done and (point.on_sphere or (level.kappa == np.inf and point.lam <= level.lam))
    walk = Walk(pace, ends, walk.solves + used, walk.predictions, False, False)
    return done, arrived, point, saved, walk


@kernel
def _stepped_back(
    problem: Problem, point: Point, saved: Point, walk: Walk, work: Work
) -> tuple[Point, Walk]:
    """Return to the last exact point after a step that failed; without it the walk is lost."""
    done, point, used = resume(problem, point, saved, work)
    stalled = not done or walk.pace.refused > _MAX_REFUSALS
    return point, Walk(
        walk.pace, walk.ends, walk.solves + used, walk.predictions, stalled, not done
    )


@kernel
def _walk_to(
    problem: Problem, level: Level, point: Point, saved: Point, walk: Walk, work: Work, out: Array
) -> tuple[Point, Point, Walk, float]:
    """Walk on until the level is reached, or as near as rounding and the budget let it.

    The best point on the way is in out (N,). Returns (point, saved, walk, its judged gap).
    """
    kappa, goal = level.kappa, problem.goal
    ball = kappa < np.inf
    rounded = False  # rounding keeps the gap above the goal: the best point is kept
    arrived = False
    best = Best(np.inf, np.inf, 0)
    point = at(point, point.lam, False)
    while True:
        # An exact point of the path is held here: its norm is at most kappa.
        gap, norm = gap_at(problem, point, kappa, work)
        if (ball and gap <= goal) or (arrived and gap <= goal + rounding(problem)):
            break
        predictions = walk.predictions + 1
        stalled = walk.stalled or walk.solves + predictions > _BUDGET
        limit = _limit(problem, level, point, norm)
        whole, full, ends = watched(problem, point, kappa, walk.ends)
        walk = Walk(walk.pace, ends, walk.solves, predictions, stalled, walk.lost)
        if stalled:
            break
        # The ball may be inactive, beyond a dense path, one that ends in rounding, or one whose
        # support spans all samples.
        untried = not ends.tried and (limit <= 0.0 or walk.pace.refused == 3)
        if ball and not arrived and (whole or full or untried):
            if gap < best.gap:
                best = Best(gap, keep(problem, point, kappa, work, out), best.futile)
            done, point, ends = try_end(problem, point, kappa, whole, ends, work)
            walk = Walk(walk.pace, ends, walk.solves + 1, predictions, False, False)
        elif arrived or limit <= 0.0:
            # Exact for the problem with the proximal term, but that term shows in the gap.
            if gap < 0.5 * best.gap:
                best = Best(gap, keep(problem, point, kappa, work, out), 0)
            elif best.futile == _MAX_FUTILE:
                rounded = True
                break
            else:
                best = Best(best.gap, best.kept, best.futile + 1)
            done, arrived, point, saved, walk = _moved_centre(
                problem, level, point, saved, walk, work
            )
        else:
            done, arrived, point, saved, walk = _stepped(
                problem, level, point, saved, norm, limit, walk, work
            )
        if not done:
            point, walk = _stepped_back(problem, point, saved, walk, work)
            rounded = walk.lost and passes(problem, best.kept)
    kept = best.kept
    if not rounded and gap <= best.gap:
        kept = keep(problem, point, kappa, work, out)
    return point, saved, walk, kept


@kernel
def solve_levels(
    problem: Problem, levels: Level, point: Point, saved: Point, work: Work, found: Found
) -> tuple[Point, Point]:
    """Solve one row for several levels in one pass along its path.

    Parameters
    ----------
    problem : Problem
    levels : Level of (L,)
        Ascending kappa or descending lam.
    point, saved : Point
        Storage, of any content.
    work : Work
    found : Found of (L, N), (L,), (L,)
        Filled with the solutions.

    Returns
    -------
    point, saved
        The storage, grown where it was needed.
    """
    point = begin(problem, point, work)
    solve_at(problem, point, np.inf, work)
    point = at(point, steepest(problem, work.grad), False)
    saved, first = save(point, saved), point.lam
    pace = Pace(1, 0.5, point.support.shape[0], 0)
    walk = Walk(pace, unknown_ends(), 1, 0, False, False)
    for i in range(levels.kappa.shape[0]):
        level, out = Level(levels.kappa[i], levels.lam[i]), found.coef[i]
        point, saved, walk, kept = _walk_to(problem, level, point, saved, walk, work, out)
        # Rounding ended the path between two points: the last exact one is still held, and better
        # than what was written before (by six orders of magnitude on the states of a ResNet).
        if walk.lost and not passes(problem, kept):
            point = reopen(problem, point, saved, work)
            if judged_gap(problem, point, level.kappa, work) < kept:
                kept = keep(problem, point, level.kappa, work, out)
        point, used = keep_refined(problem, point, level.kappa, kept, work, out)
        if level.kappa == np.inf and level.lam >= first:
            # The column that enters first is held at its breakpoint: what it has is rounding, which
            # a lam far above costs (1e-16 times 1e7 of 1e-5 in a row of ResNet-20).
            out[problem.weights > 0.0] = 0.0
        found.lam[i] = point.lam
        found.solves[i] = walk.solves + used
        walk = Walk(
            walk.pace, walk.ends, walk.solves + used, walk.predictions, walk.stalled, walk.lost
        )
    return point, saved
