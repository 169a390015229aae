"""Image and text data sets kept in local files: CIFAR-10, CIFAR-100 and 20 Newsgroups.

The files have the layout in which the data sets are distributed on the Hugging Face hub (parquet
shards with encoded images) and as JSON lines; they lie in folders ``cifar10``, ``cifar100`` and
``20news`` below the folder that the environment variable ``CIMF_DATA`` names. Nothing is
downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cimf.data.datasets import Dataset, data_folder
from cimf.errors import DataError, InputError

_HUB = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Texts:
    """A labelled collection of texts with a fixed split.

    Attributes
    ----------
    name : str
    train_texts, test_texts : tuple of str
    train_labels, test_labels : (m,) int64
    classes : tuple of str
        The name of each label.
    checksums : dict
        Source file -> SHA-256.
    """

    name: str
    train_texts: tuple[str, ...]
    train_labels: NDArray[np.int64]
    test_texts: tuple[str, ...]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    checksums: dict[str, str]


def cifar10(train: int | None = None, test: int | None = None) -> Dataset:
    """Return CIFAR-10: images (m, 3, 32, 32) in [0, 1], of as many training shards as there are.

    Parameters
    ----------
    train, test : int, optional
        Read only the first so many images of each split (the shards are shuffled). Default: all.

    Raises
    ------
    DataError
        ``$CIMF_DATA/cifar10`` does not hold both splits, or a file is corrupt.
    InputError
        `train` or `test` below 1.
    """
    return _cifar("cifar10", "label", 10, "uoft-cs/cifar10", train, test)


def cifar100(train: int | None = None, test: int | None = None) -> Dataset:
    """Return CIFAR-100 with its 100 fine labels; otherwise as `cifar10`."""
    return _cifar("cifar100", "fine_label", 100, "uoft-cs/cifar100", train, test)


def newsgroups() -> Texts:
    """Return 20 Newsgroups, the "bydate" split, as raw text with headers.

    Raises
    ------
    DataError
        ``$CIMF_DATA/20news`` does not hold train.jsonl.gz and test.jsonl.gz, or one is corrupt.
    """
    folder = _folder("20news", "train.jsonl.gz and test.jsonl.gz", "SetFit/20_newsgroups")
    texts: dict[str, tuple[str, ...]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    classes: dict[int, str] = {}
    checksums = {}
    for split in ("train", "test"):
        path = folder / f"{split}.jsonl.gz"
        try:
            with gzip.open(path, "rt", encoding="utf-8") as stream:
                records = [json.loads(line) for line in stream]
            texts[split] = tuple(str(record["text"]) for record in records)
            labels[split] = np.array([record["label"] for record in records], dtype=np.int64)
            classes.update((int(r["label"]), str(r["label_text"])) for r in records)
        except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
            raise DataError(f"{path.name} cannot be read ({error}); get it again") from error
        checksums[path.name] = _sha256(path)
    return Texts(
        "20news",
        texts["train"],
        labels["train"],
        texts["test"],
        labels["test"],
        tuple(classes[label] for label in sorted(classes)),
        checksums,
    )


def _cifar(
    name: str, column: str, n_classes: int, source: str, train: int | None, test: int | None
) -> Dataset:
    for key, count in (("train", train), ("test", test)):
        if count is not None and count < 1:
            raise InputError(f"{key} = {count}: at least one image is needed")
    folder = _folder(name, "parquet shards train-*.parquet and test-*.parquet", source)
    parts: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    checksums = {}
    for split, count in (("train", train), ("test", test)):
        shards = sorted(folder.glob(f"{split}-*.parquet"))
        if not shards:
            raise DataError(
                f"{name}: no {split}-*.parquet in $CIMF_DATA/{name}; see {_HUB}{source}"
            )
        parts[split] = _read_images(shards, column, count)
        checksums.update({shard.name: _sha256(shard) for shard in shards})
    return Dataset(name, *parts["train"], *parts["test"], n_classes, checksums)


def _read_images(
    shards: Iterable[Path], column: str, count: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images (m, 3, 32, 32) and labels (m,) of parquet shards, the first `count` of them."""
    try:
        import pyarrow
        import pyarrow.parquet
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"reading CIFAR needs pyarrow and pillow, pip install 'cimf[data]': {error}"
        ) from error
    images: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for shard in shards:
        try:
            table = pyarrow.parquet.read_table(shard, columns=["img", column])
            left = len(table) if count is None else min(len(table), count - len(images))
            for row in table.slice(0, left).to_pylist():
                with Image.open(io.BytesIO(row["img"]["bytes"])) as image:
                    images.append(np.asarray(image.convert("RGB")))
                labels.append(row[column])
        except (OSError, KeyError, TypeError, pyarrow.ArrowException) as error:
            raise DataError(f"{shard.name} cannot be read ({error}); get it again") from error
    if any(image.shape != (32, 32, 3) for image in images) or (count and len(images) < count):
        raise DataError(f"the shards do not hold {count or 'only'} images of 32x32 pixels")
    stacked = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255.0)
    return stacked, np.array(labels, dtype=np.int64)


def _folder(name: str, content: str, source: str) -> Path:
    """Return the folder of a data set; raises `DataError` that says how to get it."""
    root = data_folder()
    if root is None or not (root / name).is_dir():
        raise DataError(
            f"{name} is not available: set CIMF_DATA to a folder that holds '{name}' with "
            f"{content} (from {_HUB}{source})"
        )
    return root / name


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
