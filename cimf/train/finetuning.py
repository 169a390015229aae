"""Fine-tuning: a sparse network is trained on, its zeros stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from cimf.errors import InputError, UnknownNameError
from cimf.network.batches import as_list
from cimf.network.copies import plain_copy
from cimf.network.expansion import kind_of
from cimf.network.layers import LayerGraph, working_dtype
from cimf.network.second_entries import second_entries
from cimf.train.descent import Descent
from cimf.train.loop import fit, with_notes
from cimf.train.norms import align_norms, freeze_norms
from cimf.train.objectives import (
    Objective,
    StateMatching,
    distillation_loss,
    label_loss,
    relative_error,
)
from cimf.train.sparse_pattern import hold, release_zeros
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training, check_numbers
from cimf.train.training_report import TrainingReport

_LOSSES = ("labels", "distillation", "outputs", "states")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Training):
    """Options of `cimf.finetune`, beside those of `Training`.

    Attributes
    ----------
    loss : str, optional
        "labels": cross-entropy of classes, mean squared error of real targets; "distillation": the
        teacher's softened classes; "outputs": the relative squared error of the teacher's outputs,
        for networks that are no classifiers; "states": that of every layer's pre-activation and of
        the outputs. Default: "distillation" where there is a teacher, else "labels".
    label_weight : float
        Share of the label loss beside a teacher's, in [0, 1]. At 0, labels are not looked at.
    temperature : float
        Of the distillation.
    norms : str
        "train": batch norms use the batch's statistics and update their own, after these were set
        to those of the data without a change of the function; "frozen": their statistics stay.
    """

    loss: str | None = None
    label_weight: float = 0.0
    temperature: float = 2.0
    norms: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "temperature", positive=True)
        check_numbers(self, "label_weight")
        if self.label_weight > 1.0:
            raise InputError(f"label_weight must be in [0, 1], got {self.label_weight!r}")
        if self.loss not in (None, *_LOSSES):
            raise UnknownNameError("loss", self.loss, _LOSSES)
        if self.loss == "states" and self.label_weight > 0.0:
            raise InputError("label_weight goes with the losses 'distillation' and 'outputs'")
        if self.norms not in ("train", "frozen"):
            raise UnknownNameError("treatment of norms", self.norms, ("train", "frozen"))


@dataclass(frozen=True)
class Finetuned:
    """A network that was trained on.

    Attributes
    ----------
    network : nn.Module
        Of the same class, with the same zeros.
    report : TrainingReport
    """

    network: nn.Module
    report: TrainingReport

    def __repr__(self) -> str:
        return f"Finetuned({type(self.network).__name__}, {len(self.report.epochs)} epochs)"


def finetune(
    network: Any,
    batches: Any,
    teacher: nn.Module | None = None,
    epochs: int = 10,
    **options: Any,
) -> Finetuned:
    """Train a sparse network on; every weight that is zero stays exactly zero.

    Parameters
    ----------
    network : nn.Module, or what `cimf.prune` or `finetune` returned
        Not modified. Its convolution and linear weights, and those of attention and of recurrent
        layers, keep their zeros, and so do the biases of rows that are zero, and batch norms where
        scale and shift are: channels that are gone stay so. Everything else that requires a
        gradient is trained.
    batches : iterable
        Input tensors with a teacher, (input, label) pairs without. All samples are read and put
        into batches of `batch_size`, in a new order in every epoch.
    teacher : nn.Module, optional
        The dense network, run in eval mode: no labels are needed then. "states" needs one of the
        same architecture.
    epochs : int
    **options
        Fields of `FinetuneOptions`.

    Returns
    -------
    Finetuned
        ``.network``, of the same class, device, dtype and mode, with plain parameters; ``.report``,
        loss and seconds by epoch.

    Raises
    ------
    InputError, UnknownNameError
        Neither labels nor a teacher, samples, labels or teacher that do not fit the network, an
        option that cannot be right.
    TrainingError
        Training diverged; the epoch is named.
    RunError
        The checkpoint is another run's.
    """
    record = _as_options({**options, "epochs": epochs})
    if not isinstance(network, nn.Module):
        network = getattr(network, "network", network)
    loss = record.loss or ("labels" if teacher is None else "distillation")
    if teacher is None and loss != "labels":
        raise InputError(f"the loss {loss!r} needs a teacher: the dense network")
    labelled = loss == "labels" or record.label_weight > 0.0
    if not labelled and teacher is None:
        raise InputError("give a teacher, or (input, label) pairs as batches")
    dtype, device = working_dtype(network), record.where()
    given = as_list("training", batches)
    data = TrainingData.read(given, dtype, labelled=labelled)
    student = plain_copy(network)
    notes = () if labelled else second_entries(student, given, data.inputs)
    home = next(student.parameters()).device
    modes = [(path, module.training) for path, module in student.named_modules()]
    kinds = {p.dtype for p in student.parameters() if p.is_floating_point()}
    if any(kind.itemsize < 4 for kind in kinds):
        raise InputError(
            "a network of 16-bit parameters cannot be trained as it is: give network.float()"
        )
    data.check(plain_copy(student, "cpu", dtype))
    master = None if teacher is None else _as_teacher(teacher, student, data)
    paths = _state_paths(student, master, data) if loss == "states" else ()
    student.to(device)
    if record.norms == "train":
        align_norms(student, (u.to(device) for u in data.inputs.split(record.batch_size)))
    held = hold(student)
    student.train()
    if record.norms == "frozen":
        freeze_norms(student)
    objective = _objective(student, master, loss, record, paths)
    extra = {key: getattr(record, key) for key in _OWN}
    descent = Descent(student, objective, record, len(data), held=held)
    report = fit(descent, data, record, {**extra, "loss": loss}, "fine-tuning")
    release_zeros(student)
    student.to(home)
    for path, training in modes:
        student.get_submodule(path).training = training
    if loss == "labels" and teacher is not None:
        notes = ("the teacher was not used: the loss is that of the labels",)
    return Finetuned(student, with_notes(report, *notes))


_OWN = {f.name for f in fields(FinetuneOptions)} - {f.name for f in fields(Training)}


def _as_options(given: dict[str, Any]) -> FinetuneOptions:
    known = [field.name for field in fields(FinetuneOptions)]
    for key in given:
        if key not in known:
            raise UnknownNameError("option of finetune", key, ["teacher", *known])
    return FinetuneOptions(**given)


@torch.no_grad()
def _as_teacher(teacher: nn.Module, student: nn.Module, data: TrainingData) -> nn.Module:
    """Return a frozen copy of the teacher in the samples' type, in eval mode.

    Raises
    ------
    InputError
        Its outputs have another shape than the student's.
    """
    kind = data.inputs.dtype if data.inputs.is_floating_point() else working_dtype(student)
    master = plain_copy(teacher, "cpu", kind).eval().requires_grad_(False)
    TrainingData(data.inputs[:2]).check(master)
    sample = data.inputs[:2]
    pupil = plain_copy(student, "cpu", kind).eval()
    one, two = (tuple(net(sample.clone()).shape[1:]) for net in (pupil, master))
    if one != two:
        raise InputError(f"the network returns {one} per sample, the teacher {two}")
    return master


def _state_paths(student: nn.Module, teacher: nn.Module | None, data: TrainingData) -> list[str]:
    """Return the modules whose outputs are the states: the layers, or the norms behind them.

    Raises
    ------
    InputError
        The teacher has other layers, or other shapes; a layer is no module of its own.
    """
    assert teacher is not None
    for path, module in student.named_modules():
        if kind_of(module) is not None:
            raise InputError(
                f"the loss 'states' cannot see the layers within {path or 'the network itself'!r} "
                f"({type(module).__name__}): take loss='outputs' or 'distillation'"
            )
    one, two = (LayerGraph(net, data.inputs[:8]).layers for net in (student, teacher))
    if [(x.path, x.norm, x.output_shape) for x in one] != [
        (x.path, x.norm, x.output_shape) for x in two
    ]:
        raise InputError("the loss 'states' needs a teacher with the same layers and shapes")
    return [layer.norm or layer.path for layer in one]


def _objective(
    student: nn.Module,
    teacher: nn.Module | None,
    loss: str,
    options: FinetuneOptions,
    paths: Sequence[str],
) -> Objective:
    if loss == "labels" or teacher is None:

        def on_labels(inputs: Tensor, labels: Tensor | None) -> Tensor:
            assert labels is not None
            return label_loss(student(inputs), labels)

        return on_labels
    master = teacher.to(options.where())
    if loss == "states":
        return StateMatching(student, master, paths)

    def on_teacher(inputs: Tensor, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            wanted = master(inputs.clone())
        outputs = student(inputs)
        if loss == "outputs":
            value = relative_error(outputs, wanted)
        else:
            value = distillation_loss(outputs, wanted, options.temperature)
        if labels is None:
            return value
        share = options.label_weight
        return (1.0 - share) * value + share * label_loss(outputs, labels)

    return on_teacher
