"""What one sample costs a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cimf.errors import InputError
from cimf.network.batches import as_batches, run
from cimf.network.layers import working_dtype
from cimf.train.norms import eval_mode


@torch.no_grad()
def multiply_adds(network: nn.Module, inputs: Tensor) -> int:
    """Return the multiply-adds of all matrix products and convolutions on one sample.

    Counted as they are run in eval mode, whatever module or function asks for them: zeros included,
    and the products of attention and of recurrent cells. Elementwise work is not counted.

    Parameters
    ----------
    network : nn.Module
        Any; left as it is.
    inputs : (b, ...)
        The first sample is run, on the network's device.

    Raises
    ------
    InputError
        What is no network; no samples, or such as do not fit the network.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(network).__name__}")
    parameter = next(network.parameters(), torch.empty(0))
    sample = as_batches(inputs, working_dtype(network), "given")[0][:1].to(parameter.device)
    counter = FlopCounterMode(display=False)
    with eval_mode(network), _unfused(), counter:
        run(network, sample, "given")
    return int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Run the block without the fused kernels of attention and recurrent cells.

    The counter does not know them.
    """
    mha: Any = torch.backends.mha
    mkldnn: Any = torch.backends.mkldnn
    before = mha.get_fastpath_enabled(), mkldnn.enabled
    mha.set_fastpath_enabled(False)
    mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before[0])
        mkldnn.enabled = before[1]
