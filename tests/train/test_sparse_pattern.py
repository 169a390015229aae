"""keep_zeros: training keeps the zeros of a sparse network; release_zeros gives it back plain."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import cimf
from cimf.errors import InputError
from cimf.network.copies import plain_copy

OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip
    with torch.no_grad():
        for k in (0, 4):
            net[k].weight *= torch.rand_like(net[k].weight) < 0.3
    return net.eval()


INPUTS = torch.randn(60, 2, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(2))


def zeros(net):
    return [(net[k].weight == 0) for k in (0, 4, 6)]


def train(net, optimiser, steps=12):
    net.train()
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(INPUTS), LABELS).backward()
        optimiser.step()
    return net.eval()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_keeps_every_zero_and_moves_the_rest(net, name):
    before, weights = zeros(net), [net[k].weight.detach().clone() for k in (0, 4, 6)]
    free = copy.deepcopy(net)
    train(free, OPTIMISERS[name](free.parameters()))
    assert sum(int(z.sum()) for z in zeros(free)) < 0.1 * sum(int(z.sum()) for z in before)
    assert cimf.keep_zeros(net) is net
    train(net, OPTIMISERS[name](net.parameters()))
    for k, zero, weight in zip((0, 4, 6), before, weights, strict=True):
        assert torch.equal(net[k].weight == 0, zero)
        assert (net[k].weight != weight)[~zero].all()
    assert not zeros(net)[2].any()
    assert type(net[6]) is nn.Linear  # nothing to hold there


def test_release_gives_back_the_classes_the_order_and_the_output_to_the_bit(net):
    names, classes = list(net.state_dict()), [type(m) for m in net.modules()]
    output = net(INPUTS)
    cimf.keep_zeros(net)
    assert torch.equal(net(INPUTS), output)
    assert isinstance(net[0], nn.Conv2d)
    # Momentum of the zeros from before, and a value that is not a number, are not used.
    train(net, OPTIMISERS["sgd"](net.parameters()), 3)
    with torch.no_grad():
        original = net[4].parametrizations.weight.original
        original[net[4].weight == 0] = torch.nan
    output, before = net(INPUTS), zeros(net)
    assert torch.isfinite(output).all()
    parameters = {id(p) for p in net.parameters()}
    assert cimf.release_zeros(net) is net
    assert list(net.state_dict()) == names
    assert [type(m) for m in net.modules()] == classes
    assert {id(p) for p in net.parameters()} == parameters
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(net(INPUTS), output)
    assert all(torch.equal(a, b) for a, b in zip(zeros(net), before, strict=True))
    cimf.release_zeros(net)  # nothing is held: nothing happens
    assert torch.equal(net(INPUTS), output)


def test_an_optimiser_from_before_goes_on(net):
    before = zeros(net)
    optimiser = OPTIMISERS["sgd"](net.parameters())
    cimf.keep_zeros(net)
    weight = net[4].weight.detach().clone()
    train(net, optimiser)
    assert torch.equal(zeros(net)[1], before[1])
    assert not torch.equal(net[4].weight, weight)


def test_copies_are_independent(net):
    cimf.keep_zeros(net)
    other = copy.deepcopy(net)
    output = net(INPUTS)
    cimf.release_zeros(other)
    assert type(other[0]) is nn.Conv2d
    assert torch.equal(net(INPUTS), output)
    assert torch.equal(other(INPUTS), output)
    train(net, OPTIMISERS["adam"](net.parameters()), 2)
    assert torch.equal(zeros(net)[0], zeros(other)[0])
    assert torch.equal(other(INPUTS), output)
    cimf.release_zeros(net)


def test_states_are_loaded_by_a_network_with_the_same_layers(net):
    plain = net.state_dict()
    other = cimf.keep_zeros(copy.deepcopy(net))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(plain)
    train(other, OPTIMISERS["adam"](other.parameters()), 2)
    cimf.keep_zeros(net).load_state_dict(other.state_dict())
    assert torch.equal(net(INPUTS), other(INPUTS))


def test_called_again_it_holds_the_new_zeros_too(net):
    cimf.keep_zeros(net)
    with torch.no_grad():
        net[6].weight[0] = 0.0
        net[4].parametrizations.weight.original[2] = 0.0
    cimf.keep_zeros(net)
    train(net, OPTIMISERS["adam"](net.parameters()), 2)
    assert (net[6].weight[0] == 0).all()
    assert (net[4].weight[2] == 0).all()


def test_a_network_with_kept_zeros_is_pruned(net):
    samples = torch.randn(300, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    bare = cimf.prune(net, [samples], sparsity=0.9).network
    pruned = cimf.prune(cimf.keep_zeros(net), [samples], sparsity=0.9).network
    assert type(pruned[0]) is nn.Conv2d
    expected, found = bare.state_dict(), pruned.state_dict()
    assert set(expected) == set(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert type(net[0]) is not nn.Conv2d  # the network given is as it was
    cimf.keep_zeros(pruned)
    before = zeros(pruned)
    train(pruned, OPTIMISERS["adam"](pruned.parameters()), 3)
    assert all(torch.equal(a, b) for a, b in zip(zeros(pruned), before, strict=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: prune.random_unstructured(net[4], "weight", 0.5),
        lambda net: parametrizations.weight_norm(net[4]),
        lambda net: parametrizations.orthogonal(net[4], "weight"),
    ],
)
def test_weights_that_are_computed_are_refused_by_name(net, spoil):
    spoil(net)
    keys = list(net.state_dict())
    with pytest.raises(InputError, match=r"layer '4' .*Linear"):
        cimf.keep_zeros(net)
    assert list(net.state_dict()) == keys


def test_another_parametrization_on_top_is_refused_at_release(net):
    cimf.keep_zeros(net)
    parametrizations.spectral_norm(net[4], "weight")
    with pytest.raises(InputError, match="layer '4'"):
        cimf.release_zeros(net)
    assert type(net[0]) is not nn.Conv2d  # nothing has been changed


class Reading(nn.Module):
    """A body of its own, whose outputs are averaged over the steps."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(8, 3)

    def forward(self, x):
        y = self.body(x)
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))


class Stepping(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cell(x[:, 1], self.cell(x[:, 0])))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(torch.relu(self.body(self.table((x[:, 0, :3]).argmax(1)))))


def conv1d():
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(8, 8)
    return Reading(layer)


PACKED = {
    "encoder": lambda: Reading(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
    "attention": lambda: Reading(Attention()),
    "cell": Stepping,
    "tied": Tied,
    "conv1d": conv1d,
}
STEPS = torch.randn(60, 4, 8, generator=torch.Generator().manual_seed(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=6, batch_first=True)

    def forward(self, x):
        return self.attention(x, x[..., :5], x[..., :6])


def sparse(net):
    """Half of the entries of every matrix are zero; but of one, so that orders are mixed."""
    generator = torch.Generator().manual_seed(0)
    matrices = [p for p in net.parameters() if p.ndim > 1]
    with torch.no_grad():
        for p in matrices[: len(matrices) - (len(matrices) > 3)]:
            p *= torch.rand(p.shape, generator=generator) < 0.5
    return net.eval()


def check_zeros(before, after):
    assert [n for n, _ in after.named_parameters()] == [n for n, _ in before.named_parameters()]
    assert [type(m) for m in after.modules()] == [type(m) for m in before.modules()]
    for (name, one), two in zip(before.named_parameters(), after.parameters(), strict=True):
        if one.ndim > 1:
            assert torch.equal(one == 0, two == 0), name
            assert (one != two)[one != 0].any(), name


@pytest.mark.parametrize("name", PACKED)
def test_matrices_within_other_modules_are_held(name):
    torch.manual_seed(0)
    net = sparse(PACKED[name]())
    before = copy.deepcopy(net)
    output = net(STEPS)
    cimf.keep_zeros(net)
    torch.testing.assert_close(net(STEPS), output)
    optimiser = OPTIMISERS["adam"](net.parameters())
    net.train()
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(STEPS), LABELS).backward()
        optimiser.step()
    output = net.eval()(STEPS)
    cimf.release_zeros(net)
    torch.testing.assert_close(net(STEPS), output)
    assert not torch.allclose(output, before(STEPS), atol=1e-3)
    check_zeros(before, net)
    if name == "tied":
        assert net.head.weight is net.table.weight


@pytest.mark.parametrize("name", ["encoder", "gru", "lstm"])
def test_finetune_holds_them_too(name):
    torch.manual_seed(0)
    recurrent = {
        "gru": lambda: Reading(nn.GRU(8, 8, batch_first=True)),
        "lstm": lambda: Reading(nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)),
    }
    net = sparse((PACKED | recurrent)[name]())
    found = cimf.finetune(
        net, [(STEPS, LABELS)], epochs=2, learning_rate=1e-2, weight_decay=0.1, optimizer="adam"
    )
    check_zeros(net, found.network)
    assert not torch.allclose(found.network(STEPS), net(STEPS), atol=1e-3)
    if name != "encoder":
        with pytest.raises(InputError, match=r"layer 'body' \((GRU|LSTM)\).*finetune holds them"):
            cimf.keep_zeros(net)
        with torch.no_grad():
            for p in net.body.parameters():
                p.fill_(0.5)
        cimf.keep_zeros(net)  # nothing to hold there


def test_states_within_other_modules_are_refused():
    net = sparse(PACKED["encoder"]())
    with pytest.raises(InputError, match=r"'body.self_attn' \(MultiheadAttention\)"):
        cimf.finetune(net, STEPS, teacher=net, loss="states", epochs=1)


def test_copies_of_a_held_network_stay_tied():
    net = cimf.keep_zeros(sparse(Tied()))
    copied = plain_copy(net)
    assert copied.head.weight is copied.table.weight
    assert [n for n, _ in copied.named_parameters()] == [n for n, _ in Tied().named_parameters()]
