"""Multi-loss-aware channel pruning: correlations of the features beside the classification.

Hu et al. 2019, "Multi-loss-aware channel pruning of deep networks", as Tsai, Gao and El Ghaoui 2024
describe it (section 4): feature correlation, semantic correlation and classification losses. What
is correlated is our reading of that sentence: channels within a sample, and samples with each
other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cimf.methods.base import Outcome, Task
from cimf.methods.structured.channels import Channels, removable, remove_to_target
from cimf.methods.structured.sss import Factors
from cimf.methods.trained import TrainedOptions, Workshop
from cimf.train.norms import eval_mode
from cimf.train.objectives import Objective, Recorder
from cimf.train.training_options import check_numbers, check_whole


@dataclass(frozen=True, kw_only=True)
class MlaOptions(TrainedOptions):
    """Options of the method "mla". All defaults are ours: the paper's are not known to us.

    Attributes
    ----------
    epochs : int
        After the removal, under the three losses.
    feature_weight, semantic_weight : float
        Of the two correlation losses; that of the classification is 1.
    scored : int
        Samples on which channels are scored.
    """

    epochs: int = 20
    feature_weight: float = 1.0
    semantic_weight: float = 1.0
    scored: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "feature_weight", "semantic_weight")
        check_whole(self, 1, "scored")


def feature_correlations(features: Tensor) -> Tensor:
    """Return F F' of every sample's features F (channels, places): (b, channels, channels)."""
    flat = features.flatten(2) if features.ndim > 2 else features[:, :, None]
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def semantic_correlations(features: Tensor) -> Tensor:
    """Return the cosines between the samples' features, (b, b)."""
    flat = features.flatten(1)
    unit = flat / torch.linalg.vector_norm(flat, dim=1, keepdim=True).clamp_min(1e-12)
    return unit @ unit.T


def feature_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared difference of the feature correlations, relative to those wanted."""
    one, two = feature_correlations(found), feature_correlations(wanted)
    return (one - two).square().sum() / two.square().sum().clamp_min(1e-30)


def semantic_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference of the semantic correlations."""
    return (semantic_correlations(found) - semantic_correlations(wanted)).square().mean()


def feature_scores(features: Tensor) -> Tensor:
    """Return the `feature_loss` of each channel's removal, (channels,).

    Without channel c, row and column c of every correlation matrix G are zero.
    """
    square = feature_correlations(features).square()
    lost = 2.0 * square.sum((0, 2)) - square.diagonal(dim1=1, dim2=2).sum(0)
    return lost / square.sum().clamp_min(1e-30)


def semantic_scores(features: Tensor) -> Tensor:
    """Return the `semantic_loss` of each channel's removal, (channels,)."""
    flat = features.flatten(2) if features.ndim > 2 else features[:, :, None]
    by_channel = flat.transpose(0, 1)  # (channels, b, places)
    products = by_channel @ by_channel.transpose(1, 2)
    whole = products.sum(0)
    wanted = _cosines(whole)
    return torch.stack([(_cosines(whole - part) - wanted).square().mean() for part in products])


def _cosines(gram: Tensor) -> Tensor:
    length = gram.diagonal().clamp_min(0.0).sqrt().clamp_min(1e-12)
    return gram / length[:, None] / length[None, :]


def channel_scores(
    network: nn.Module,
    layers: Sequence[Channels],
    batches: Iterator[tuple[Tensor, Tensor]],
    objective: Objective,
    options: MlaOptions,
) -> dict[str, Tensor]:
    """Return what the removal of each channel costs, by layer, (rows,).

    The sum of three parts, each over its mean over all channels: the two correlation losses at the
    layer itself, and the squared derivative of the classification loss by the channel's scale.

    Parameters
    ----------
    network : nn.Module
        In eval mode; its channels are scaled in place, and the factors 1 left there.
    batches : iterator of (inputs, labels), on the network's device
    objective : classification loss of the network
    """
    factors = {}
    for layer in layers:
        factors[layer.path] = Factors(layer.rows, next(network.parameters()))
        layer.scale(network, factors[layer.path])
    recorder = Recorder(network, [layer.norm or layer.path for layer in layers])
    parts: list[dict[str, Tensor]] = [{}, {}, {}]
    values = [factors[layer.path].values for layer in layers]
    for inputs, labels in batches:
        with recorder.recording() as recorded:
            loss = objective(inputs, labels)
        slopes = torch.autograd.grad(loss, values)
        for layer, slope in zip(layers, slopes, strict=True):
            features = channels_first(network, layer, recorded).detach()
            new = feature_scores(features), semantic_scores(features), slope.square()
            for part, value in zip(parts, new, strict=True):
                part[layer.path] = part.get(layer.path, 0.0) + len(inputs) * value
    scores: dict[str, Tensor] = {}
    weights = (options.feature_weight, options.semantic_weight, 1.0)
    for part, weight in zip(parts, weights, strict=True):
        mean = torch.cat(list(part.values())).mean().clamp_min(1e-30)
        for path, value in part.items():
            scores[path] = scores.get(path, 0.0) + (weight * value / mean).cpu()
    return scores


def channels_first(network: nn.Module, layer: Channels, values: Mapping[str, Tensor]) -> Tensor:
    """Return a layer's recorded features (b, channels, ...); a linear layer has channels last."""
    features = values[layer.norm or layer.path]
    last = isinstance(network.get_submodule(layer.norm or layer.path), nn.Linear)
    return features.movedim(-1, 1) if last else features


def multi_loss(
    network: nn.Module,
    teacher: nn.Module,
    layers: Sequence[Channels],
    objective: Objective,
    options: MlaOptions,
) -> Objective:
    """Return classification + mean over layers of both correlation losses against the teacher."""
    paths = [layer.norm or layer.path for layer in layers]
    own, wanted = Recorder(network, paths), Recorder(teacher, paths)

    def loss(inputs: Tensor, labels: Tensor | None) -> Tensor:
        with torch.no_grad(), wanted.recording() as target:
            teacher(inputs.clone())
        with own.recording() as found:
            total = objective(inputs, labels)
        pairs = [
            (channels_first(network, layer, found), channels_first(teacher, layer, target))
            for layer in layers
        ]
        feature = torch.stack([feature_loss(a, b) for a, b in pairs]).mean()
        semantic = torch.stack([semantic_loss(a, b) for a, b in pairs]).mean()
        return total + options.feature_weight * feature + options.semantic_weight * semantic

    return loss


def prune_mla(task: Task, sparsity: float | None, options: MlaOptions) -> Outcome:
    """Score the channels by the three losses, remove the cheapest, train under the three losses."""
    assert sparsity is not None  # `Method.checked` refuses it
    workshop = Workshop(task, options)
    layers = removable(task.graph, options.keep)
    network, data = workshop.network, workshop.data
    teacher = copy.deepcopy(network).eval().requires_grad_(False)
    count = min(options.scored, len(data))
    assert data.labels is not None
    cut = zip(
        data.inputs[:count].split(options.batch_size),
        data.labels[:count].split(options.batch_size),
        strict=True,
    )
    scored = copy.deepcopy(network)
    with eval_mode(scored):
        batches = ((u.to(workshop.device), y.to(workshop.device)) for u, y in cut)
        objective = workshop.label_objective(scored)
        scores = channel_scores(scored, layers, batches, objective, options)
    removal = remove_to_target(network, layers, task.graph, scores, sparsity, data.inputs[:16])
    network = removal.network
    settings: Mapping[str, object] = {
        "method": "mla", "feature": options.feature_weight, "semantic": options.semantic_weight,
        "scored": options.scored, "keep": options.keep,
    }  # fmt: skip
    joint = replace(options, tune_epochs=options.epochs)
    loss = multi_loss(network, teacher, layers, workshop.label_objective(network), options)
    workshop.options = joint
    reports = workshop.tune(network, loss, settings)
    if options.tune_epochs:
        path = None if options.checkpoint is None else f"{options.checkpoint}.labels"
        workshop.options = replace(options, checkpoint=path)
        reports += workshop.tune(network)
    return Outcome(
        workshop.finished(network),
        notes=(removal.note("cost under the three losses"),),
        training=tuple(reports),
    )
