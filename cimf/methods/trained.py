"""What the methods that train share: labelled samples, a copy on the device, tuning at the end."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cimf.errors import InputError, UnknownNameError
from cimf.methods.base import Task
from cimf.network.expansion import kind_of
from cimf.network.layers import working_dtype
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.norms import align_norms, reset_norms
from cimf.train.objectives import Objective, label_loss
from cimf.train.sparse_pattern import hold, release_zeros
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training, check_whole
from cimf.train.training_report import TrainingReport


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(Training):
    """Options that the methods that train share, beside those of `Training`.

    Attributes
    ----------
    keep : tuple of str
        Layers that stay dense; the others make up for them.
    tune_epochs : int
        Epochs on the labels after the zeros have been chosen, which stay.
    """

    keep: tuple[str, ...] = ()
    tune_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, "tune_epochs")


# What a training run's settings hold already, or stages after it use.
SHARED = {f.name for f in fields(TrainedOptions)}


class Workshop:
    """A copy of a task's network on the device of the options, with the labelled samples.

    Attributes
    ----------
    network : nn.Module
        In training mode, its batch norms aligned with the samples (`align_norms`).
    data : TrainingData
    sizes : dict of str to int
        Weights of every matched layer, by path.

    Raises
    ------
    InputError, UnknownNameError
        Samples or labels that do not fit the network; 16-bit parameters; an unknown layer to keep;
        a network with matrices that are no weight of a linear layer or convolution alone.
    """

    def __init__(self, task: Task, options: TrainedOptions) -> None:
        _refuse(task)
        dtype = working_dtype(task.net)
        self.data: TrainingData = task.once(
            "labelled", lambda: TrainingData.read(task.train, dtype, labelled=True)
        )
        if any(p.dtype.itemsize < 4 for p in task.net.parameters()):
            raise InputError(
                "a network of 16-bit parameters cannot be trained as it is: give network.float()"
            )
        self.data.check(copy.deepcopy(task.net).to("cpu", dtype))
        self.options, self._task = options, task
        self.sizes = {layer.path: layer.n_weights for layer in task.graph.layers}
        for path in options.keep:
            if path not in self.sizes:
                raise UnknownNameError("layer", path, self.sizes)
        self.device = options.where()
        self.network = copy.deepcopy(task.net).to(self.device)
        align_norms(self.network, self.batches())
        self.network.train()

    def batches(self) -> Iterator[Tensor]:
        """Yield the inputs on the device, in order."""
        for inputs in self.data.inputs.split(self.options.batch_size):
            yield inputs.to(self.device)

    def density(self, sparsity: float) -> float:
        """Return the share of the weights of all layers but `keep` that meets the target.

        Raises
        ------
        InputError
            The layers to keep have more weights than the target leaves.
        """
        kept = sum(self.sizes[path] for path in set(self.options.keep))
        total = sum(self.sizes.values())
        left = (1.0 - sparsity) * total - kept
        if left <= 0 or kept == total:
            raise InputError(
                f"the target leaves {round((1.0 - sparsity) * total):,} weights, the layers to "
                f"keep have {kept:,}: lower sparsity, or keep fewer layers",
                options=["sparsity", "keep"],
            )
        return left / (total - kept)

    def label_objective(self, network: nn.Module) -> Objective:
        """Return the label loss of a network on the device."""

        def objective(inputs: Tensor, labels: Tensor | None) -> Tensor:
            assert labels is not None
            return label_loss(network(inputs), labels)

        return objective

    def tune(
        self,
        network: nn.Module,
        objective: Objective | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[TrainingReport]:
        """Train for `tune_epochs` with the zeros held; else only take the norms' statistics."""
        options = self.options
        if not options.tune_epochs:
            reset_norms(network, self.batches())
            return []
        path = options.checkpoint
        later = None if path is None else Path(f"{path}.tuned")
        record = replace(options, epochs=options.tune_epochs, checkpoint=later)
        held = hold(network)
        network.train()
        loss = objective or self.label_objective(network)
        descent = Descent(network, loss, record, len(self.data), held=held)
        report = fit(descent, self.data, record, settings, "tuning")
        release_zeros(network)
        return [report]

    def finished(self, network: nn.Module) -> nn.Module:
        """Return the network on the device and in the modes of the task's."""
        home = next(self._task.net.parameters()).device
        for path, module in self._task.net.named_modules():
            network.get_submodule(path).training = module.training
        return network.to(home)


def _refuse(task: Task) -> None:
    """Refuse networks with matrices that neither gates nor scores of channels reach.

    Raises
    ------
    InputError
    """
    other = "give it to a method that does not train (layered, obs, wanda, ...), then cimf.finetune"
    for path, module in task.net.named_modules():
        if kind_of(module) is not None:
            raise InputError(
                "methods that train take networks of linear layers and convolutions, not layer "
                f"{path or 'the network itself'!r} ({type(module).__name__}): {other}"
            )
    for layer in task.graph.layers:
        if layer.lookups:
            raise InputError(
                f"methods that train take no networks with tied matrices, and layer {layer.path!r} "
                f"shares its with an embedding: {other}"
            )
