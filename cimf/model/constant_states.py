"""States that depend on no input: constants, which the bias can say for whoever reads them."""

from __future__ import annotations

import scipy.sparse

from cimf.errors import InputError
from cimf.model.implicit import ImplicitModel
from cimf.network.state_blocks import apply_blocks


def without_constant_states(model: ImplicitModel) -> ImplicitModel:
    """Return the same function of the input, its constant states read by nobody.

    A state whose row of (A, B) holds nothing but the bias is phi_i(b_i) for every input. What it
    gives to other states and to the outputs goes into their bias, so that its columns of A and C
    are zero; a row that read nothing else is then constant itself, and so on.

    Parameters
    ----------
    model : ImplicitModel
        With a bias.

    Raises
    ------
    InputError
        Without a bias there is no place for the constants.
    """
    if not model.bias:
        raise InputError("a model without a bias has no place for the values of constant states")
    A, B, C, D = (
        matrix.toarray() if scipy.sparse.issparse(matrix) else matrix.copy()
        for matrix in (model.A, model.B, model.C, model.D)
    )
    while True:
        constant = ~(A.any(axis=1) | B[:, :-1].any(axis=1))
        if not (A[:, constant].any() or C[:, constant].any()):
            return ImplicitModel(A, B, C, D, model.blocks, bias=True)
        values = apply_blocks(model.blocks, B[:, -1])[constant]
        for read, bias in ((A, B), (C, D)):
            bias[:, -1] += read[:, constant] @ values
            read[:, constant] = 0.0
