"""How far the equilibrium moves when the input does: |dX| <= (I - L |A|)^{-1} L |B| |dU|.

Entry by entry, for activations with Lipschitz constants L and a Perron-Frobenius eigenvalue of
L |A| below 1: |dx| <= L (|A| |dx| + |B| |du|), and (I - L |A|)^{-1} is non-negative. So is what
follows for the outputs, |dY| <= S |dU| with S = |C| (I - L |A|)^{-1} L |B| + |D| (El Ghaoui et al.,
Implicit deep learning, 2021, section 4).

Both are upper bounds in spite of rounding: a sweep through an acyclic A is rounded upward, and with
feedback no solution of a linear system is believed: w >= L |A| w + d is checked, rounding included,
and so is a v > L |A| v > 0, which proves the eigenvalue to be below 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.model.wellposed import levels
from cimf.network.activation_bounds import check_lipschitz
from cimf.network.state_blocks import Block, lipschitz_rows

Array = NDArray[np.float64]

_NOT_PROVED = (
    "the model is not proved to have one equilibrium for every input: the Perron-Frobenius "
    "eigenvalue of L |A|, L the Lipschitz constants of the activations, is not below 1"
)
# Matrices of at most this many bytes are multiplied dense, if they are not mostly zeros.
_DENSE_BYTES = 1e8


def product_rounding(length: int) -> float:
    """Return c: a computed sum of `length` products differs by at most c sum |a_j| |b_j|.

    In any order of summation, with one more rounding of every a_j and b_j; four times what is
    needed, so that |a_j| |b_j| may be summed in floating point too.
    """
    return 2.0 * (length + 16) * float(np.finfo(np.float64).eps)


def working_matrix(matrix: Any) -> Any:
    """Return a matrix in the form that is multiplied faster: dense, or CSR."""
    if not scipy.sparse.issparse(matrix):
        return matrix
    size = int(np.prod(matrix.shape))
    if 8 * size <= _DENSE_BYTES and matrix.nnz > 0.05 * size:
        return matrix.toarray()
    return scipy.sparse.csr_array(matrix)


class StateGain:
    """Upper bounds of w = L |A| w + d: how far states move where their equations move by d.

    Parameters
    ----------
    A : (n, n)
    blocks : sequence of Block

    Raises
    ------
    InputError
        An activation without a Lipschitz constant; the eigenvalue is not proved to be below 1.
    """

    def __init__(self, A: Any, blocks: Sequence[Block]) -> None:
        for block in blocks:
            check_lipschitz(block.name, block.activation)
        n = A.shape[0]
        self.lipschitz = lipschitz_rows(blocks, n)
        self._up = 1.0 + product_rounding(n)
        magnitude = abs(scipy.sparse.csr_array(A))
        order = levels(magnitude)
        self._matrix = working_matrix(scipy.sparse.diags_array(self.lipschitz) @ magnitude)
        self._stages = None if order is None else [(rows, self._matrix[rows]) for rows in order]
        if order is None:
            # A little more than the matrix itself: then w is a bound as it is solved for, nearly
            # always, and what nothing reaches stays exactly 0.
            self._solve = _solver((4.0 * self._up - 3.0) * self._matrix)
            v = self._solve(np.ones((n, 1)))
            self._margin = (2.0 - self._up) * v - self._up * (self._matrix @ v)
            if not ((v > 0.0).all() and (self._margin > 0.0).all()):
                raise InputError(_NOT_PROVED)
            self._v = v

    def radius(self, d: Array) -> Array:
        """Return w (n, k) with w >= L |A| w + d for d >= 0 (n, k).

        Then |e| <= w for every e with |e| <= L |A| |e| + d.
        """
        if self._stages is not None:
            w = np.zeros_like(d)
            for rows, part in self._stages:
                w[rows] = self._up * (part @ w + d[rows])
            return w
        w = np.maximum(self._solve(d), 0.0)
        missing = np.maximum(self._up * (self._matrix @ w + d) - w, 0.0)
        share = (missing / self._margin).max(axis=0)
        return self._up * (w + self._up * share * self._v)


def _solver(matrix: Any) -> Callable[[Array], Array]:
    """Return d -> (I - matrix)^{-1} d."""
    n = matrix.shape[0]
    try:
        if scipy.sparse.issparse(matrix):
            system = scipy.sparse.eye_array(n, format="csc") - matrix.tocsc()
            return scipy.sparse.linalg.splu(system).solve
        return np.linalg.inv(np.eye(n) - matrix).__matmul__
    except (np.linalg.LinAlgError, RuntimeError) as error:  # exactly singular
        raise InputError(_NOT_PROVED) from error


def sensitivity(matrices: tuple[Any, Any, Any, Any], blocks: Sequence[Block], bias: bool) -> Array:
    """Return S (q, p); see `cimf.ImplicitModel.sensitivity`."""
    A, B, C, D = matrices
    gain = StateGain(A, blocks)
    inputs, outputs, direct = (
        m.toarray() if scipy.sparse.issparse(m) else m.copy() for m in (abs(B), abs(C), abs(D))
    )
    if bias:
        inputs[:, -1] = direct[:, -1] = 0.0
    outward = 1.0 + product_rounding(sum(B.shape))
    states = gain.radius(outward * gain.lipschitz[:, None] * inputs)
    out = outward * (outputs @ states + direct)
    if bias:
        out[:, -1] = 0.0
    return out
