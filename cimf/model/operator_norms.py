"""Well-posedness of strictly block-triangular implicit models, from products with |A|."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cimf.errors import InputError
from cimf.network.state_blocks import Block

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OperatorNorms:
    """Well-posedness of an implicit model whose A is strictly block triangular.

    Such an A is nilpotent: the Perron-Frobenius eigenvalue of |A| is 0, the equilibrium exists and
    is unique for any weights, and no norm is needed for that. Row norms say something about the
    units of the states only: in units x = s x~ (Theorem 8) they can be made as small as one likes,
    at the price of ever larger scales. The honest number is that price: the range max s / min s
    that brings every row norm to at most kappa.

    Attributes
    ----------
    kappa : float
    row_norm : Mapping of str to float
        Block -> max_i sum_j |A_ij| over its rows, in the network's own units.
    scale : Mapping of str to float
        Block -> s, one number per block, which keeps every convolution a convolution; the smallest
        s >= 1 that will do.
    rescaled_norm : Mapping of str to float
        Block -> the largest row norm in these units, at most kappa.
    layer_range : float
        max s / min s of `scale`.
    state_range : float
        The same with a scale for every single state: no diagonal rescaling needs a smaller range.
    """

    kappa: float
    row_norm: Mapping[str, float]
    scale: Mapping[str, float]
    rescaled_norm: Mapping[str, float]
    layer_range: float
    state_range: float

    def __str__(self) -> str:
        width = max(len("block"), *map(len, self.row_norm)) + 2 if self.row_norm else 7
        lines = [
            "well-posed for any weights: A is strictly block triangular, the Perron-Frobenius "
            "eigenvalue of |A| is 0",
            f"largest row norm {max(self.row_norm.values(), default=0.0):.4g}; a range of scales "
            f"of {self.layer_range:.3g} (one per block; {self.state_range:.3g} with one per state) "
            f"brings every row norm to at most {self.kappa:g}",
            f"{'block':<{width}}{'row norm':>10}{'scale':>12}{'rescaled':>10}",
        ]
        lines += [
            f"{name:<{width}}{norm:>10.4g}{self.scale[name]:>12.4g}{self.rescaled_norm[name]:>10.4g}"
            for name, norm in self.row_norm.items()
        ]
        return "\n".join(lines)


def operator_norms(
    magnitude: Callable[[Array], Array], blocks: Sequence[Block], kappa: float
) -> OperatorNorms:
    """Return the norms of A and of its rescalings, from products with |A|.

    Parameters
    ----------
    magnitude : (n,) -> (n,)
        |A| s for s >= 0, or an upper bound.
    blocks : sequence of Block
        In row order, A strictly block upper triangular.
    kappa : float
        > 0.

    Raises
    ------
    InputError
        kappa is not positive; or an activation is not positively homogeneous (as ReLU is), so that
        its states cannot be rescaled.
    """
    if not (np.isfinite(kappa) and kappa > 0):
        raise InputError(f"kappa must be a positive number, got {kappa}")
    for block in blocks:
        if not block.activation.positively_homogeneous:
            raise InputError(
                f"block {block.name!r} has activation {block.activation}, which is not positively "
                "homogeneous (as ReLU is): its states cannot be rescaled. A is strictly block "
                "triangular, so the model is well-posed all the same; see row_norms()"
            )
    order = blocks[::-1]  # of execution
    n = sum(block.stop - block.start for block in blocks)
    by_layer, by_state = np.ones(n), np.ones(n)
    for block in order:
        rows = block.rows
        by_layer[rows] = max(1.0, magnitude(by_layer)[rows].max(initial=0.0) / kappa)
        by_state[rows] = np.maximum(1.0, magnitude(by_state)[rows] / kappa)

    def largest(values: Array) -> dict[str, float]:
        return {block.name: float(values[block.rows].max(initial=0.0)) for block in order}

    # The first block needs no scale, so the smallest one is 1.
    return OperatorNorms(
        kappa,
        largest(magnitude(np.ones(n))),
        largest(by_layer),
        largest(magnitude(by_layer) / by_layer),
        float(by_layer.max(initial=1.0)),
        float(by_state.max(initial=1.0)),
    )
