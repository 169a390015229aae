"""Labelled data sets for the demonstration and the experiments: offline first, with checksums.

Files are looked for in the folder named by the environment variable ``CIMF_DATA``, then in the
user's cache folder, and only then downloaded (with a published checksum).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cimf.errors import DataError, InputError, UnknownNameError

# Published with the data set (README of zalandoresearch/fashion-mnist).
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


@dataclass(frozen=True)
class Dataset:
    """A labelled data set with a fixed split; samples in rows, as torch expects them.

    Attributes
    ----------
    name : str
    train_inputs, test_inputs : (m, p) float32, or int64 token ids
    train_labels, test_labels : (m,) int64
    n_classes : int
    checksums : Mapping[str, str]
        Source file -> MD5 for files, or "arrays" -> SHA-256 of the arrays for embedded data.
    """

    name: str
    train_inputs: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[Any]
    test_labels: NDArray[np.int64]
    n_classes: int
    checksums: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return name, split sizes and checksums, for a manifest."""
        return {
            "name": self.name,
            "train_samples": len(self.train_labels),
            "test_samples": len(self.test_labels),
            "checksums": dict(self.checksums),
        }


def load(name: str) -> Dataset:
    """Return the data set called `name`, a key of `DATASETS`.

    Raises
    ------
    UnknownNameError
        The message lists the known names.
    DataError
        As the loader.
    """
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    return DATASETS[name]()


def digits(test_fraction: float = 0.25, seed: int = 0) -> Dataset:
    """Return scikit-learn's embedded digits: 1,797 images of 8x8, scaled to [0, 1].

    The split is a seeded permutation; nothing is downloaded.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = np.asarray(bunch.data / 16.0, dtype=np.float32)
    return _split("digits", inputs, bunch.target.astype(np.int64), 10, test_fraction, seed)


def synthetic(
    n_samples: int = 2000,
    n_features: int = 20,
    n_classes: int = 4,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> Dataset:
    """Return a seeded Gaussian mixture, two clusters per class, that no linear map separates.

    The clusters of class k stand at +c_k and -c_k with unit noise, so the class means coincide.

    Raises
    ------
    InputError
        For sizes below 1, or fewer than two classes.
    """
    if min(n_samples, n_features) < 1 or n_classes < 2:
        raise InputError("synthetic needs n_samples >= 1, n_features >= 1 and n_classes >= 2")
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.standard_normal((n_classes, n_features))
    labels = rng.integers(n_classes, size=n_samples)
    side = rng.choice([-1.0, 1.0], size=(n_samples, 1))
    inputs = side * centres[labels] + rng.standard_normal((n_samples, n_features))
    return _split("synthetic", inputs.astype(np.float32), labels, n_classes, test_fraction, seed)


def fashion_mnist() -> Dataset:
    """Return Fashion-MNIST: 60,000 + 10,000 images of 28x28 as rows of 784 values in [0, 1].

    Raises
    ------
    DataError
        If the four files are neither in ``$CIMF_DATA/fashionmnist`` nor downloadable, or one is
        corrupt or does not match its published MD5. The message says how to get them.
    """
    arrays = {name: read_idx(_fashion_file(name)) for name in _FASHION_MD5}
    for split, count in (("train", 60_000), ("t10k", 10_000)):
        images, labels = (
            arrays[f"{split}-{part}-ubyte.gz"] for part in ("images-idx3", "labels-idx1")
        )
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            raise DataError(f"Fashion-MNIST {split} files hold {images.shape} and {labels.shape}")

    def inputs(name: str) -> NDArray[np.float32]:
        return arrays[name].reshape(-1, 784).astype(np.float32) / np.float32(255.0)

    return Dataset(
        "fashion_mnist",
        inputs("train-images-idx3-ubyte.gz"),
        arrays["train-labels-idx1-ubyte.gz"].astype(np.int64),
        inputs("t10k-images-idx3-ubyte.gz"),
        arrays["t10k-labels-idx1-ubyte.gz"].astype(np.int64),
        10,
        {name: f"md5:{digest}" for name, digest in _FASHION_MD5.items()},
    )


DATASETS: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "synthetic": synthetic,
}


def data_folder() -> Path | None:
    """Return the folder named by ``CIMF_DATA``, or None where the variable is not set.

    Raises
    ------
    DataError
        If it is set to something that is not a folder.
    """
    value = os.environ.get("CIMF_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"CIMF_DATA is set to {value!r}, which is not a folder; correct or unset it"
        )
    return folder


def cache_folder() -> Path:
    """Return the per-user folder for downloads and trained networks."""
    import pooch

    return Path(pooch.os_cache("cimf"))


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes (the format of MNIST).

    Raises
    ------
    DataError
        If the file is missing, is not gzip, is cut short, or is no IDX file of unsigned bytes.
    """
    name = Path(path).name
    try:
        with gzip.open(path, "rb") as stream:
            raw = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} cannot be read ({error}); delete it and get it again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{name} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise DataError(f"{name} announces {shape} but holds {body.size} bytes; get it again")
    return body.reshape(shape)


def _fashion_file(name: str) -> Path:
    """Return the path of a verified Fashion-MNIST file, downloading it only as the last resort."""
    folder = data_folder()
    if folder is not None and (path := folder / "fashionmnist" / name).exists():
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if digest != _FASHION_MD5[name]:
            raise DataError(
                f"{name} in $CIMF_DATA/fashionmnist has MD5 {digest}, published is "
                f"{_FASHION_MD5[name]}: it is corrupt or another file; replace it"
            )
        return path
    import pooch

    try:
        found = pooch.retrieve(
            _FASHION_URL + name,
            known_hash=f"md5:{_FASHION_MD5[name]}",
            fname=name,
            path=cache_folder() / "fashionmnist",
            downloader=pooch.HTTPDownloader(timeout=30),
        )
    except Exception as error:  # requests, urllib3 and pooch raise many kinds
        raise DataError(
            f"Fashion-MNIST is not available: {name} is not in $CIMF_DATA/fashionmnist and the "
            f"download failed ({type(error).__name__}). Put the four .gz files of {_FASHION_URL} "
            "into a folder 'fashionmnist' and set CIMF_DATA to the folder above it"
        ) from error
    return Path(found)


def _split(
    name: str,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    n_classes: int,
    test_fraction: float,
    seed: int,
) -> Dataset:
    """Permute by `seed` and cut off a test part."""
    if not 0.0 < test_fraction < 1.0:
        raise InputError(f"test_fraction must lie in (0, 1), got {test_fraction}")
    digest = hashlib.sha256(inputs.tobytes())
    digest.update(labels.tobytes())
    order = np.random.default_rng(seed).permutation(len(labels))
    n_test = round(test_fraction * len(labels))
    test, train = order[:n_test], order[n_test:]
    return Dataset(
        name,
        inputs[train],
        labels[train],
        inputs[test],
        labels[test],
        n_classes,
        {"arrays": f"sha256:{digest.hexdigest()}"},
    )
