"""The outputs (C, D) of an implicit model whose rows (A, B) are known: problem (5) with l = 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cimf.methods.stacked.captured import Reference, least_squares
from cimf.methods.stacked.tie_break import own_outputs, prefer_own_outputs
from cimf.model import ImplicitModel
from cimf.model.equilibrium import solve_equilibrium
from cimf.network import States

# m N^2 up to which (C, D) are fitted a second time, with all inputs, only to report that accuracy:
# about a second on two cores (0.37 s at 6e9: 10,000 samples, 785 columns).
_CHEAP = 2e10


def with_outputs(
    reference: Reference,
    rows: NDArray[np.float64],
    refit: bool,
    inputs: bool,
    own_tol: float | None,
) -> tuple[ImplicitModel, ImplicitModel | None, list[str]]:
    """Return the model of the rows (A, B), shape (n, N), with (C, D) by least squares.

    Parameters
    ----------
    refit : bool
        Fit to the states that the model itself reaches on the calibration samples, not to the
        captured ones.
    inputs : bool
        Let D use all inputs, not only the bias.
    own_tol : float or None
        Prefer the network's own rows of (C, D) where they are as good, see `prefer_own_outputs`.

    Returns
    -------
    model : ImplicitModel
    wide : ImplicitModel or None
        The variant in which D uses all inputs, where labels make it worth reporting.
    notes : list of str
    """
    states, notes = reference.calibration, []
    n = states.n_states
    A, B = rows[:, :n], rows[:, n:]
    X, usable = states.X, np.ones(states.n_samples, dtype=bool)
    if refit:
        reached = solve_equilibrium(A, B @ states.U, states.blocks)
        X, usable = reached.X, reached.converged
        if usable.sum() < min(states.n_samples, states.n_columns):
            X, usable = states.X, np.ones_like(usable)
            notes.append(
                "too few calibration samples reached an equilibrium: (C, D) fit the captured states"
            )
    regressors, targets = np.concatenate([X, states.U])[:, usable], states.Y[:, usable]
    units = np.linalg.norm(np.concatenate([states.X, states.U]), axis=1)

    def fit(columns: NDArray[np.bool_]) -> NDArray[np.float64]:
        outputs = np.zeros((states.n_outputs, states.n_columns))
        outputs[:, columns] = least_squares(regressors[columns], targets, units[columns])
        return outputs

    def model(outputs: NDArray[np.float64]) -> ImplicitModel:
        return ImplicitModel(A, B, outputs[:, :n], outputs[:, n:], states.blocks, states.bias)

    columns = output_columns(states, inputs)
    outputs = fit(columns)
    if own_tol is not None and not (own := own_outputs(reference))[:, ~columns].any():
        outputs, replaced = prefer_own_outputs(outputs, own, regressors, targets, own_tol)
        if replaced:
            notes.append(
                f"{replaced} rows of (C, D) are the network's own: they fit as well as least "
                "squares, with fewer non-zeros"
            )
    if inputs or reference.labels is None or regressors.size * len(regressors) > _CHEAP:
        return model(outputs), None, notes
    return model(outputs), model(fit(output_columns(states, True))), notes


def output_columns(states: States, inputs: bool) -> NDArray[np.bool_]:
    """Return which columns (C, D) may use: states and bias, or all of them. Shape (N,)."""
    if inputs:
        return np.ones(states.n_columns, dtype=bool)
    return (np.arange(states.n_columns) < states.n_states) | states.free_columns
