"""The model's constructor, files and torch view."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from cimf.errors import InputError, RunError
from cimf.model import ConvergenceWarning, ImplicitModel
from cimf.model.storage import _digest
from cimf.network.activations import ACTIVATIONS, as_activation
from cimf.network.state_blocks import Block

BLOCKS = (
    Block("head", 0, 2, as_activation("leaky_relu", negative_slope=0.3), (2,), ("body", "input")),
    Block("body", 2, 5, ACTIVATIONS["tanh"], (3, 1), ("input",)),
)


def _model(sparse=False, acyclic=False):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(5, 5)) * (rng.random((5, 5)) < 0.6)
    A = np.triu(A, 1) if acyclic else A * 0.9 / np.abs(A).sum(axis=1).max()
    B, C, D = rng.normal(size=(5, 4)), rng.normal(size=(3, 5)), rng.normal(size=(3, 4))
    if sparse:
        A, B = scipy.sparse.csr_array(A), scipy.sparse.coo_array(B)
    return ImplicitModel(A, B, C, D, BLOCKS, bias=True)


U = np.random.default_rng(1).normal(size=(3, 6))


@pytest.mark.parametrize("sparse", [False, True])
def test_save_and_load(tmp_path, sparse):
    model, path = _model(sparse), tmp_path / "model.safetensors"
    model.save(path)
    again = ImplicitModel.load(path)
    assert again.blocks == model.blocks
    assert again.bias
    assert scipy.sparse.issparse(again.A) == sparse
    np.testing.assert_array_equal(again.predict(U), model.predict(U))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    model.save(path)  # replaces


def test_a_model_without_states_or_with_an_empty_sparse_matrix_survives(tmp_path):
    path = tmp_path / "model.safetensors"
    empty = ImplicitModel(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((2, 0)), np.ones((2, 1)))
    empty.save(path)
    np.testing.assert_array_equal(ImplicitModel.load(path).predict([[3.0]]), [[3.0], [3.0]])
    zero = ImplicitModel(scipy.sparse.csr_array((2, 2)), np.eye(2), np.eye(2), np.eye(2))
    zero.save(path)
    assert ImplicitModel.load(path).A.nnz == 0


def test_damaged_files(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(RunError, match="cannot be read"):
        ImplicitModel.load(path)
    _model().save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-9], b"\x00" * 100):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read"):
            ImplicitModel.load(path)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(RunError, match="checksum"):
        ImplicitModel.load(path)
    renamed = whole.replace(b"tanh", b"relu")
    path.write_bytes(renamed)
    with pytest.raises(RunError, match="checksum"):
        ImplicitModel.load(path)
    save_file({"A": np.eye(2)}, path)
    with pytest.raises(
        RunError, match=r"holds tensors \(A, ...\), no .*load_state_dict.*from_network"
    ):
        ImplicitModel.load(path)


def test_the_header_is_readable_json(tmp_path):
    path = tmp_path / "model.safetensors"
    _model().save(path)
    with safe_open(path, framework="numpy") as stream:
        record = json.loads(stream.metadata()["model"])
    assert record["format"] == "cimf.ImplicitModel"
    assert record["version"] == 2
    assert [block["name"] for block in record["blocks"]] == ["head", "body"]


def test_a_file_of_version_1_is_read(tmp_path):
    """Written as version 1 did: dense matrices dense, sparse ones as CSR parts, no "sparse"."""
    path, model = tmp_path / "model.safetensors", _model()
    sparse = scipy.sparse.csr_array(model.A)
    tensors = {name: getattr(model, name) for name in "BCD"}
    tensors |= {f"A.{part}": getattr(sparse, part) for part in ("data", "indices", "indptr")}
    record = {
        "format": "cimf.ImplicitModel",
        "version": 1,
        "bias": False,
        "shapes": {name: list(getattr(model, name).shape) for name in "ABCD"},
        "blocks": [block.to_json() for block in model.blocks],
    }
    text = json.dumps(record, sort_keys=True)
    save_file(tensors, path, metadata={"model": text, "sha256": _digest(text, tensors)})
    loaded = ImplicitModel.load(path)
    assert scipy.sparse.issparse(loaded.A)
    np.testing.assert_array_equal(loaded.A.toarray(), model.A)
    for name in "BCD":
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))


def test_zeros_are_not_stored(tmp_path):
    """823 non-zeros took 90 kB; a dense model comes back dense."""
    rng = np.random.default_rng(0)
    A = np.zeros((100, 100))
    A.ravel()[rng.choice(10_000, 823, replace=False)] = rng.normal(size=823)
    path = tmp_path / "model.safetensors"
    model = ImplicitModel(A, np.ones((100, 3)), np.ones((2, 100)), np.ones((2, 3)))
    model.save(path)
    assert path.stat().st_size < 12 * 823 + 8 * 503 + 2_000
    loaded = ImplicitModel.load(path)
    for name in "ABCD":
        assert isinstance(getattr(loaded, name), np.ndarray)
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    monkeypatch.setattr("cimf.model.storage._VERSION", 3)
    _model().save(path)
    monkeypatch.setattr("cimf.model.storage._VERSION", 2)
    with pytest.raises(RunError, match="version 3"):
        ImplicitModel.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"A": np.zeros((5, 4))},
        {"B": np.zeros((4, 4))},
        {"C": np.zeros((3, 4))},
        {"D": np.zeros((2, 4))},
        {"A": np.full((5, 5), np.nan)},
        {"B": np.full((5, 4), np.inf)},
        {"A": np.zeros((5, 5), dtype=np.float16)},
        {"A": np.zeros((5, 5), dtype=complex)},
        {"A": scipy.sparse.csr_array(np.full((5, 5), np.nan))},
        {"A": np.zeros(5)},
        {"B": np.zeros((5, 0)), "D": np.zeros((3, 0))},
        {"activation": "rleu"},
        {"activation": BLOCKS[:1]},
    ],
)
def test_bad_models(change):
    model = _model()
    fields = {name: getattr(model, name) for name in "ABCD"} | {"activation": BLOCKS}
    with pytest.raises(InputError):
        ImplicitModel(**{**fields, **change})


def test_matrices_are_copies_and_read_only():
    A = np.zeros((1, 1))
    model = ImplicitModel(A, [[1.0]], [[1.0]], [[0.0]])
    A[0, 0] = 5.0
    assert model.A[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        model.A[0, 0] = 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (U.T, "looks transposed"),
        (np.vstack([U, np.ones(6)]).T, "looks transposed"),
        (U[:2], r"\(3, m\), or \(4, m\)"),
        (np.vstack([U, np.zeros(6)]), "last row of U must be ones"),
        (U[0], "dimension"),
        (np.full((3, 2), np.nan), "NaN"),
        (U.astype(np.float16), "float16"),
    ],
)
def test_bad_inputs(wrong, message):
    with pytest.raises(InputError, match=message):
        _model().predict(wrong)


def test_the_row_of_ones_may_be_left_out():
    np.testing.assert_array_equal(_model().predict(U), _model().predict(np.vstack([U, np.ones(6)])))


@pytest.mark.parametrize("acyclic", [True, False])
@pytest.mark.parametrize("sparse", [False, True])
def test_module_is_the_model(acyclic, sparse):
    model = _model(sparse, acyclic)
    module = model.to_module()
    u = torch.from_numpy(U.T.copy())
    expected = model.predict(U).T
    np.testing.assert_allclose(module(u).numpy(), expected, atol=1e-11)
    ones = torch.cat([u, torch.ones(6, 1, dtype=torch.float64)], 1)
    np.testing.assert_array_equal(module(ones), module(u))
    single = copy.deepcopy(module).float()
    assert single(u.float()).dtype == torch.float32
    np.testing.assert_allclose(single(u.float()).numpy(), expected, atol=1e-4)
    other = model.to_module()
    other.load_state_dict(module.state_dict())
    with pytest.raises(InputError, match="samples are rows"):
        module(u.T)
    assert "n=5" in repr(module)


@pytest.mark.parametrize("acyclic", [True, False])
def test_module_gradients(acyclic):
    module = _model(acyclic=acyclic).to_module()
    u = torch.from_numpy(U.T[:2].copy()).requires_grad_()
    assert torch.autograd.gradcheck(module, (u,), check_undefined_grad=False)
    # Gradients of the matrices as well, if a user asks for them.
    module.A.requires_grad_()
    module(u).sum().backward()
    step = 1e-6 * torch.from_numpy(np.random.default_rng(0).normal(size=(5, 5)))
    step *= module.A != 0
    with torch.no_grad():
        base = module.A.clone()
        module.A.copy_(base + step)
        up = module(u).sum()
        module.A.copy_(base - step)
        down = module(u).sum()
    assert float((module.A.grad * step).sum()) == pytest.approx(float(up - down) / 2, rel=1e-5)


def test_module_warns_when_it_does_not_converge():
    module = ImplicitModel([[3.0]], [[1.0]], [[1.0]], [[0.0]]).to_module(max_iter=20)
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        module(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))


def test_empty_module():
    model = ImplicitModel(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((2, 0)), np.ones((2, 1)))
    y = model.to_module()(torch.tensor([[3.0]], dtype=torch.float64))
    np.testing.assert_array_equal(y, [[3.0, 3.0]])
