"""A sparse model with everything that is known about it, whatever found its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.judge import Solution, count_nonzeros
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.found import Found, FoundSensitivity
from cimf.methods.stacked.model_report import Report, doubts, evaluate
from cimf.methods.stacked.output_rows import Outputs
from cimf.model import ImplicitModel

_UNSHARED = (
    "the model has more weights than the network, because (A, B) repeats the shared weights of its "
    "convolutions: cimf.prune keeps the sharing"
)


@dataclass(frozen=True, repr=False)
class Sparsified:
    """A sparse implicit model, in the network's units, and what is known about it."""

    model: ImplicitModel
    report: Report

    def __repr__(self) -> str:
        return f"Sparsified({self.model!r}, {self.report.solution!r})"


class Rows(NamedTuple):
    """The row problems that were solved, and their solutions; as the fields of `Report`.

    Attributes
    ----------
    allowed : (n, N) bool
        Columns that each row may use.
    """

    design: str
    rescale: Rescale
    kappa: float
    allowed: NDArray[np.bool_]
    solution: Solution
    inactive: int
    loss: Found | None = None


def assembled(
    reference: Reference, rows: Rows, outputs: Outputs, output_pattern: NDArray[np.bool_]
) -> Sparsified:
    """Return a model, run on the evaluation samples, with its report.

    Parameters
    ----------
    outputs : Outputs
        The model with its (C, D), and what was found out so far.
    output_pattern : (q, N) bool
        Which entries (C, D) may have.
    """
    model, wide, state_error, notes = outputs
    layout = reference.calibration.layout
    nonzeros = count_nonzeros(
        np.hstack([model.A, model.B]),
        np.hstack([model.C, model.D]),
        bias=layout.bias,
        blocks=[(block.name, block.start, block.stop) for block in layout.blocks],
        admissible=(rows.allowed, output_pattern),
        network_weights=reference.network_weights,
        network_parameters=reference.network_parameters,
    )
    if reference.convolutional and nonzeros.sparsity["network_weights"] < -1.0:
        notes = [*notes, _UNSHARED]
    evaluation = evaluate(model, reference, wide)
    deep = len(layout.blocks) > 1 or reference.implicit
    more = doubts(model, evaluation, reference.control_accuracy, _remedies(reference, rows), deep)
    report = Report(
        design=rows.design,
        rescale=rows.rescale,
        kappa=rows.kappa,
        solution=rows.solution,
        inactive=rows.inactive,
        nonzeros=nonzeros,
        wellposedness=model.wellposedness(),
        state_error=state_error,
        evaluation=evaluation,
        dense_accuracy=reference.dense_accuracy,
        control_accuracy=reference.control_accuracy,
        notes=(*notes, *more),
        loss=rows.loss,
    )
    return Sparsified(model, report)


def _remedies(reference: Reference, rows: Rows) -> list[str]:
    """Return what may make a model better, the likeliest first."""
    lam = rows.loss.lam if rows.loss is not None else 0.0
    found = ["a larger kappa"] if np.isfinite(rows.kappa) else []
    # A penalty on the sensitivity follows from its budget, the other losses have their own.
    if lam > 0 and not (found and isinstance(rows.loss, FoundSensitivity)):
        found.append("a smaller lam")
    if not rows.rescale and not isinstance(rows.loss, FoundSensitivity):
        found.append("rescaled states")
    if not reference.implicit:
        found.append("the network itself layer by layer to cimf.prune")
    return found or ["more samples"]


def network_notes(reference: Reference, rescale: Rescale) -> list[str]:
    """Return what a reader must know about the network, whatever the kappa."""
    notes = []
    scalable = reference.calibration.layout.scalable
    if reference.half_precision:
        notes.append(
            f"weights were {reference.half_precision}: captured in float64 from the rounded weights"
        )
    if rescale and not scalable.any():
        notes.append(
            "no state was rescaled: no activation of the network is positively homogeneous"
        )
    elif rescale and not scalable.all():
        notes.append(
            f"{np.count_nonzero(~scalable)} states keep their units: their activation is not "
            "positively homogeneous"
        )
    return notes
