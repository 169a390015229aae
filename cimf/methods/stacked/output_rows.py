"""The outputs (C, D) of an implicit model whose rows (A, B) are known: problem (5) with l = 0."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cimf.methods.stacked.captured import Pair, Reference, joined, least_squares
from cimf.methods.stacked.model_report import block_misfits, relative_errors
from cimf.methods.stacked.samples import Samples
from cimf.methods.stacked.tie_break import own_outputs, prefer_own_outputs
from cimf.model import ImplicitModel
from cimf.model.equilibrium import solve_equilibrium
from cimf.network.states import States

# m N^2 up to which (C, D) are fitted a second time, with all inputs, only to report that accuracy:
# about a second on two cores (0.37 s at 6e9: 10,000 samples, 785 columns).
_CHEAP = 2e10


class Outputs(NamedTuple):
    """A model whose (C, D) were fitted, and what its fit found out.

    Attributes
    ----------
    model : ImplicitModel
    wide : ImplicitModel or None
        The variant in which D uses all inputs, where labels make it worth reporting.
    state_error : dict
        Block -> ||Z - (A X + B U)||_F / ||Z||_F on the calibration samples.
    notes : list of str
    """

    model: ImplicitModel
    wide: ImplicitModel | None
    state_error: dict[str, float]
    notes: list[str]


def with_outputs(
    reference: Reference,
    rows: NDArray[np.float64],
    refit: bool,
    inputs: bool,
    own_tol: float | None,
) -> Outputs:
    """Return the model of the rows (A, B), shape (n, N), with (C, D) by least squares.

    The network and the model are run over the calibration samples together, chunk by chunk.

    Parameters
    ----------
    refit : bool
        Fit to the states that the model itself reaches on the calibration samples, not to the
        captured ones.
    inputs : bool
        Let D use all inputs, not only the bias.
    own_tol : float or None
        Prefer the network's own rows of (C, D) where they are as good, see `prefer_own_outputs`.
    """
    samples, notes = reference.calibration, []
    layout = samples.layout
    n = layout.n_states
    A, B = rows[:, :n], rows[:, n:]
    columns, every = output_columns(layout, inputs), output_columns(layout, True)
    cheap = samples.n_samples * layout.n_columns**2 <= _CHEAP
    wide = cheap and reference.labels is not None and not inputs
    used = every if wide else columns
    problem, state_error, usable = fit_problem(samples, A, B, used, refit)
    if usable < min(samples.n_samples, layout.n_columns):
        problem, *_ = fit_problem(samples, A, B, used, refit=False)
        notes.append(
            "too few calibration samples reached an equilibrium: (C, D) fit the captured states"
        )
    regressors, targets = problem
    units = np.sqrt(samples.squares)

    def fit(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        outputs = np.zeros((layout.n_outputs, layout.n_columns))
        outputs[:, chosen] = least_squares(regressors[chosen[used]], targets, units[chosen])
        return outputs

    def model(outputs: NDArray[np.float64]) -> ImplicitModel:
        return ImplicitModel(A, B, outputs[:, :n], outputs[:, n:], layout.blocks, layout.bias)

    outputs = fit(columns)
    if own_tol is not None and not (own := own_outputs(reference))[:, ~columns].any():
        outputs[:, used], replaced = prefer_own_outputs(
            outputs[:, used], own[:, used], regressors, targets, own_tol
        )
        if replaced:
            notes.append(
                f"{replaced} rows of (C, D) are the network's own: they fit as well as least "
                "squares, with fewer non-zeros"
            )
    return Outputs(model(outputs), model(fit(every)) if wide else None, state_error, notes)


def fit_problem(
    samples: Samples,
    A: NDArray[np.float64],
    B: NDArray[np.float64],
    used: NDArray[np.bool_],
    refit: bool,
) -> tuple[Pair, dict[str, float], int]:
    """Run network and model over the samples.

    Returns
    -------
    problem
        The `used` rows of the states that the model reaches (of the captured states without
        `refit`) and of the inputs, and the outputs to be fitted.
    state_error
        As `Outputs`.
    usable : int
        Number of samples in the problem: those that reached an equilibrium.
    """
    blocks = samples.layout.blocks
    problem: Pair | None = None
    misfits, usable = np.zeros((len(blocks), 2)), 0
    for states in samples.chunks():
        part, misfit = _run_chunk(states, A, B, used, refit)
        misfits += misfit
        usable += part[1].shape[1]
        problem = part if problem is None else joined(problem, part)
    assert problem is not None  # no samples: refused by `Samples.capture`
    return problem, relative_errors(blocks, misfits), usable


def _run_chunk(
    states: States,
    A: NDArray[np.float64],
    B: NDArray[np.float64],
    used: NDArray[np.bool_],
    refit: bool,
) -> tuple[Pair, NDArray[np.float64]]:
    """Return the problem and the misfits of one chunk; the rest is freed before the next one."""
    misfits = block_misfits(states.blocks, states.Z, A @ states.X + B @ states.U)
    X, keep = states.X, np.ones(states.n_samples, dtype=bool)
    if refit:
        found = solve_equilibrium(A, B @ states.U, states.blocks)
        X, keep = found.X, found.converged
    return (np.concatenate([X, states.U])[used][:, keep], states.Y[:, keep]), misfits


def output_columns(states: States, inputs: bool) -> NDArray[np.bool_]:
    """Return which columns (C, D) may use: states and bias, or all of them. Shape (N,)."""
    if inputs:
        return np.ones(states.n_columns, dtype=bool)
    return (np.arange(states.n_columns) < states.n_states) | states.free_columns
