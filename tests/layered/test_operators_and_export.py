import numpy as np
import pytest
import torch
from torch import nn

from cimf.errors import InputError, RunError
from cimf.layered.export import (
    SparseLinear,
    csr_layers,
    linear_latency,
    load_csr,
    save_csr,
    save_state,
    with_sparse_linear,
)
from cimf.layered.operators import OperatorModel
from cimf.layered.sparsify import sparsify_layers
from cimf.networks import BasicBlock


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
    return sparsify_layers(net.eval(), u, 0.5, n_jobs=1).network, u


def test_equilibrium_is_the_network(sparse):
    net, u = sparse
    model = OperatorModel(net, (2, 6, 6))
    U = u.double().flatten(1).numpy().T
    reached = model.equilibrium(U)
    with torch.no_grad():
        expected = net.double()(u.double()).numpy().T
    net.float()
    np.testing.assert_allclose(reached.Y, expected, atol=1e-5)  # folding rounds to float32
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


def test_files_round_trip(sparse, tmp_path):
    from safetensors.torch import load_file

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


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_linear_layers_give_the_same_output():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4, bias=False))
    with torch.no_grad():
        net[0].weight.mul_(torch.rand(9, 12) < 0.2)
    fast = with_sparse_linear(net, 0.5)
    assert isinstance(fast[0], SparseLinear)
    assert isinstance(fast[2], nn.Linear)
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(fast(x), net(x))
    timed = linear_latency(16, 16, (0.5, 0.1), batch=2, repeats=2)
    assert all(min(pair) > 0 for pair in timed.values())
    with pytest.raises(InputError, match="densities"):
        linear_latency(4, 4, (0.0,))
