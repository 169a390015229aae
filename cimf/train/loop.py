"""The training loop of this project: epochs over samples, checkpoints, progress.

Everything random (the order of the samples, augmentation, dropout, gates) follows from one seed;
the global random state is put back at the end.
"""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cimf.errors import RunError, TrainingError
from cimf.files import atomic_path
from cimf.runs.provenance import fingerprint
from cimf.runs.terminal import duration, progress_bar
from cimf.train.descent import Descent
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training, cut
from cimf.train.training_report import Epoch, TrainingReport

# Steps that are taken and undone to learn how long one takes; the first is left out: it allocates.
_TRIAL = 4
# Seconds below which a run is silent.
_SILENT = 5.0


@dataclass
class _Run:
    """A run between two epochs."""

    descent: Descent
    generator: torch.Generator
    epochs: list[Epoch] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {
            "learner": self.descent.state(),
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "cuda": cuda,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def load(self, state: dict[str, Any]) -> None:
        self.descent.load(state["learner"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]


def fit(
    descent: Descent,
    data: TrainingData,
    training: Training,
    settings: Mapping[str, Any] | None = None,
    title: str = "training",
) -> TrainingReport:
    """Train in place for `training.epochs` epochs.

    Parameters
    ----------
    descent : Descent
        Its network is on `training.where()`, in the mode in which it is trained.
    settings : mapping, optional
        What decides the result beside `training`, network and data.
    title : str
        What progress is called. Runs of less than five seconds show none; longer ones say before
        they start how long they will take, measured on their first batches.

    Raises
    ------
    TrainingError
        The loss, or a parameter, is NaN or infinite. The checkpoint is that of the last epoch in
        which all was finite.
    RunError
        The checkpoint is that of another run, or cannot be read or written.
    """
    device = training.where()
    devices = [device] if device.type == "cuda" else []
    settings = {**training.settings(), **(settings or {})}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(training.seed)
        run = _Run(descent, torch.Generator().manual_seed(training.seed))
        path = None if training.checkpoint is None else Path(training.checkpoint)
        same = "" if path is None else _identity(descent, data, settings)
        if path is not None and path.exists():
            run.load(_read(path, same))
        steps = training.batches(len(data))
        todo = (training.epochs - len(run.epochs)) * steps
        seconds = todo * _seconds_per_step(run, data, training) if todo else 0.0
        said = f"{title}, about {duration(seconds)}"
        with progress_bar(said, todo) if seconds > _SILENT else nullcontext() as progress:
            for number in range(len(run.epochs) + 1, training.epochs + 1):
                start = time.perf_counter()
                loss = torch.zeros((), dtype=torch.float64)
                for k, batch in enumerate(_batches(run, data, training)):
                    try:
                        loss += len(batch[0]) * float(descent.step(*batch))
                    except FloatingPointError as error:
                        raise _diverged(error, number, k + 1, path) from None
                    if progress is not None:
                        progress(todo - steps * (training.epochs - number + 1) + k + 1)
                _check_parameters(descent, number, path)
                passed = time.perf_counter() - start
                left = passed * (training.epochs - number)
                measures = descent.measures()
                mean = float(loss) / len(data)
                run.epochs.append(Epoch(number, training.epochs, mean, passed, left, measures))
                if path is not None:
                    _write(path, same, run.state())
                if training.on_epoch is not None:
                    training.on_epoch(run.epochs[-1])
    return TrainingReport(
        tuple(run.epochs), len(data), data.labels is not None, str(device), settings
    )


def _batches(run: _Run, data: TrainingData, training: Training) -> Any:
    """Yield the batches of one epoch on the device."""
    device = training.where()
    order = torch.randperm(len(data), generator=run.generator)
    for index in cut(order, training.batch_size):
        inputs = data.inputs[index]
        if training.augment is not None:
            inputs = training.augment(inputs, run.generator)
        labels: Tensor | None = None if data.labels is None else data.labels[index].to(device)
        # Channels last: a step of a LeNet takes 0.63 times as long, of a ResNet-20 0.87 times.
        layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
        yield inputs.to(device).contiguous(memory_format=layout), labels


def _seconds_per_step(run: _Run, data: TrainingData, training: Training) -> float:
    """Return how long a step takes; it leaves no trace."""
    before = copy.deepcopy(run.state())
    times = []
    for k, batch in enumerate(_batches(run, data, training)):
        if k == _TRIAL:
            break
        start = time.perf_counter()
        try:
            float(run.descent.step(*batch))
        except FloatingPointError:
            break  # the run itself will say where
        times.append(time.perf_counter() - start)
    run.load(before)
    return min(times, default=0.0) if len(times) < 2 else sum(times[1:]) / len(times[1:])


def _diverged(error: object, epoch: int, step: int | None, path: Path | None) -> TrainingError:
    where = f"epoch {epoch}" + (f", batch {step}" if step else "")
    kept = ""
    if path is not None:
        kept = f"; {path} holds epoch {epoch - 1}" if path.exists() else f"; {path} was not written"
    return TrainingError(
        f"training diverged in {where}: {error}. Lower learning_rate, or look for extreme values "
        f"in the data{kept}",
        options=["learning_rate"],
    )


def _check_parameters(descent: Descent, epoch: int, path: Path | None) -> None:
    for name, value in descent.network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise _diverged(f"{name!r} holds NaN or infinite values", epoch, None, path)


def _identity(descent: Descent, data: TrainingData, settings: Mapping[str, Any]) -> str:
    """Return what a checkpoint must agree in: settings, samples, and the network at the start."""
    state = descent.network.state_dict().items()
    start = TrainingData(torch.cat([value.detach().cpu().double().flatten() for _, value in state]))
    names = [key for key, _ in state]
    return fingerprint(
        {**settings, "data": data.digest(), "network": start.digest(), "names": names}
    )


def _write(path: Path, same: str, state: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save({"same": same, **state}, temporary)


def _read(path: Path, same: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(path, weights_only=True)
        saved = found.pop("same")
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, AttributeError, EOFError) as e:
        raise RunError(f"{path} is no checkpoint of a training run: {e}") from e
    if saved != same:
        raise RunError(
            f"{path} is the checkpoint of another run (other options, samples or network); give "
            "another file, or remove it",
            options=["checkpoint"],
        )
    return found


def with_notes(report: TrainingReport, *notes: str) -> TrainingReport:
    """Return the report with more notes."""
    return replace(report, notes=(*report.notes, *notes))
