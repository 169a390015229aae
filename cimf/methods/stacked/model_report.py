"""What a sparse model is worth: certificate, non-zeros, matching errors, equilibrium, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.judge import NonZeros, Solution
from cimf.methods.stacked.captured import Reference, Rescale, n_correct, units_in_words
from cimf.methods.stacked.found import Found, FoundSensitivity
from cimf.methods.stacked.tie_break import OWN
from cimf.model import ImplicitModel, Wellposedness
from cimf.network.state_blocks import Block, some_rows
from cimf.runs.numbers import shortest


@dataclass(frozen=True)
class Evaluation:
    """A model run by its own equilibrium, not by the captured states, on the evaluation samples.

    Attributes
    ----------
    samples, converged : int
        How many samples were run, and how many reached an equilibrium.
    worst_residual : float
        Largest fixed-point residual over the samples (see `cimf.model.Equilibrium`).
    state_drift : Mapping[str, float]
        Block -> ||X_model - X_network||_F / ||X_network||_F.
    output_error : float
        ||Y_model - Y_network||_F / ||Y_network||_F.
    accuracy, accuracy_with_inputs : float or None
        On labelled test samples: of the model, and of the same model with D fitted on all inputs
        as well (where that was computed), which mixes the control in.
    """

    samples: int
    converged: int
    worst_residual: float
    state_drift: Mapping[str, float]
    output_error: float
    accuracy: float | None
    accuracy_with_inputs: float | None


@dataclass(frozen=True)
class Report:
    """Everything about one sparse model that a table or a reader needs.

    Attributes
    ----------
    design, rescale, kappa
        The row problems that were solved.
    solution : Solution
        Rows of (A, B) in the units in which they were solved, with their certificate.
    inactive : int
        Rows whose ball is inactive (multiplier 0): every least-squares solution inside the ball is
        optimal, and the non-zeros counted are those of one of them.
    nonzeros : NonZeros
    wellposedness : Wellposedness
    state_error : Mapping[str, float]
        Block -> ||Z - (A X + B U)||_F / ||Z||_F on the calibration states: what was minimised.
    evaluation : Evaluation
    dense_accuracy, control_accuracy : float or None
        Of the network itself, and of the linear map from the input alone.
    notes : tuple[str, ...]
        What a reader must know before using a number of this report.
    loss : FoundLoss, FoundSensitivity or None
        Where a loss was minimised beside the misfit. Of the sensitivity, kappa is its budget, as a
        share of the network's (NaN: none, a penalty); else infinity stands for no ball.
    """

    design: str
    rescale: Rescale
    kappa: float
    solution: Solution
    inactive: int
    nonzeros: NonZeros
    wellposedness: Wellposedness
    state_error: Mapping[str, float]
    evaluation: Evaluation
    dense_accuracy: float | None
    control_accuracy: float | None
    notes: tuple[str, ...] = ()
    loss: Found | None = None

    @property
    def sensitivity(self) -> FoundSensitivity | None:
        """What the sensitivity objective reached, where it was the loss."""
        return self.loss if isinstance(self.loss, FoundSensitivity) else None

    @property
    def certified(self) -> int:
        """Number of rows that passed their certificate."""
        return int(self.solution.certificate.passed.sum())

    @property
    def methods(self) -> dict[str, int]:
        """Solver -> number of rows that it solved."""
        names, counts = np.unique(self.solution.method, return_counts=True)
        return {str(name): int(count) for name, count in zip(names, counts, strict=True)}

    def row(self) -> dict[str, Any]:
        """Return the report as one tidy row: plain numbers and strings by name."""
        sparsity = self.nonzeros.sparsity
        run = self.evaluation
        return {
            "design": self.design,
            "rescale": self.rescale,
            "kappa": self.kappa,
            "accuracy": run.accuracy,
            "accuracy_with_inputs": run.accuracy_with_inputs,
            "dense_accuracy": self.dense_accuracy,
            "control_accuracy": self.control_accuracy,
            **{f"sparsity_{name}": value for name, value in sparsity.items()},
            "nonzero_weights": self.nonzeros.weights,
            "nonzero_weights_ab": int(self.nonzeros.per_row[: len(self.solution.gap)].sum()),
            "nonzero_biases": self.nonzeros.biases,
            "emptied_rows": len(self.nonzeros.emptied),
            "state_error": max(self.state_error.values(), default=0.0),
            "state_drift": max(run.state_drift.values(), default=0.0),
            "output_error": run.output_error,
            "evaluated": run.samples,
            "converged": run.converged,
            "worst_residual": run.worst_residual,
            "wellposed": self.wellposedness.condition,
            "wellposed_margin": self.wellposedness.margin,
            "rows": len(self.solution.gap),
            "certified": self.certified,
            "inactive_rows": self.inactive,
            "worst_gap": self.solution.certificate.worst_gap,
            "worst_violation": float(self.solution.violation.max(initial=0.0)),
            "methods": " ".join(f"{name}:{count}" for name, count in self.methods.items()),
            **(self.loss.columns() if self.loss else {}),
        }

    def _ties(self) -> list[str]:
        """Say where an optimum need not be the only one."""
        lines = []
        if limited := int(self.solution.certificate.limited.sum()):
            lines.append(
                f"limited       {limited} rows are matched to the rounding of their moments beside "
                "their free columns, which certifies nothing"
            )
        if self.inactive:
            lines.append(
                f"inactive ball {self.inactive} of {len(self.solution.gap)} rows (multiplier 0): "
                "their optimum may not be unique; the non-zeros are those of one solution"
            )
        if own := self.methods.get(OWN, 0):
            lines.append(
                f"own rows      {own} rows of (A, B) are the network's own: certified as well, and "
                "with fewer non-zeros than the solver's"
            )
        return lines

    def __str__(self) -> str:
        run, row = self.evaluation, self.row()
        lines = [
            f"{_ball(self.kappa)}, design {self.design}, states {units_in_words(self.rescale)}",
            f"certificate   {self.certified} of {row['rows']} rows certified at "
            f"{self.solution.certificate.tol:g}, worst gap {row['worst_gap']:.1e}, "
            f"worst violation {row['worst_violation']:.1e} ({row['methods']})",
            *self._ties(),
            *([str(self.loss)] if self.loss else []),
            f"well-posed    {self.wellposedness}",
            f"equilibrium   {run.converged} of {run.samples} samples converged, worst residual "
            f"{run.worst_residual:.1e}",
            f"output error  {run.output_error:.4f} (relative, against the network)",
        ]
        if run.accuracy is not None:
            lines.append(
                f"accuracy      {run.accuracy:.2%}; the network itself {self.dense_accuracy:.2%}; "
                f"control (linear map from the input alone) {self.control_accuracy:.2%}"
            )
        if run.accuracy_with_inputs is not None:
            lines.append(f"              {run.accuracy_with_inputs:.2%} with D on all inputs")
        lines.append(
            f"non-zeros     {self.nonzeros.weights:,} weights, {self.nonzeros.biases:,} biases; "
            "sparsity against "
            + ", ".join(
                f"{name.replace('_', ' ')} {value:.2%}"
                for name, value in self.nonzeros.sparsity.items()
            )
        )
        for block in self.nonzeros.blocks:
            text = f"  block {block.name}: {block.weights:,} weights in {block.rows} rows"
            if block.name in self.state_error:
                text += (
                    f", state error {self.state_error[block.name]:.4f}, drift of the equilibrium "
                    f"{run.state_drift[block.name]:.4f}"
                )
            if block.emptied:
                text += f", {len(block.emptied)} emptied rows: {some_rows(block.emptied)}"
            lines.append(text)
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _ball(kappa: float) -> str:
    """Return the ball or budget in words."""
    if np.isnan(kappa):
        return "no budget"
    return f"kappa {shortest(kappa)}" if np.isfinite(kappa) else "no ball"


def evaluate(
    model: ImplicitModel, reference: Reference, wide: ImplicitModel | None = None
) -> Evaluation:
    """Run `model` by its equilibrium on the evaluation samples of `reference`.

    Parameters
    ----------
    model : ImplicitModel
    reference : Reference
    wide : ImplicitModel, optional
        The same (A, B) with D on all inputs.
    """
    samples = reference.evaluation
    blocks = samples.layout.blocks
    drift, error = np.zeros((len(blocks), 2)), np.zeros(2)
    converged, worst, correct, correct_wide = 0, 0.0, 0, 0
    for states, labels in samples.labelled():
        reached = model.equilibrium(states.U)
        outputs = model.output(reached.X, states.U)
        converged += int(reached.converged.sum())
        worst = max(worst, float(reached.residual.max(initial=0.0)))
        drift += block_misfits(blocks, states.X, reached.X)
        error += misfit(states.Y, outputs)
        correct += n_correct(outputs, labels)
        if wide is not None:
            correct_wide += n_correct(wide.output(reached.X, states.U), labels)
    labelled = samples.labels is not None
    return Evaluation(
        samples=samples.n_samples,
        converged=converged,
        worst_residual=worst,
        state_drift=relative_errors(blocks, drift),
        output_error=relative_error(error),
        accuracy=correct / samples.n_samples if labelled else None,
        accuracy_with_inputs=(
            correct_wide / samples.n_samples if labelled and wide is not None else None
        ),
    )


def doubts(
    model: ImplicitModel,
    run: Evaluation,
    control: float | None,
    remedies: Sequence[str],
    deep: bool,
) -> list[str]:
    """Say what makes a model worth little, although each of its rows is optimal.

    Parameters
    ----------
    control : float or None
        Accuracy of the linear map from the input alone.
    remedies : sequence of str
        What may help, the likeliest first.
    deep : bool
        Whether states of what is matched read each other.
    """
    notes = []
    if deep and not model.A.any():
        notes.append(
            "A is zero: no state reads another, so that the model is one layer of the input; give "
            f"{remedies[0]}"
        )
    if run.accuracy is not None and control is not None and run.accuracy <= control:
        notes.append(
            f"the accuracy, {run.accuracy:.2%}, is not above that of a linear map from the input "
            f"alone, {control:.2%}: the states add nothing; give {', or '.join(remedies)}"
        )
    return notes


def misfit(truth: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ||value - truth||_F^2 and ||truth||_F^2, shape (2,); samples in parts add up."""
    # The sum of squares as np.linalg.norm takes it, to the bit.
    flat = [array.ravel(order="K") for array in (value - truth, truth)]
    return np.array([v.dot(v) for v in flat])


def relative_error(misfit: NDArray[np.float64]) -> float:
    """Return ||value - truth||_F / ||truth||_F of a `misfit`; absolute where the truth is zero."""
    distance, size = np.sqrt(misfit)
    return float(distance / (size or 1.0))


def block_misfits(
    blocks: Sequence[Block], truth: NDArray[np.float64], value: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the `misfit` of every block's rows, shape (blocks, 2); truth and value are (n, m)."""
    return np.array([misfit(truth[block.rows], value[block.rows]) for block in blocks])


def relative_errors(blocks: Sequence[Block], misfits: NDArray[np.float64]) -> dict[str, float]:
    """Return block -> relative Frobenius error, of the sum of `block_misfits`."""
    return {block.name: relative_error(row) for block, row in zip(blocks, misfits, strict=True)}
