"""What all row problems of one network and design have in common, whatever their loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cimf.errors import warn_outside
from cimf.judge import Solution
from cimf.methods.stacked.assemble import Rows, Sparsified, assembled, network_notes
from cimf.methods.stacked.captured import Reference, Rescale
from cimf.methods.stacked.designs import DESIGNS, column_weights
from cimf.methods.stacked.found import FoundLoss
from cimf.methods.stacked.moments import Moments
from cimf.methods.stacked.output_rows import Outputs, output_columns, with_outputs
from cimf.methods.stacked.row_options import RowOptions, check_rescale


@dataclass(frozen=True)
class RowProblems:
    """The row problems of one network and design, at any kappa.

    Attributes
    ----------
    allowed : (n, N) bool
        Columns that each row may use.
    weights : (N,) or (n, N)
        As `column_weights`.
    rescaled : bool or "layers"
        Whether, and how, the states have units in which the network itself is feasible.
    notes : list of str
        What holds for every kappa.
    """

    reference: Reference
    design: str
    moments: Moments
    allowed: NDArray[np.bool_]
    weights: NDArray[np.float64]
    rescaled: Rescale
    notes: list[str]

    @classmethod
    def of(
        cls, reference: Reference, design: str, rescale: Rescale, moments: Moments | None
    ) -> RowProblems:
        """Return the problems on the moments of the calibration samples, or on those given.

        Raises
        ------
        InputError
            A design without feedback for a teacher that has it; moments of another network or in
            other units.
        """
        check_rescale(rescale)
        reference.check_feedback(design, DESIGNS[design].feedback)
        layout, notes = reference.calibration.layout, network_notes(reference, rescale)
        rescale = rescale if layout.scalable.any() else False
        if moments is None:
            moments = Moments.of(reference, rescale)
        moments.check(reference.digest, reference.scale(rescale))
        n_samples = moments.gram.n_samples
        if n_samples < layout.n_columns:
            notes.append(
                f"{n_samples} calibration samples for {layout.n_columns} columns: rows can fit "
                "the samples by chance; give more samples"
            )
            warn_outside(notes[-1])
        allowed = DESIGNS[design].allowed(layout)
        weights = column_weights(layout, allowed)
        return cls(reference, design, moments, allowed, weights, rescale, notes)

    def sparsified(
        self,
        kappa: float,
        solution: Solution,
        options: RowOptions,
        inactive: int = 0,
        loss: FoundLoss | None = None,
    ) -> Sparsified:
        """Return the model of a solution, (C, D) by least squares, with its report."""
        reference, scale = self.reference, self.moments.scale
        layout = reference.calibration.layout
        units = scale[:, None] / np.concatenate([scale, np.ones(layout.n_inputs)])
        model, wide, state_error, more = with_outputs(
            reference, solution.coef * units, options.refit, options.output_inputs,
            options.tol if self.rescaled else None,
        )  # fmt: skip
        found = Outputs(model, wide, state_error, [*self.notes, *more])
        rows = Rows(self.design, self.rescaled, kappa, self.allowed, solution, inactive, loss)
        shape = layout.n_outputs, layout.n_columns
        pattern = np.broadcast_to(output_columns(layout, options.output_inputs), shape)
        return assembled(reference, rows, found, pattern)
