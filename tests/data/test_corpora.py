import gzip
import io
import os

import numpy as np
import pytest

from cimf.data import corpora
from cimf.data.networks import resnet20_cifar10
from cimf.errors import DataError, InputError

pytest.importorskip("pyarrow")
real = pytest.mark.skipif(not os.environ.get("CIMF_DATA"), reason="CIMF_DATA is not set")


def write_cifar(folder, count=6, column="label"):
    import pyarrow as pa
    import pyarrow.parquet
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": None})
    for split in ("train", "test"):
        table = pa.table({"img": images, column: list(range(count))})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return pixels


def test_cifar_files_are_read(tmp_path, monkeypatch):
    pixels = write_cifar(tmp_path / "cifar10")
    monkeypatch.setenv("CIMF_DATA", str(tmp_path))
    data = corpora.cifar10(train=4)
    assert data.train_inputs.shape == (4, 3, 32, 32)
    assert data.train_inputs.dtype == np.float32
    np.testing.assert_array_equal(
        np.rint(data.test_inputs * 255), pixels.transpose(0, 3, 1, 2).astype(np.float32)
    )
    assert data.test_labels.tolist() == list(range(6))
    assert len(data.checksums) == 2
    with pytest.raises(DataError, match="100 images"):
        corpora.cifar10(train=100)
    with pytest.raises(InputError, match="test = 0"):
        corpora.cifar10(test=0)
    with pytest.raises(DataError, match="cifar100"):
        corpora.cifar100()


def test_corrupt_and_missing_files_are_data_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("CIMF_DATA", str(tmp_path))
    for reader in (corpora.cifar10, corpora.newsgroups, resnet20_cifar10):
        with pytest.raises(DataError, match="CIMF_DATA"):
            reader()
    write_cifar(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="test-00000"):
        corpora.cifar10()
    (tmp_path / "20news").mkdir()
    (tmp_path / "20news" / "train.jsonl.gz").write_bytes(b"text")
    with pytest.raises(DataError, match=r"train\.jsonl\.gz"):
        corpora.newsgroups()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet20-cifar10.safetensors").write_bytes(b"0")
    with pytest.raises(DataError, match="resnet20-cifar10"):
        resnet20_cifar10()


def test_newsgroups_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("CIMF_DATA", str(tmp_path))
    (tmp_path / "20news").mkdir()
    for split in ("train", "test"):
        with gzip.open(tmp_path / "20news" / f"{split}.jsonl.gz", "wt") as stream:
            stream.write('{"text": "a b", "label": 1, "label_text": "sci"}\n')
            stream.write('{"text": "c", "label": 0, "label_text": "alt"}\n')
    texts = corpora.newsgroups()
    assert texts.classes == ("alt", "sci")
    assert texts.train_texts == ("a b", "c")
    assert texts.test_labels.tolist() == [1, 0]


@real
def test_the_published_network_classifies_real_images():
    import torch

    trained = resnet20_cifar10()
    data = corpora.cifar10(train=1, test=200)
    with torch.no_grad():
        predicted = trained.network(trained.prepare(data.test_inputs)).argmax(1).numpy()
    assert (predicted == data.test_labels).mean() > 0.85
