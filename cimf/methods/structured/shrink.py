"""A network without the channels that nobody reads: the same class, smaller matrices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cimf.errors import CaptureError, CimfError, warn_outside
from cimf.methods.structured.channels import SAMPLES, SCALES, clear_unread
from cimf.network.batches import run
from cimf.network.channel_flow import ChannelFlow, TiedChannels, channel_flow
from cimf.network.copies import difference, plain_copy, working_copy
from cimf.network.exported import MATCHED
from cimf.network.graph import as_output
from cimf.network.layers import working_dtype
from cimf.network.trace import trace

# Largest difference between the smaller network and the given one in float64, relative to the
# largest output: rounding of sums in another order is far below, a lost channel far above.
_SAME = 1e-10

Alive = dict[str, NDArray[np.bool_]]


@torch.inference_mode(False)
@torch.no_grad()
def shrink(network: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Return a network without the channels that nobody reads.

    A channel goes where all weights that read it are zero, or where it is zero for every input,
    with everything that is tied to it: the rows of the layers that make it, its places in batch
    norms, the columns of those that read it. Sums, products, concatenations, flattening, pooling
    and depthwise convolutions are followed; channels that reach the output, or that anything else
    mixes (layer norm, attention heads) or fills up (a shortcut that pads) stay.

    Parameters
    ----------
    network : nn.Module
        With exact zeros; not modified.
    batches : sequence of (b, ...)
        Samples on which the two networks are compared, beside random ones.

    Returns
    -------
    nn.Module
        Of the same class, dtype, device and mode, without anything of this library. Equal to
        `network` in eval mode up to the order of sums.

    Raises
    ------
    CaptureError
        The network cannot be traced, or the smaller one is not the same function: its forward pass
        counts on the number of channels.

    Warns
    -----
    UserWarning
        Zero channels stay, with the reason by layer; nothing could be taken out; layers that are
        not called in eval mode are left as they are.
    """
    small = plain_copy(network)
    sample = batches[0][:SAMPLES]
    clear_unread(small, sample)
    dtype = working_dtype(small)
    reference = working_copy(small, dtype)
    sample = sample.to(dtype) if sample.is_floating_point() else sample
    flow = channel_flow(trace(reference, dtype, sample), sample)
    modules: dict[str, Any] = dict(small.named_modules())
    rows, columns, norms = _alive(flow, modules)
    _warn(flow, modules, rows)
    for path, alive in rows.items():
        _cut(modules[path], torch.from_numpy(alive), torch.from_numpy(columns[path]))
    for path, alive in norms.items():
        _cut_norm(modules[path], torch.from_numpy(alive))
    _check(small, network, batches)
    return small


def _alive(flow: ChannelFlow, modules: dict[str, Any]) -> tuple[Alive, Alive, Alive]:
    """Return which rows, columns (along axis 1 of the weight) and places of norms stay."""
    used = {path: modules[path].weight for path in (*flow.held, *_paths(flow, "rows"))}
    nonzero = {p: (w != 0).reshape(*w.shape[:2], -1).any(2).cpu().numpy() for p, w in used.items()}
    rows = {path: np.ones(len(weight), bool) for path, weight in used.items()}
    columns = {path: np.ones(weight.shape[1], bool) for path, weight in used.items()}
    norms = {path: np.ones(modules[path].num_features, bool) for path in _paths(flow, "norms")}

    def goes(group: TiedChannels) -> bool:
        read = any(nonzero[p][np.ix_(rows[p], c)].any() for p, c in group.columns.items())
        # Nothing is emptied: the last channels of a layer stay, whoever reads them.
        last = any(rows[p].sum() == len(r) for p, r in group.rows.items())
        return not read and not last

    left, before = list(flow.groups), -1
    while len(left) != before:  # what one channel read may be unread once it has gone
        before = len(left)
        for group in list(left):
            if goes(group):
                left.remove(group)
                for alive, members in (
                    (rows, group.rows),
                    (columns, group.columns),
                    (norms, group.norms),
                ):
                    for path, index in members.items():
                        alive[path][index] = False
    return rows, columns, norms


def _paths(flow: ChannelFlow, kind: str) -> dict[str, None]:
    """Return the paths of all layers, or norms, that the groups touch, each once and in order."""
    return {path: None for group in flow.groups for path in getattr(group, kind)}


def _cut(module: Any, rows: Tensor, columns: Tensor) -> None:
    """Leave some rows and columns in a layer."""
    _select(module, "weight", rows)
    if module.bias is not None:
        _select(module, "bias", rows)
    count, read = int(rows.sum()), int(columns.sum())
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = count, read
    else:
        if module.groups > 1:  # depthwise, or all rows stay
            module.groups = module.groups * count // module.out_channels
        module.out_channels, module.in_channels = count, read * module.groups
    module.weight = nn.Parameter(
        module.weight.detach()[:, columns.to(module.weight.device)].contiguous(),
        module.weight.requires_grad,
    )


def _cut_norm(norm: Any, channels: Tensor) -> None:
    """Leave some channels in a batch norm."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(norm, name) is not None:
            _select(norm, name, channels)
    norm.num_features = int(channels.sum())


def _select(module: Any, name: str, alive: Tensor) -> None:
    """Keep some entries of a parameter or buffer along its first axis."""
    value = getattr(module, name)
    new = value.detach()[alive.to(value.device)].clone()
    if isinstance(value, nn.Parameter):
        new = nn.Parameter(new, value.requires_grad)
    setattr(module, name, new)


def _warn(flow: ChannelFlow, modules: dict[str, Any], rows: Alive) -> None:
    """Say what stays although it is zero, and what was not looked at."""
    if all(alive.all() for alive in rows.values()):
        warn_outside("nothing to shrink: every channel that can be taken out is read by something")
    zero = []
    for path, alive in rows.items():
        empty = (modules[path].weight.flatten(1) == 0).all(1).cpu().numpy() & alive
        if empty.any():
            why = flow.held.get(path, "a bias, or a sum that they are part of, is not zero")
            zero.append(f"{int(empty.sum())} of layer {path} ({why})")
    if zero:
        warn_outside(f"channels without a non-zero weight that stay: {'; '.join(zero)}")
    uncalled = [p for p, m in modules.items() if isinstance(m, MATCHED) and p not in rows]
    if uncalled:
        warn_outside(
            f"layers that are not called in eval mode keep their size: {', '.join(uncalled)}"
        )


def _check(small: nn.Module, network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Compare with the given network in float64, on random inputs and on all that are given."""
    one, two = (working_copy(net, torch.float64) for net in (small, network))
    for u in _trials(batches):
        try:
            found = as_output(run(one, u, "calibration"), len(u))
        except CimfError as error:
            raise CaptureError(
                "the forward pass counts on the number of channels, so that the smaller network "
                f"does not run ({error}): take sizes from the tensors, x.flatten(1) say"
            ) from error
        expected = as_output(run(two, u, "calibration"), len(u))
        if found.shape != expected.shape or not difference(found, expected) <= _SAME:
            raise CaptureError(
                "the smaller network is another function: its forward pass counts on the number "
                "of channels, or mixes them in a way that random inputs do not show"
            )


def _trials(batches: Sequence[Tensor]) -> Iterator[Tensor]:
    sample = batches[0][:SAMPLES]
    if not sample.is_floating_point():
        yield from batches
        return
    generator = torch.Generator().manual_seed(0)
    for scale in SCALES:
        yield scale * torch.randn(sample.shape, generator=generator, dtype=torch.float64)
    for batch in batches:
        yield batch.double()
