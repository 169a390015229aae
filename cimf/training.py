"""Small networks for the demonstration and the experiments, trained reproducibly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cimf.datasets import Dataset
from cimf.files import atomic_path
from cimf.provenance import fingerprint
from cimf.terminal import progress_bar


def mlp(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Return a ReLU network with biases, sizes e.g. (784, 64, 32, 16, 10), initialised by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def trained_mlp(
    sizes: Sequence[int],
    data: Dataset,
    *,
    seed: int,
    epochs: int,
    learning_rate: float,
    batch_size: int = 128,
    cache: Path | None = None,
) -> nn.Sequential:
    """Return `mlp(sizes, seed)` trained on `data`, in eval mode.

    Parameters
    ----------
    cache : Path, optional
        Folder in which the network is kept under the fingerprint of data and settings, and from
        which it is loaded the next time. A file that cannot be read is trained anew.
    """
    net = mlp(sizes, seed)
    settings = {
        "data": data.describe(),
        "sizes": sizes,
        "training": [seed, epochs, learning_rate, batch_size],
    }
    path = cache / f"{data.name}-{fingerprint(settings)[:16]}.safetensors" if cache else None
    if path is not None and path.exists():
        try:
            net.load_state_dict(load_file(path))
            return net.eval()
        except (SafetensorError, RuntimeError):
            path.unlink()
    with progress_bar("training", epochs) as progress:
        _train(net, data, seed, epochs, learning_rate, batch_size, progress)
    if path is not None:
        with atomic_path(path) as temporary:
            save_file(net.state_dict(), temporary)
    return net.eval()


def _train(
    net: nn.Module,
    data: Dataset,
    seed: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    progress: Callable[[int], None],
) -> None:
    """Minimise the cross-entropy in place by AdamW with a one-cycle schedule."""
    inputs, labels = torch.from_numpy(data.train_inputs), torch.from_numpy(data.train_labels)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=learning_rate, total_steps=epochs * -(-len(labels) // batch_size)
    )
    net.train()
    for epoch in range(epochs):
        for index in torch.randperm(len(labels), generator=generator).split(batch_size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(inputs[index]), labels[index]).backward()
            optimiser.step()
            schedule.step()
        progress(epoch + 1)


def batches(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], size: int = 1000
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (inputs, labels) pairs of at most `size` samples, in order."""
    return list(
        zip(torch.from_numpy(inputs).split(size), torch.from_numpy(labels).split(size), strict=True)
    )
