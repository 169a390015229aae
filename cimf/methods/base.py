"""One shape for every method: a task in, a network with exact zeros and its report out.

A one-shot method is one function and one line in `cimf.METHODS`; so is a method that trains. What
all of them share stands here: the options are checked before any work, the network that comes back
is counted and checked, and nobody but the judge (`cimf.evaluate`) sees test data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cimf.errors import CimfError, InputError, UnknownNameError, warn_outside
from cimf.methods.pruning_report import LayerRecord, PruningReport
from cimf.network.batches import Batch, as_batches, as_list, joined, one_tensor, tensors_of
from cimf.network.copies import plain_copy
from cimf.network.layers import LayerGraph, working_dtype
from cimf.network.second_entries import second_entries
from cimf.train.training_report import TrainingReport

T = TypeVar("T")

# What `cimf.prune` takes beside the options of a method.
_BESIDE = ("sparsity", "method", "test", "train")
# A sparsity that differs by more than this from the target is reported.
_MISSED = 0.001


class Task:
    """What is to be made sparse, and on which data.

    Several methods and targets may share a task: what they compute alike is computed once.

    Parameters
    ----------
    net : nn.Module
        Any dtype, device and mode; no method modifies it.
    batches : iterable, or one tensor
        Calibration inputs (b, ...), or (input, label) pairs whose labels no method sees; several
        inputs as in `cimf.network.batches.as_batches`.
    train : iterable of (input, label) pairs, optional
        Labelled training data, for the methods that need them.

    Attributes
    ----------
    net : nn.Module
        A copy of the network without wrappers (data parallel, compiled) and reparametrisations.
    inputs : list of Tensor or Inputs (b, ...)
        The calibration inputs on the CPU.
    notes : tuple of str
        As `cimf.network.second_entries.second_entries`.

    Raises
    ------
    InputError
        As `cimf.network.batches.as_batches` and `second_entries`.
    """

    def __init__(self, net: nn.Module, batches: Any, train: Any = None) -> None:
        given = as_list("calibration", batches)
        self.inputs: list[Batch] = as_batches(given, working_dtype(net))
        self.net, self.train = plain_copy(net), train
        self.notes = second_entries(self.net, given, self.inputs[0])
        self._kept: dict[Any, Any] = {}

    @cached_property
    def graph(self) -> LayerGraph:
        """The traced network with its matched layers.

        Raises
        ------
        CaptureError
            The network cannot be traced; the message names the module.
        """
        sample = [self.inputs[0][:8]]
        for k, kind in enumerate(tensors_of(sample[0])):
            if kind.dtype in (torch.int32, torch.int64):  # token ids: also the extreme ones
                ids = [tensors_of(batch)[k].reshape(len(batch), -1) for batch in self.inputs]
                low = min(range(len(ids)), key=lambda j: int(ids[j].min()))
                high = max(range(len(ids)), key=lambda j: int(ids[j].max()))
                sample.append(self.inputs[low][[int(ids[low].amin(1).argmin())]])
                sample.append(self.inputs[high][[int(ids[high].amax(1).argmax())]])
        return LayerGraph(self.net, joined(sample), self.inputs)

    @property
    def n_samples(self) -> int:
        """Calibration samples."""
        return sum(len(batch) for batch in self.inputs)

    def once(self, key: Any, work: Callable[[], T]) -> T:
        """Return what `work` returned for this key, from now on for every method."""
        if key not in self._kept:
            self._kept[key] = work()
        return self._kept[key]


@dataclass(frozen=True)
class Outcome:
    """What a method hands back.

    Attributes
    ----------
    network : nn.Module
        Of the class of the task's network, with exact zeros.
    layers : tuple of LayerRecord
        What is known layer by layer, where the method solved row problems.
    notes : tuple of str
        What a reader must know before using a number of the report.
    warnings : tuple of str
        Notes that are also warned about: what makes the result worse than it could be.
    training : tuple of TrainingReport
        What was trained, stage by stage.
    """

    network: nn.Module
    layers: tuple[LayerRecord, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    training: tuple[TrainingReport, ...] = ()


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Method:
    """A way to make a network sparse.

    Attributes
    ----------
    source : str
        Where it comes from: the paper, or the page of these docs.
    run : (task, sparsity, options) -> Outcome
        The target is a share of all matched weights, None where a budget in the options decides.
    options : type
        A frozen dataclass of what may be chosen; its defaults are those of the method. Default:
        nothing may be.
    needs : tuple of str
        Beyond unlabelled inputs: "labels" (labelled training data), "gradients".
    controlled : tuple of str
        By what the sparsity is set: "sparsity" (a target that is met); "budget" (the property
        `budget` of the options says whether one of them sets it); "pattern" (an N:M pattern does,
        where the property `pattern` of the options is one).
    """

    source: str
    run: Callable[[Task, float | None, Any], Outcome]
    options: type = NoOptions
    needs: tuple[str, ...] = ()
    controlled: tuple[str, ...] = ("sparsity",)

    def __repr__(self) -> str:
        return f"Method({self.source!r}, options: {', '.join(self.option_names) or 'none'})"

    @property
    def option_names(self) -> list[str]:
        """What may be chosen."""
        return [field.name for field in fields(self.options)]

    def checked(self, name: str, sparsity: Any, given: Mapping[str, Any]) -> Any:
        """Return the options as the method's record; refuse before any work what cannot be right.

        Raises
        ------
        InputError, UnknownNameError
            An unknown option, a value that the record refuses, a target that is no number in
            [0, 1), none where the method needs one.
        """
        record: Any = as_record(self.options, given, f"option of {name!r}", _BESIDE)
        if "pattern" in self.controlled and record.pattern is not None:
            if sparsity is not None:
                check_sparsity(sparsity)
                record.pattern.check_target(sparsity)
            return record
        budget = "budget" in self.controlled and record.budget
        if budget and sparsity is not None:
            raise InputError(
                "give either a target, sparsity=0.8 say, or a budget, not both",
                options=["sparsity"],
            )
        if sparsity is not None:
            check_sparsity(sparsity)
        elif "sparsity" in self.controlled and not budget:
            raise InputError(
                f"method {name!r} needs a target sparsity, for example 0.8", options=["sparsity"]
            )
        return record

    def check_data(self, name: str, train: Any) -> None:
        """Refuse a task without the labelled data that the method trains on.

        Raises
        ------
        InputError
        """
        if "labels" in self.needs and train is None:
            raise InputError(
                f"method {name!r} trains on labels: give (input, label) pairs, as batches or train"
            )


@dataclass(frozen=True)
class Pruned:
    """A network with sparse weights, drop-in for the one it was made from.

    Attributes
    ----------
    network : nn.Module
        Of the same class; exact zeros in the weights of convolutions and linear layers.
    report : PruningReport
    inputs : sequence of Tensor or Inputs (b, ...)
        The calibration inputs, on the CPU.
    """

    network: nn.Module
    report: PruningReport
    inputs: Sequence[Batch]

    def __repr__(self) -> str:
        weights, total = self.report.matched
        return (
            f"Pruned({type(self.network).__name__} by {self.report.method!r}, "
            f"{1 - weights / total:.1%} of {total:,} weights are zero)"
        )

    def save(self, path: str | Path) -> None:
        """Write the network's state dict, zeros included, as safetensors, atomically."""
        from cimf.network.export import save_state

        save_state(self.network, path)

    def shrink(self) -> nn.Module:
        """Return the network without the channels that nobody reads, as a plain smaller one.

        See `cimf.methods.structured.shrink.shrink`: what is followed, refused and warned about.
        """
        from cimf.methods.structured.shrink import shrink

        return shrink(self.network, one_tensor(self.inputs, "shrink"))


def run_method(
    task: Task, name: str, method: Method, sparsity: float | None, options: Any
) -> Pruned:
    """Run a method on a task and count what comes back.

    Parameters
    ----------
    name : str
        What errors and the report call the method.
    options : record
        As `Method.checked` returns it.

    Raises
    ------
    InputError
        As `Method.check_data`.
    CimfError
        The method returned another class of network, or one with NaN or infinite parameters.

    Warns
    -----
    UserWarning
        What the method warns about, and a target that was missed by more than 0.001.
    """
    method.check_data(name, task.train)
    start = time.perf_counter()
    outcome = method.run(task, sparsity, options)
    seconds = time.perf_counter() - start
    if not isinstance(outcome, Outcome):
        raise CimfError(
            f"method {name!r} returned a {type(outcome).__name__}; an Outcome is needed "
            "(cimf.methods.base)"
        )
    if type(outcome.network) is not type(task.net):
        raise CimfError(
            f"method {name!r} returned a {type(outcome.network).__name__}, not the class of the "
            f"network that it was given, {type(task.net).__name__}"
        )
    for path, value in outcome.network.named_parameters():
        if not torch.isfinite(value).all():
            raise CimfError(f"method {name!r} left NaN or infinite values in {path!r}")
    report = PruningReport.build(task.graph, outcome.network, name, sparsity, seconds)
    warned = (*outcome.warnings, *_missed_target(report))
    for sentence in warned:
        warn_outside(sentence)
    notes = (*task.notes, *outcome.notes, *report.notes, *warned)
    report = replace(report, layers=outcome.layers, notes=notes, training=outcome.training)
    return Pruned(outcome.network, report, task.inputs)


def as_record(kind: type[T], given: Mapping[str, Any], what: str, beside: Iterable[str] = ()) -> T:
    """Return the options as their record.

    Parameters
    ----------
    what : str
        What the error calls an option.
    beside : iterable of str
        Other names that the caller takes, for the error.

    Raises
    ------
    UnknownNameError
        A name that is no field of the record.
    InputError
        What the record itself refuses.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise UnknownNameError(what, name, {*beside, *known})
    return kind(**given)


def check_switches(record: Any, *names: str) -> None:
    """Refuse options of a record that are neither True nor False.

    Raises
    ------
    InputError
    """
    for name in names:
        if not isinstance(getattr(record, name), bool):
            raise InputError(f"{name} must be True or False, got {getattr(record, name)!r}")


def check_sparsity(value: Any) -> None:
    """Refuse a target sparsity that is no number in [0, 1).

    Raises
    ------
    InputError
    """
    if not isinstance(value, Real) or not 0.0 <= float(value) < 1.0:
        raise InputError(f"sparsity must be a number in [0, 1), got {value!r}")


def _missed_target(report: PruningReport) -> list[str]:
    """Say that the target was missed, by more than the rounding to whole weights."""
    weights, total = report.matched
    if report.target is None:
        return []
    if abs(weights - round((1.0 - report.target) * total)) <= _MISSED * total:
        return []
    return [
        f"the sparsity is {1.0 - weights / total:.2%}, the target {report.target:.2%}: "
        + (
            "whole channels were removed, or columns that were kept got the coefficient 0 (an "
            "input that is always zero, or weights that were zero before)"
            if weights < (1.0 - report.target) * total
            else "more weights are kept (whole channels, or layers that cannot take a pattern)"
        )
    ]
