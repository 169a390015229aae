"""Tests that a traced network is an implicit model: affine between elementwise nonlinearities.

The network is cut open at its nonlinearities and random values are put in place of the inputs and
of every nonlinearity's output. Node by node, in order of execution, two things are then compared:

* affinity: f(t a + (1 - t) b) = t f(a) + (1 - t) f(b), t = -0.7, at two scales;
* independence: the first samples of a batch give the same values when the batch is cut short.

The first node that fails is named. Max-pooling, softmax, normalisation by sample statistics,
products of activations, unknown nonlinearities, active dropout and batch statistics all fail; an
average pooling, a batch norm in eval mode or a max-pooling over one element pass, as they should.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from cimf.errors import CaptureError
from cimf.network.activations import ACTIVATIONS
from cimf.network.cut import Network, run
from cimf.network.graph import op_name
from cimf.network.state_blocks import Block

# Rounding of the affine pieces of deep networks stays below 1e-12 relative; a nonlinearity that
# matters is far above this.
TOLERANCE = 1e-9
_T = -0.7
_SCALES = (1.0, 1e3)
_SAMPLES, _FEWER = 5, 3

# What is known about operations that fail, by a part of their name.
_REASONS = (
    (
        ("maxpool", "max_pool", "amax", "maximum"),
        "a maximum over several entries is not elementwise; average pooling is affine",
    ),
    (
        ("softmax", "softmin"),
        "it normalises over several entries; let the network return its logits",
    ),
    (
        ("attention", "transformer"),
        "attention multiplies quantities that all depend on the input",
    ),
    (("lstm", "gru", "rnn"), "recurrent layers multiply gates; they are not supported"),
    (
        ("dropout",),
        "it is random even in eval mode; pass training=self.training to the functional form",
    ),
    (
        ("batchnorm", "batch_norm"),
        "it uses the statistics of the batch; it needs track_running_stats=True",
    ),
    (("norm",), "it divides by statistics of the sample itself"),
    (("glu",), "it multiplies two halves of its input"),
    (("prelu",), "only a PReLU with a single slope is the same function for all its states"),
    (
        ("hardshrink", "threshold", "gt", "lt", "ge", "le", "eq", "round", "floor", "sign"),
        "it is discontinuous or compares values",
    ),
)
_PRODUCTS = ("mul", "matmul", "mm", "bmm", "einsum", "truediv", "div", "linear", "bilinear", "pow")


@dataclass(frozen=True)
class Probe:
    """What probing found.

    Attributes
    ----------
    blocks : tuple of Block
        In row order: the last nonlinearity on top.
    output_predecessors : tuple of str
    n_inputs, n_outputs : int
        Of one sample, flattened, without the bias.
    affinity, independence : float
        The largest relative errors of the two tests.
    """

    blocks: tuple[Block, ...]
    output_predecessors: tuple[str, ...]
    n_inputs: int
    n_outputs: int
    affinity: float
    independence: float


def probe(network: Network, input_shape: Sequence[int]) -> Probe:
    """Test `network` on inputs of shape (k, *input_shape).

    Raises
    ------
    CaptureError
        If it cannot be represented; the message names the layer and says why.
    """
    generator = torch.Generator().manual_seed(0)
    first = run(network, _random((_FEWER, *input_shape), generator))
    shapes = [tuple(z.shape[1:]) for z in first.z]
    affinity = independence = 0.0
    for scale in _SCALES:
        worst = _test_nodes(network, input_shape, shapes, scale, generator)
        affinity, independence = max(affinity, worst[0]), max(independence, worst[1])
    names = [name for name, _ in network.cuts.values()]
    edges = _predecessors(network, input_shape, shapes, ["input", *names], generator)
    blocks, stop = [], sum(z[0].numel() for z in first.z)
    for (name, phi), shape, feeding in zip(network.cuts.values(), shapes, edges[:-1], strict=True):
        start = stop - torch.Size(shape).numel()
        blocks.append(Block(name, start, stop, phi, shape, feeding))
        stop = start
    return Probe(
        tuple(reversed(blocks)),
        edges[-1],
        torch.Size(input_shape).numel(),
        first.y[0].numel(),
        affinity,
        independence,
    )


def _random(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _test_nodes(
    network: Network,
    input_shape: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    scale: float,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Return the largest relative errors over all nodes; raise at the first node that fails."""
    a, b = (
        [scale * _random((_SAMPLES, *shape), generator) for shape in (input_shape, *shapes)]
        for _ in range(2)
    )
    mixed = [_T * left + (1 - _T) * right for left, right in zip(a, b, strict=True)]
    fewer = [value[:_FEWER] for value in a]
    lanes = [network.lane(values[0], values[1:]) for values in (a, b, mixed, fewer)]
    affinity = independence = 0.0
    for node in network.graph.walk(*lanes):
        values = [list(_tensors(lane[node])) for lane in lanes]
        around = [node, *node.all_input_nodes]
        size = max(
            (_size(t) for lane in lanes[:3] for n in around for t in _tensors(lane[n])),
            default=0.0,
        )
        if len({tuple(t.shape for t in found) for found in values[:3]}) > 1:
            raise _not_affine(network, node, float("inf"))
        for left, right, mid, short in zip(*values, strict=False):
            error = _relative(mid - (_T * left + (1 - _T) * right), size)
            if not error <= TOLERANCE:
                raise _not_affine(network, node, error)
            affinity = max(affinity, error)
            if left.shape[:1] == (_SAMPLES,) and short.shape == (_FEWER, *left.shape[1:]):
                error = _relative(left[:_FEWER] - short, size)
                if not error <= TOLERANCE:
                    raise CaptureError(
                        f"{network.graph.where(node)} mixes the samples of a batch (relative "
                        f"change {error:.1e} when other samples change): it is no function of one "
                        "sample"
                    )
                independence = max(independence, error)
    return affinity, independence


def _not_affine(network: Network, node: fx.Node, error: float) -> CaptureError:
    called = network.graph.called(node)
    op = op_name(node).lower() if called is None else type(called).__name__.lower()
    reason = next((why for parts, why in _REASONS if any(part in op for part in parts)), "")
    if not reason and error == float("inf"):
        reason = "it gives NaN, infinite values or other shapes for other values"
    if not reason and op.strip("_") in _PRODUCTS:
        reason = "it multiplies or divides quantities that both depend on the input"
    advice = (
        ""
        if reason
        else f"; known activations: {', '.join(ACTIVATIONS)}; a module of your own that applies "
        "one of them elementwise can be declared with activations={ModuleType: name}"
    )
    # What owns matrices of its own is refused there too.
    other = (
        ""
        if called is not None and any(p.ndim > 1 for p in called.parameters())
        else ". cimf.prune leaves it as it is"
    )
    return CaptureError(
        f"{network.graph.where(node)} cannot be represented: "
        + (reason or "it is not one of the known elementwise activations")
        + f" (tested numerically: not affine in its inputs, relative error {error:.1e}{advice})"
        + other
    )


def _predecessors(
    network: Network,
    input_shape: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    names: Sequence[str],
    generator: torch.Generator,
) -> list[tuple[str, ...]]:
    """Return for every block, then for the output, which sources change it directly."""
    base = [_random((1, *shape), generator) for shape in (input_shape, *shapes)]
    found: list[tuple[str, ...]] = [()] * (len(shapes) + 1)
    for k, name in enumerate(names):
        # Sample 0 is the base; in sample 1 source k has another value.
        values = [torch.cat([value, value]) for value in base]
        values[k][1] = _random(values[k].shape[1:], generator)
        opened = run(network, values[0], values[1:])
        for i, target in enumerate((*opened.z, opened.y)):
            if _size(target[1] - target[0]) > TOLERANCE * _size(target):
                found[i] = (*found[i], name)
    return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the numbers in a node's value as float64 tensors."""
    if isinstance(value, torch.Tensor):
        yield value.to(torch.float64)
    elif isinstance(value, float):
        yield torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        for item in value:
            yield from _tensors(item)


def _size(value: torch.Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _relative(difference: torch.Tensor, size: float) -> float:
    """Return max |difference| / size; NaN counts as infinite."""
    error = _size(difference)
    if error == 0.0:
        return 0.0
    return error / size if size > 0 and error == error else float("inf")
