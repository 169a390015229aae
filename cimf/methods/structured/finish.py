"""The end of a structured method: channels are removed, the network is tuned, a note is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from cimf.methods.base import Outcome
from cimf.methods.structured.channels import Channels, remove_to_target
from cimf.methods.trained import Workshop
from cimf.network.layers import LayerGraph
from cimf.train.training_report import TrainingReport


def finish(
    workshop: Workshop,
    network: nn.Module,
    graph: LayerGraph,
    layers: Sequence[Channels],
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    by: str,
    reports: Sequence[TrainingReport] = (),
    notes: Sequence[str] = (),
) -> Outcome:
    """Return the outcome of a network whose channels of smallest score go, tuned on the labels.

    Parameters
    ----------
    by : str
        What the scores are called.

    Raises
    ------
    InputError
        As `remove_to_target`.
    """
    sample = workshop.data.inputs[:16]
    removal = remove_to_target(network, layers, graph, scores, sparsity, sample)
    reports = [*reports, *workshop.tune(removal.network)]
    return Outcome(
        workshop.finished(removal.network),
        notes=(removal.note(by), *notes),
        training=tuple(reports),
    )
