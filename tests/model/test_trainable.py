"""Gradients through the equilibrium: finite differences, unrolling, changing patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cimf.model import ConvergenceWarning, ImplicitModel
from cimf.model.fixed_point import fixed_point
from cimf.network.activations import as_activation
from cimf.network.state_blocks import Block

BLOCKS = (Block("a", 0, 3, as_activation("tanh")), Block("b", 3, 7, as_activation("gelu")))


def make(seed=0, n=7, norm=0.8, activation=BLOCKS, acyclic=False):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    A = np.triu(A, 1) if acyclic else A
    A *= norm / np.abs(A).sum(axis=1).max()
    B, C, D = (rng.normal(size=s) for s in ((n, 4), (2, n), (2, 4)))
    return ImplicitModel(A, B, C, D, activation, bias=True)


def inputs(m=5, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(m, 3)))


def unrolled(module, u, steps):
    u = torch.cat([u, u.new_ones(len(u), 1)], 1)
    x = u.new_zeros(len(u), len(module.A))
    for _ in range(steps):
        x = module.activate(x @ module.A.T + u @ module.B.T)
    return x @ module.C.T + u @ module.D.T


@pytest.mark.parametrize("acyclic", [True, False])
@pytest.mark.parametrize("activation", [BLOCKS, "relu", "sigmoid"])
def test_gradients_of_all_matrices_and_inputs(acyclic, activation):
    module = make(acyclic=acyclic, activation=activation).to_module()

    def run(A, B, C, D, u):
        return torch.func.functional_call(module, {"A": A, "B": B, "C": C, "D": D}, (u,))

    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    if acyclic:  # the entries that stay zero are no variables
        mask = values[0] != 0
        check = lambda A, *rest: run(torch.where(mask, A, 0.0), *rest)  # noqa: E731
    else:
        check = run
    assert torch.autograd.gradcheck(check, (*values, inputs(2).requires_grad_()))


@pytest.mark.parametrize("norm", [0.5, 0.95])
def test_gradients_equal_those_of_unrolling(norm):
    module = make(2, norm=norm).to_module().requires_grad_()
    u = inputs()
    grads = []
    for y in (module(u), unrolled(module, u, 2000)):
        module.zero_grad()
        (y**2).sum().backward()
        grads.append([p.grad.clone() for p in module.parameters()])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_step_that_closes_a_cycle_is_noticed():
    """With the number of levels of the first A, the trained model would stop short."""
    module = make(3, activation="relu", acyclic=True).to_module().requires_grad_()
    module(inputs()).sum().backward()
    with torch.no_grad():
        module.A += 0.1 * torch.from_numpy(np.random.default_rng(0).random((7, 7)))
    model = ImplicitModel.from_module(module)
    assert not model.wellposedness().acyclic
    expected = model.predict(inputs().numpy().T).T
    np.testing.assert_allclose(module(inputs()).detach().numpy(), expected, atol=1e-11)
    with torch.no_grad():
        module.A.copy_(torch.triu(module.A, 1))
    expected = ImplicitModel.from_module(module).predict(inputs().numpy().T).T
    np.testing.assert_allclose(module(inputs()).detach().numpy(), expected, atol=1e-11)


def test_parameters_are_frozen_until_asked_for():
    module = make().to_module()
    assert [name for name, _ in module.named_parameters()] == list("ABCD")
    assert not module(inputs()).requires_grad
    assert list(module.state_dict()) == list("ABCD")
    assert module.requires_grad_()(inputs()).requires_grad


def test_from_module_is_the_inverse_of_to_module():
    model = make()
    back = ImplicitModel.from_module(model.to_module())
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(back, name), getattr(model, name))
    assert (back.blocks, back.bias) == (model.blocks, model.bias)


def test_single_precision_trains():
    module = make().to_module().float().requires_grad_()
    module(inputs().float()).sum().backward()
    exact = make().to_module().requires_grad_()
    exact(inputs()).sum().backward()
    for single, double in zip(module.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-4)


def test_an_adjoint_without_solution_is_warned_about():
    """x = |x| / 1 + u ... has a solution for u < 0 only where the slope is 0; here it is 1."""
    model = ImplicitModel([[1.0]], [[1.0]], [[1.0]], [[0.0]], "relu")
    module = model.to_module(max_iter=30).requires_grad_()
    u = torch.tensor([[0.0]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="in the forward iteration"):
        module(u + 1)
    linear = ImplicitModel([[1.0]], [[1.0]], [[1.0]], [[0.0]], "identity").to_module(max_iter=30)
    y = linear.requires_grad_()(u)  # x = x has the solution 0
    with pytest.warns(ConvergenceWarning, match="in the backward iteration"):
        y.sum().backward()


@pytest.mark.parametrize("norm", [0.9, 0.99, 0.999])
def test_acceleration_needs_fewer_steps_than_the_plain_iteration(norm):
    rng = np.random.default_rng(0)
    M = rng.random((30, 30))
    M = torch.from_numpy(M * norm / M.sum(axis=1, keepdims=True))
    b = torch.from_numpy(rng.random((4, 30)))
    count = 0

    def step(x):
        nonlocal count
        count += 1
        return torch.relu(x @ M.T + b)

    x, done = fixed_point(step, torch.zeros_like(b), 1e-12, 2000)
    assert done.all()
    assert count <= 30  # the plain one: log(1e-12) / log(norm) = 262, 2,749, 27,617
    expected = torch.linalg.solve(torch.eye(30).double() - M, b.T).T
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=0)


def test_rows_do_not_depend_on_the_batch():
    module = make().to_module()
    u = inputs(6)
    together = module(u)
    for k in range(6):
        torch.testing.assert_close(module(u[k : k + 1]), together[k : k + 1], rtol=1e-12, atol=0)
