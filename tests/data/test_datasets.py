import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pooch
import pytest

from cimf.data import datasets
from cimf.errors import DataError, InputError, UnknownNameError


def write_idx(path: Path, array: np.ndarray) -> bytes:
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return path.read_bytes()


def test_idx_round_trip(tmp_path):
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", images)
    np.testing.assert_array_equal(datasets.read_idx(tmp_path / "a.gz"), images)


@pytest.mark.parametrize(
    "damage", ["missing", "not gzip", "half", "short body", "wrong type", "empty"]
)
def test_damaged_idx_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "train.gz"
    raw = write_idx(path, np.zeros((5, 6)))
    if damage == "missing":
        path.unlink()
    elif damage == "not gzip":
        path.write_bytes(b"hello")
    elif damage == "half":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "short body":
        path.write_bytes(gzip.compress(gzip.decompress(raw)[:-3]))
    elif damage == "wrong type":
        path.write_bytes(gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)))
    else:
        path.write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match=r"train\.gz"):
        datasets.read_idx(path)


def test_a_changed_file_fails_its_published_checksum(tmp_path, monkeypatch):
    for name in datasets._FASHION_MD5:
        write_idx(tmp_path / "fashionmnist" / name, np.zeros((2, 28, 28)))
    monkeypatch.setenv("CIMF_DATA", str(tmp_path))
    with pytest.raises(DataError, match="published"):
        datasets.fashion_mnist()


def test_without_files_and_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CIMF_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "cache_folder", lambda: tmp_path / "cache")

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(DataError, match="set CIMF_DATA"):
        datasets.fashion_mnist()


def test_a_data_folder_that_is_not_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CIMF_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="not a folder"):
        datasets.data_folder()
    monkeypatch.delenv("CIMF_DATA")
    assert datasets.data_folder() is None


@pytest.mark.skipif(not os.environ.get("CIMF_DATA"), reason="CIMF_DATA is not set")
def test_fashion_mnist_is_the_published_set():
    data = datasets.fashion_mnist()
    assert data.train_inputs.shape == (60_000, 784)
    assert data.train_inputs.dtype == np.float32
    assert np.bincount(data.train_labels).tolist() == [6000] * 10
    assert np.bincount(data.test_labels).tolist() == [1000] * 10
    assert (data.train_inputs.min(), data.train_inputs.max()) == (0.0, 1.0)
    # Mean and deviation of the training pixels, as published with many tutorials.
    assert data.train_inputs.mean(dtype=np.float64) == pytest.approx(0.2860, abs=5e-5)
    assert data.train_inputs.std(dtype=np.float64) == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize("loader", [datasets.digits, datasets.synthetic])
def test_splits_are_seeded_disjoint_and_complete(loader):
    first, again, other = loader(seed=3), loader(seed=3), loader(seed=4)
    np.testing.assert_array_equal(first.train_inputs, again.train_inputs)
    assert first.checksums == again.checksums
    assert not np.array_equal(first.test_labels, other.test_labels)
    assert set(np.unique(first.train_labels)) == set(range(first.n_classes))
    assert len(first.train_labels) == len(first.train_inputs)
    assert first.describe()["test_samples"] == round(
        0.25 * (len(first.train_labels) + len(first.test_labels))
    )


def test_digits_checksum_does_not_depend_on_the_split_but_on_the_data():
    assert datasets.digits(seed=0).checksums == datasets.digits(seed=1).checksums
    assert datasets.synthetic(seed=0).checksums != datasets.synthetic(seed=1).checksums


def test_unknown_names_and_sizes():
    with pytest.raises(UnknownNameError, match="digits, fashion_mnist, synthetic"):
        datasets.load("mnist")
    assert datasets.load("digits").name == "digits"
    with pytest.raises(InputError):
        datasets.synthetic(n_classes=1)
    with pytest.raises(InputError):
        datasets.digits(test_fraction=1.0)
