"""Small networks for the demonstration and the experiments, trained reproducibly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cimf.data.datasets import Dataset
from cimf.network.export import save_state
from cimf.runs.provenance import fingerprint
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.objectives import label_loss
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """How a network is trained: AdamW, a one-cycle schedule of the given peak learning rate."""

    epochs: int
    learning_rate: float
    batch_size: int


def mlp(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Return a ReLU network with biases, sizes e.g. (784, 64, 32, 16, 10), seeded."""
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
    schedule: Schedule,
    cache: Path | None = None,
) -> nn.Sequential:
    """Return `mlp(sizes, seed)` trained on `data`, in eval mode; parameters as `trained`."""
    settings = {"sizes": sizes}
    return trained(mlp(sizes, seed), settings, data, seed=seed, schedule=schedule, cache=cache)


def trained(
    net: Net,
    architecture: Mapping[str, Any],
    data: Dataset,
    *,
    seed: int,
    schedule: Schedule,
    cache: Path | None = None,
) -> Net:
    """Train `net` in place on `data`, or load it; return it in eval mode.

    Parameters
    ----------
    architecture : mapping
        What decides the untrained network, beside the seed.
    cache : Path, optional
        Folder in which the network is kept under the fingerprint of data and settings, and from
        which it is loaded the next time. A file that cannot be read is trained anew.
    """
    settings = {"data": data.describe(), **architecture, "seed": seed, **asdict(schedule)}
    path = cache / f"{data.name}-{fingerprint(settings)[:16]}.safetensors" if cache else None
    if path is not None and path.exists():
        try:
            net.load_state_dict(load_file(path))
            return net.eval()
        except (SafetensorError, RuntimeError):
            path.unlink()
    training = Training(
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        optimizer="adamw",
        learning_rate=schedule.learning_rate,
        weight_decay=1e-4,
        seed=seed,
        device="cpu",
    )
    samples = TrainingData(torch.from_numpy(data.train_inputs), torch.from_numpy(data.train_labels))

    def objective(inputs: torch.Tensor, labels: Any) -> torch.Tensor:
        return label_loss(net(inputs), labels)

    fit(Descent(net.train(), objective, training, len(samples)), samples, training)
    if path is not None:
        save_state(net, path)
    return net.eval()


def batches(
    inputs: NDArray[np.float32], labels: NDArray[np.int64], size: int = 1000
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (inputs, labels) pairs of at most `size` samples, in order."""
    return list(
        zip(torch.from_numpy(inputs).split(size), torch.from_numpy(labels).split(size), strict=True)
    )
