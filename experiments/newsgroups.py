"""A DistilBERT classifier of 20 Newsgroups at 60 to 95 % sparsity: against pruning baselines.

The network has the architecture of DistilBERT with six blocks, a small width and a vocabulary of
words, and is trained here, its word embeddings starting from a bag of words; or it is a checkpoint,
by name.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cimf.runs.terminal import one_line_errors
from experiments.options import Levels, Methods, Overwrite, listed_levels, listed_methods

if TYPE_CHECKING:
    from cimf.data.corpora import Texts
    from cimf.data.datasets import Dataset
    from cimf.data.text import TokenClassifier
    from cimf.studies.case import Case

VOCABULARY = 8000
LENGTH = 64
ARCHITECTURE: dict[str, Any] = {
    "width": 64, "hidden": 256, "heads": 4, "layers": 6, "dropout": 0.3,
}  # fmt: skip
EPOCHS = 3


def main(
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results/newsgroups"),
    texts: Annotated[int, typer.Option(help="Calibration texts, without labels.")] = 1000,
    methods: Methods = None,
    levels: Levels = "0.6,0.75,0.8,0.9,0.95",
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Name or folder of a trained classifier of the 20 groups; else trained."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """DistilBERT on 20 Newsgroups, all methods at the same non-zeros."""
    with one_line_errors():
        from cimf.data import corpora
        from cimf.studies.compare import compare

        compare(
            f"20 Newsgroups, {checkpoint or 'DistilBERT'}, {texts:,} calibration texts",
            out,
            {"checkpoint": checkpoint, "calibration": texts, "seed": seed, "length": LENGTH},
            lambda: task(corpora.newsgroups(), texts, checkpoint, seed),
            levels=listed_levels(levels),
            methods=listed_methods(methods),
            overwrite=overwrite,
        )


def task(corpus: Texts, texts: int | None, checkpoint: str | None, seed: int) -> Case:
    """Return a trained classifier with the first calibration texts of a permutation, or all.

    Raises
    ------
    InputError
        The checkpoint distinguishes another number of classes.
    """
    import numpy as np
    import torch

    from cimf.data import datasets, text
    from cimf.errors import InputError
    from cimf.studies.case import Case

    train, test = (
        [text.subject_and_body(message) for message in messages]
        for messages in (corpus.train_texts, corpus.test_texts)
    )
    classes = len(corpus.classes)
    if checkpoint is not None:
        net, encode = text.checkpoint(checkpoint)
        if net.model.config.num_labels != classes:
            raise InputError(
                f"the checkpoint {checkpoint!r} has {net.model.config.num_labels} classes, "
                f"{classes} are needed: give a classifier that was trained on these groups"
            )
    else:
        encode = text.Vocabulary.of(train, VOCABULARY).encode
    inputs, test_inputs = encode(train, LENGTH), encode(test, LENGTH)
    data = datasets.Dataset(
        corpus.name,
        inputs,
        corpus.train_labels,
        test_inputs,
        corpus.test_labels,
        classes,
        {**corpus.checksums, "token ids": f"sha256:{hashlib.sha256(inputs.tobytes()).hexdigest()}"},
    )
    if checkpoint is None:
        net = _trained(data, seed)
    # The messages come sorted by group: a permutation mixes the first so many.
    order = np.random.default_rng(seed).permutation(len(inputs))[:texts]
    return Case(
        net,
        torch.from_numpy(inputs[order]),
        torch.from_numpy(test_inputs),
        torch.from_numpy(corpus.test_labels),
        data.describe(),
    )


def _trained(data: Dataset, seed: int) -> TokenClassifier:
    """Return DistilBERT trained on the data; its word embeddings start from a bag of words."""
    from cimf.data import datasets, text
    from cimf.train.supervised import Schedule, trained

    cache = datasets.cache_folder() / "networks"
    bag = {"vocabulary": VOCABULARY, "width": ARCHITECTURE["width"], "classes": data.n_classes}
    schedule = Schedule(epochs=4, learning_rate=1e-2, batch_size=128)
    words = (
        trained(
            text.bag_of_words(**bag, seed=seed),
            bag,
            data,
            seed=seed,
            schedule=schedule,
            cache=cache,
        )
        .get_parameter("0.weight")
        .detach()
    )
    sizes = {**bag, **ARCHITECTURE, "length": LENGTH}
    return trained(
        text.distilbert(**sizes, words=0.3 * words / words.std(), seed=seed),
        {**sizes, "bag of words": asdict(schedule)},
        data,
        seed=seed,
        schedule=Schedule(epochs=EPOCHS, learning_rate=1e-3, batch_size=64),
        cache=cache,
    )
