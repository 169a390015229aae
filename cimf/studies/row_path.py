"""The solution path of one row: what enters and leaves as the ball grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cimf.methods.stacked.captured import Reference
from cimf.methods.stacked.path_options import PathOptions
from cimf.methods.stacked.row_problems import RowProblems
from cimf.runs.companions import save_figure
from cimf.runs.folder import RunFolder
from cimf.runs.terminal import out
from cimf.solve import solve_path, solve_rows
from cimf.studies.case import Case
from cimf.studies.line_figure import frame
from cimf.studies.sweep_tables import markdown

# Coefficients that have a colour in the figure: the largest of the whole path.
_NAMED = 6


def row_path(
    name: str,
    folder: Path,
    load: Callable[[], Case],
    points: int,
    calibration: int | None = None,
    overwrite: bool = False,
) -> pd.DataFrame:
    """Solve P(kappa) for one row from kappa = 0 to where the ball is slack.

    The row is that of the last hidden layer whose state varies most, its columns those of the
    layer before (design "predecessors"), the states rescaled (Theorem 8).

    Writes path.csv (a row per kappa: lam, objective, gap, non-zeros), coefficients.csv (a row per
    kappa and column), path.md, path.png and the manifest.

    Parameters
    ----------
    points : int
        kappas, equally far from each other.
    calibration : int, optional
        The first so many samples. Default: all.

    Raises
    ------
    CertificateError
        A point of the path is not certified.
    """
    settings = {"network": name, "points": points, "calibration": calibration}
    with RunFolder.claim(folder, settings, overwrite) as run:
        case = load()
        batches = list(case.calibration[:calibration].split(1000))
        reference = Reference.capture(case.network, batches)
        problems = RowProblems.of(reference, "predecessors", True, None)
        last = reference.calibration.layout.blocks[0]
        hidden = slice(last.start, last.stop)
        spread = problems.moments.gram.rows(hidden).target_sq
        row = last.start + int(spread.argmax())
        gram = problems.moments.gram.rows(slice(row, row + 1))
        weights = np.broadcast_to(problems.weights, problems.allowed.shape)[[row]]
        used = np.flatnonzero((weights[0] > 0) & np.isfinite(weights[0]))
        end = float(np.abs(solve_rows(gram, lam=0.0, weights=weights).coef[0, used]).sum())
        kappas = np.linspace(0.0, 1.05 * end, points)
        solutions = solve_path(gram, kappas.tolist(), weights=weights, tol=PathOptions().tol)
        rows: list[dict[str, Any]] = []
        for kappa, found in zip(kappas, solutions, strict=True):
            found.raise_if_failed()
            rows.append({
                "kappa": kappa, "lam": float(found.lam[0]), "objective": float(found.objective[0]),
                "gap": float(found.gap[0]), "nonzeros": int(np.count_nonzero(found.coef[0, used])),
            })  # fmt: skip
        table = pd.DataFrame(rows)
        coef = np.stack([found.coef[0, used] for found in solutions])
        long = pd.DataFrame({
            "kappa": np.repeat(kappas, used.size), "column": np.tile(used, points),
            "coefficient": coef.ravel(),
        })  # fmt: skip
        heading = ["κ", "λ", "objective", "gap", "non-zeros"]
        chosen = table.iloc[np.unique(np.linspace(0, points - 1, 11).astype(int))]
        cells = [[f"{k:.3g}", f"{lam:.3g}", f"{h:.4g}", f"{gap:.1e}", f"{count:.0f}"]
                 for k, lam, h, gap, count in chosen.itertuples(index=False)]  # fmt: skip
        run.finish(
            {
                "path.csv": table.to_csv(index=False),
                "coefficients.csv": long.to_csv(index=False),
                "path.md": f"# {name}: the path of one row\n\nState {row} of block {last.name!r}, "
                f"{used.size} columns; every point is certified, worst gap "
                f"{table['gap'].max():.1e}. λ is the multiplier of the ball: the same row solves "
                f"Q(λ).\n\n{markdown(heading, cells)}\n",
            },
            {"path.png": partial(_draw, name, table, used, coef)},
            data=case.data,
        )
        out.print(f"written to {run.path}/: {', '.join(run.written)}")
    return table


def _draw(name: str, table: pd.DataFrame, used: Any, coef: Any, path: Path) -> None:
    """Draw coefficients, multiplier and misfit against kappa."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display needed

    figure = Figure(figsize=(11.0, 4.5), dpi=160, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    kappas = table["kappa"].tolist()
    named = np.argsort(-np.abs(coef).max(axis=0))[:_NAMED]
    for k in np.setdiff1d(np.arange(used.size), named):
        left.plot(kappas, coef[:, k], color="0.8", linewidth=0.8)
    for k in named:
        left.plot(kappas, coef[:, k], linewidth=1.6)
        left.annotate(f" {used[k]}", (kappas[-1], coef[-1, k]), fontsize=7, va="center")
    middle.plot(kappas, table["lam"])
    right.plot(kappas, table["objective"])
    titles = f"{name}: coefficients by column", "multiplier λ", "misfit h(a)"
    for axes, title in zip((left, middle, right), titles, strict=True):
        frame(axes, title, "κ")
    save_figure(figure, path)
