"""One linear segment of a row's solution path: the linear system of a support, and its lines.

On a segment the coefficients and the gradient are lines in lam: a(lam - t) = a + t v and
G a - c = grad + t slope. The system of the support S with signs s is

    (G_SS + ridge D^{-2}) a = c_S - lam (w s) + ridge D^{-2} centre,

and the point of norm kappa is where the line v = (G_SS + ridge D^{-2})^{-1} (w s) meets the sphere.
"""

from __future__ import annotations

import numpy as np

from cimf.solve.compiled import kernel
from cimf.solve.path.cholesky import add_columns, solve
from cimf.solve.path.path_point import Point, Work, at
from cimf.solve.path.row_problem import Problem


@kernel
def slopes(problem: Problem, point: Point, work: Work) -> float:
    """Set v = -da/dlam; return sum w s v, the rate at which the norm grows."""
    support, sign, k = point.support, point.sign, point.k
    v = work.v
    for i in range(k):
        j = support[i]
        v[i] = problem.scale[j] * problem.weights[j] * sign[j]
    # The factor is that of D G_SS D + ridge I: scaled before and after, v = D (..)^{-1} D (w s).
    solve(point.factor, k, v)
    rate = 0.0
    for i in range(k):
        j = support[i]
        v[i] *= problem.scale[j]
        rate += problem.weights[j] * sign[j] * v[i]
    return rate


@kernel
def gradient_slopes(problem: Problem, point: Point, work: Work) -> None:
    """Set the slope of the gradient, G v."""
    work.slope[:] = 0.0
    add_columns(problem.gram, point.support, point.k, work.v, work.slope)


@kernel
def set_gradient(problem: Problem, point: Point, work: Work) -> None:
    """Set the gradient G a - c."""
    for j in range(work.grad.shape[0]):
        work.grad[j] = -problem.corr[j]
    add_columns(problem.gram, point.support, point.k, work.a, work.grad)


@kernel
def solve_at(problem: Problem, point: Point, kappa: float, work: Work) -> tuple[bool, Point]:
    """Solve on the support at lam; on the sphere, or if the norm passes kappa, where it is kappa.

    Sets a and its gradient. Returns (possible, point); not possible: no lam >= 0 has this norm, and
    the gradient is not set.
    """
    support, sign, k, lam = point.support, point.sign, point.k, point.lam
    a, v = work.a, work.v
    for i in range(k):
        j = support[i]
        d = problem.scale[j]
        push = lam * problem.weights[j] * sign[j]
        a[i] = d * (problem.corr[j] - push) + problem.ridge * work.centre[j] / d
    solve(point.factor, k, a)
    norm = 0.0
    for i in range(k):
        j = support[i]
        a[i] *= problem.scale[j]
        norm += problem.weights[j] * sign[j] * a[i]
    on_sphere = point.on_sphere or norm > kappa
    # The system with the ball as an equation is bordered by (w s): instead of factoring it, move
    # along the line of the segment, on which the norm grows by `rate` per unit of lam.
    if on_sphere:
        rate = slopes(problem, point, work)
        # rate = (w s)' (G_SS + ridge D^{-2})^{-1} (w s) is positive wherever a column is bounded.
        step = (kappa - norm) / rate if rate > 0.0 else np.inf
        if step > lam:
            return False, at(point, lam, on_sphere)
        for i in range(k):
            a[i] += step * v[i]
        lam -= step
    set_gradient(problem, point, work)
    return True, at(point, lam, on_sphere)


@kernel
def advance(point: Point, step: float, work: Work) -> None:
    """Move a and its gradient along the lines by lam -> lam - step."""
    for i in range(point.k):
        work.a[i] += step * work.v[i]
    for j in range(work.grad.shape[0]):
        work.grad[j] += step * work.slope[j]
