"""A run that goes on is one of the same network and the same samples, or it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch

from cimf.errors import RunError
from cimf.methods.stacked.captured import digest
from cimf.runs.folder import RunFolder
from cimf.studies.case import Case


def loaded(run: RunFolder, load: Callable[[], Case]) -> Case:
    """Return the case of a run; refuse one that is not the case of the points that are there.

    Raises
    ------
    RunError
    """
    case = load()
    check_origin(
        run,
        network=digest(case.network),
        samples=samples_digest(case.calibration, case.train_labels),
        test_samples=samples_digest(case.inputs, case.labels),
    )
    return case


def check_origin(run: RunFolder, **digests: str) -> None:
    """Write down of what network and samples a run is; refuse to go on with others.

    Settings name both, but not their content: a network is trained anew on another machine, a
    user's function reads another file.

    Raises
    ------
    RunError
    """
    found = run.once("origin", lambda: digests)
    other = [key.replace("_", " ") for key, value in digests.items() if found.get(key) != value]
    if other:
        raise RunError(
            f"not those of the interrupted run that this one continues: {', '.join(other)}; "
            "choose another folder, or remove this one",
            options=["folder"],
        )


def samples_digest(*tensors: Any) -> str:
    """Return the SHA-256 of tensors or arrays; None counts as well."""
    found = hashlib.sha256()
    for value in tensors:
        if value is None:
            found.update(b"none")
            continue
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():  # torch views no empty tensor as bytes
            found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
