import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors.torch import load_file
from torch import nn

import cimf
from cimf.data.networks import BasicBlock
from cimf.errors import CaptureError, InputError, RunError
from cimf.methods.base import Pruned
from cimf.model import ImplicitModel, explicit
from cimf.model.operators import OperatorModel, implicit_summary
from cimf.network.export import (
    SparseLinear,
    break_even,
    csr_layers,
    linear_latency,
    load_csr,
    save_csr,
    save_state,
    with_sparse_linear,
)


@pytest.fixture(scope="module")
def sparse():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        BasicBlock(4, 4, 1, projection=False, relu=True),
        BasicBlock(4, 6, 2, projection=False, relu=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    u = torch.randn(40, 2, 6, 6)
    net(u)
    return cimf.prune(net.eval(), u, 0.5, n_jobs=1).network, u


def test_equilibrium_is_the_network(sparse):
    net, u = sparse
    model = OperatorModel(net, (2, 6, 6))
    U = u.double().flatten(1).numpy().T
    reached = model.equilibrium(U)
    with torch.no_grad():
        expected = net.double()(u.double()).numpy().T
    net.float()
    np.testing.assert_allclose(reached.Y, expected, atol=1e-12)
    assert reached.residual == 0.0
    ones = np.vstack([U, np.ones(U.shape[1])])
    Z = model.A @ reached.X + model.B @ ones
    phi = np.concatenate([block.activation.numpy(Z[block.rows]) for block in model.blocks])
    np.testing.assert_allclose(phi, reached.X, atol=1e-9)
    np.testing.assert_allclose(model.C @ reached.X + model.D @ ones, reached.Y, atol=1e-9)
    # A planted wrong state is no equilibrium.
    assert np.abs(model.A @ (reached.X + 1) - model.A @ reached.X).max() > 1e-3
    with pytest.raises(InputError, match="shape"):
        model.equilibrium(U[:5])


def test_what_an_operator_model_takes_as_input():
    model = OperatorModel(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), (2,))
    u = np.array([[200], [3]], np.uint8)
    expected = model.equilibrium(u.astype(np.float64)).Y
    np.testing.assert_array_equal(model.equilibrium(u).Y, expected)
    np.testing.assert_array_equal(model.equilibrium(torch.from_numpy(u)).Y, expected)
    for bad, named in (
        (np.ma.array([[1.0], [2.0]]), "masked"),
        (np.array([[1j], [0.0]]), "complex"),
        (np.array([[np.nan], [0.0]]), "NaN"),
        (np.array([[1.0], [2.0], [3.0]]), "must be ones"),
    ):
        with pytest.raises(InputError, match=named):
            model.equilibrium(bad)


def test_the_operator_is_strictly_triangular_and_its_norms_bound_it(sparse):
    net, _ = sparse
    model = OperatorModel(net, (2, 6, 6))
    A = model.A @ np.eye(model.n_states)
    for block in model.blocks:
        assert not A[block.rows, : block.stop].any()
    exact = np.abs(A).sum(axis=1)
    bound = model.row_norms()
    assert (bound >= exact - 1e-9).all()
    assert np.median(bound - exact) < 1e-9


def test_the_stored_matrices_are_the_operators_and_their_equilibrium_the_network(sparse):
    net, u = sparse
    model = OperatorModel(net, (2, 6, 6))
    stored = model.to_sparse()
    n, p = model.n_states, model.n_inputs
    for name, width in (("A", n), ("B", p), ("C", n), ("D", p)):
        columns = getattr(model, name) @ np.eye(width)
        matrix = getattr(stored, name)
        assert scipy.sparse.issparse(matrix)
        np.testing.assert_allclose(matrix.toarray(), columns, rtol=0, atol=1e-14)
    exact = np.abs(stored.A.toarray()).sum(axis=1)
    assert (model.row_norms() >= exact - 1e-12).all()
    assert stored.wellposedness().acyclic
    U = u.double().flatten(1).numpy().T
    with torch.no_grad():
        expected = net.double()(u.double()).numpy().T
    net.float()
    np.testing.assert_allclose(stored.predict(U), expected, atol=1e-12)
    own = ImplicitModel.from_network(model.network.graph.module, (2, 6, 6), sparse=True)
    assert own.A.nnz == stored.A.nnz
    assert abs(own.A - stored.A).max() < 1e-14


class Branches(nn.Module):
    """An input that goes to the output, a sum that is both state and output, unread states."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unread = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(5, 2)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        z = self.second(torch.relu(self.first(x)))
        return z + torch.relu(z) + self.head(x) + 0 * torch.relu(self.unread(x)).sum(1, True)


def test_the_stored_matrices_of_branches():
    torch.manual_seed(0)
    net, u = Branches(), torch.randn(7, 5)
    model = OperatorModel(net, (5,)).to_sparse()
    with torch.no_grad():
        expected = net.double()(u.double()).numpy().T
    np.testing.assert_allclose(model.predict(u.double().numpy().T), expected, atol=1e-12)
    assert model.D[:, :-1].nnz == 15
    unread = next(block for block in model.blocks if block.stop - block.start == 2)
    assert model.C[:, unread.rows].nnz == 0


def test_too_many_nonzeros_are_refused_before_anything_is_built(sparse, monkeypatch):
    net, _ = sparse
    model = OperatorModel(net, (2, 6, 6))
    stored = model.to_sparse()
    count = sum(getattr(stored, name).nnz for name in "ABCD")
    monkeypatch.setattr(explicit.Reader, "read", lambda self: pytest.fail("it was built"))
    with pytest.raises(CaptureError, match=r"about .* non-zeros.*memory_limit") as error:
        model.to_sparse(memory_limit=0.5 * 12 * count)
    estimate = int(str(error.value).split("about ")[1].split()[0].replace(",", ""))
    assert estimate == pytest.approx(count, rel=0.2)


def test_rescaling_the_operator_brings_every_row_norm_to_kappa(sparse):
    net, _ = sparse
    model = OperatorModel(net, (2, 6, 6))
    found = model.wellposedness(0.5)
    assert next(iter(found.row_norm)) == model.blocks[-1].name, "in order of execution"
    s = np.ones(model.n_states)
    for block in model.blocks:
        s[block.rows] = found.scale[block.name]
        assert found.row_norm[block.name] == pytest.approx(model.row_norms()[block.rows].max())
    A = np.abs(model.A @ np.eye(model.n_states))
    norms = (A @ s) / s
    assert norms.max() <= 0.5 * (1 + 1e-12)
    assert max(found.rescaled_norm.values()) <= 0.5 * (1 + 1e-12)
    assert found.layer_range == pytest.approx(s.max() / s.min())
    # A scale per state needs no larger range; Theorem 8 on the stored matrix finds the same one.
    assert 1.0 < found.state_range <= found.layer_range
    stored = model.to_sparse().rescale(0.5)[1]
    assert found.state_range == pytest.approx(stored.max() / stored.min(), rel=0.1)
    # Any radius can be had, at the price of the range: the norm itself says nothing.
    assert model.wellposedness(1e-3).layer_range > 1e6 * found.layer_range
    text = str(found)
    assert "eigenvalue of |A| is 0" in text
    assert f"{found.layer_range:.3g}" in text
    with pytest.raises(InputError, match="kappa"):
        model.wellposedness(0.0)


def test_one_layer_and_activations_that_cannot_be_rescaled():
    linear = OperatorModel(nn.Sequential(nn.Linear(3, 2)), (3,))
    assert linear.wellposedness().layer_range == 1.0
    assert linear.to_sparse().D.shape == (2, 4)
    tanh = OperatorModel(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), (3,))
    with pytest.raises(InputError, match="tanh"):
        tanh.wellposedness()
    assert (tanh.row_norms() == 0.0).all()


@pytest.mark.parametrize("width", [3, 4])
def test_a_batch_norm_over_tokens_is_not_folded(width):
    """Its channels are the tokens, not the outputs of the linear layer before it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(2, width), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * width, 3)
    )
    nn.init.uniform_(net[1].running_mean, -1, 1)
    nn.init.uniform_(net[1].running_var, 0.5, 2)
    u = torch.randn(5, 3, 2, dtype=torch.float64)
    model = OperatorModel(net.eval(), (3, 2))
    reached = model.equilibrium(u.flatten(1).numpy().T)
    with torch.no_grad():
        expected = net.double()(u).numpy().T
    np.testing.assert_allclose(reached.Y, expected, atol=1e-12)


def test_the_summary_says_what_is_an_implicit_model(sparse):
    net, u = sparse
    text = implicit_summary(net, u)
    assert "implicit model: 540 states" in text
    assert float(text.split("output to ")[1].split()[0]) < 1e-5
    assert "brings every row norm to at most 0.99" in text
    tanh = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    text = implicit_summary(tanh, torch.zeros(2, 3))
    assert text.startswith("implicit model: 2 states")
    assert "not positively homogeneous" in text
    pooled = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    text = implicit_summary(pooled, u)
    assert text.startswith("no implicit model: layer '1' (MaxPool2d)")
    tokens = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    text = implicit_summary(tokens, torch.zeros(2, 3, dtype=torch.long))
    assert text.startswith("no implicit model: layer '0' (Embedding)")


def test_norms_of_networks_that_subtract_are_refused():
    class Difference(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(torch.relu(h - h.flip(1)))

    torch.manual_seed(0)
    model = OperatorModel(Difference(), (3,))
    with pytest.raises(CaptureError, match="subtracts"):
        model.row_norms()
    assert np.abs(model.to_sparse().A.toarray()).sum(axis=1).max() == 2.0


def test_files_round_trip(sparse, tmp_path):
    net, _ = sparse
    save_state(net, tmp_path / "net.safetensors")
    state = load_file(tmp_path / "net.safetensors")
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
    save_csr(net, tmp_path / "rows.safetensors")
    loaded = load_csr(tmp_path / "rows.safetensors")
    for path, rows in csr_layers(net).items():
        weight = net.get_submodule(path).weight.detach().flatten(1).numpy()
        np.testing.assert_array_equal(loaded[path].toarray(), weight)
        assert rows.nnz == np.count_nonzero(weight)
    (tmp_path / "rows.safetensors").write_bytes(b"none")
    with pytest.raises(RunError, match="CSR"):
        load_csr(tmp_path / "rows.safetensors")


class Tied(nn.Module):
    """Token embeddings that are also the weights of the head, and a view of a larger tensor."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.words.weight
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4)[:, :2].T)


def test_shared_tensors_are_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    net, other = Tied(), Tied()
    other.view.zero_()
    Pruned(net, report=None, inputs=None).save(tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert other.head.weight is other.words.weight
    assert torch.equal(other.head.weight, net.words.weight)
    assert torch.equal(other.view, torch.tensor([[0.0, 4.0, 8.0], [1.0, 5.0, 9.0]]))


@pytest.mark.parametrize(("columns", "rows"), [(5, 0), (0, 3), (0, 0)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_layers_without_weights_become_sparse(columns, rows):
    net = nn.Sequential(nn.Linear(columns, rows))
    fast = with_sparse_linear(net, 0.1)
    assert isinstance(fast[0], SparseLinear)
    for samples in ((4,), (1,), (2, 3)):
        x = torch.randn(*samples, columns)
        torch.testing.assert_close(fast(x), net(x))


def test_sparse_linear_layers_are_saved_converted_and_read(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    fast, other = (with_sparse_linear(n, 1.0) for n in (net, nn.Sequential(*map(_changed, net))))
    x = torch.randn(3, 12)
    save_state(fast, tmp_path / "fast.safetensors")
    other = copy.deepcopy(other)
    other.load_state_dict(load_file(tmp_path / "fast.safetensors"))
    torch.testing.assert_close(other(x), net(x))
    torch.testing.assert_close(copy.deepcopy(fast).double()(x.double()), net.double()(x.double()))
    rows = csr_layers(fast.double())
    assert rows["0"].dtype == np.float64
    np.testing.assert_array_equal(rows["0"].toarray(), net[0].weight.detach().numpy())
    assert csr_layers(net)["2"].dtype == np.float64
    assert isinstance(with_sparse_linear(net[0], 1.0), SparseLinear)
    with pytest.raises(InputError, match="float32"):
        with_sparse_linear(net.bfloat16(), 1.0)
    with pytest.raises(RunError, match="CSR"):
        load_csr(tmp_path / "fast.safetensors")


def _changed(module):
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 1, 2)
    return module


def test_sparse_linear_layers_give_the_same_output():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4, bias=False))
    with torch.no_grad():
        net[0].weight.mul_(torch.rand(9, 12) < 0.2)
    fast = with_sparse_linear(net, 0.5)
    assert isinstance(fast[0], SparseLinear)
    assert f"12, 9, {int(net[0].weight.count_nonzero())} non-zeros" in str(fast)
    assert isinstance(fast[2], nn.Linear)
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(fast(x), net(x))
    for single in (x[:1, 0], x[0, 0], x[:1, :1]):
        torch.testing.assert_close(fast(single), net(single))
    timed = linear_latency(16, 16, (0.5, 0.1), batch=2, seconds=0.0)
    assert all(min(pair) > 0 for pair in timed.values())
    with pytest.raises(InputError, match="densities"):
        linear_latency(4, 4, (0.0,))


@pytest.mark.parametrize(
    ("ratios", "density"),
    [
        ({0.1: 0.5, 0.4: 2.0}, 0.2),  # the straight line in log-log
        ({0.1: 0.5, 0.2: 0.8}, 1.0),
        ({0.1: 1.1, 0.2: 2.0}, np.nan),
        ({0.01: 0.5, 0.04: 2.0, 0.1: 0.9, 0.2: 3.0}, 0.02),  # the first loss counts
    ],
)
def test_break_even(ratios, density):
    found = break_even({key: (3.0, 3.0 * value) for key, value in ratios.items()})
    assert found == pytest.approx(density, nan_ok=True)
