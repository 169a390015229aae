"""cimf.finetune: the pattern of zeros, the losses, batch norms, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import cimf
from cimf.errors import InputError, TrainingError, UnknownNameError
from cimf.train.norms import align_norms, reset_norms

G = torch.Generator().manual_seed(0)
X = torch.randn(90, 2, 5, 5, generator=G)
LABELS = (X[:, 0].mean((1, 2)) > 0).long() + (X[:, 1].mean((1, 2)) > 0).long()
BATCHES = list(X.split(30))
PAIRS = list(zip(BATCHES, LABELS.split(30), strict=True))


class Network(nn.Module):
    """Convolutions with batch norms, one behind a shortcut, in-place activations."""

    def __init__(self):
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.two, self.norm_two = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(54, 3)

    def forward(self, x):
        x = torch.relu_(self.norm_one(self.one(x)))
        x = torch.relu_(self.norm_two(self.two(x)) + x)
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(2)
    net = Network()
    pairs = [(X, LABELS)]
    return cimf.finetune(net, pairs, epochs=30, batch_size=30, learning_rate=1e-2).network.eval()


@pytest.fixture(scope="module")
def sparse(dense):
    return cimf.prune(dense, X, 0.6, "magnitude-global").network


def pattern(net):
    return [p != 0 for path, p in net.named_parameters() if p.ndim > 1]


def accuracy(net):
    with torch.no_grad():
        return float((net(X).argmax(1) == LABELS).double().mean())


def test_a_network_is_trained_on_labels(dense):
    assert accuracy(dense) > 0.9


@pytest.mark.parametrize(
    ("batches", "given"),
    [
        (PAIRS, {}),
        (BATCHES, {"teacher": True}),
        (BATCHES, {"teacher": True, "loss": "outputs"}),
        (BATCHES, {"teacher": True, "loss": "states"}),
        (PAIRS, {"teacher": True, "label_weight": 0.5}),
        (PAIRS, {"norms": "frozen", "optimizer": "sgd", "weight_decay": 1e-2}),
    ],
)
def test_the_zeros_stay_and_the_loss_falls(dense, sparse, batches, given):
    given = {**given, "teacher": dense} if "teacher" in given else given
    before = copy.deepcopy(sparse.state_dict())
    result = cimf.finetune(sparse, batches, epochs=6, batch_size=30, **given)
    net = result.network
    assert type(net) is Network
    assert [name for name, _ in net.named_parameters()] == [
        name for name, _ in sparse.named_parameters()
    ]
    assert not net.training
    assert all(torch.equal(a, b) for a, b in zip(pattern(net), pattern(sparse), strict=True))
    assert not torch.equal(net.one.weight, sparse.one.weight)
    assert all(torch.equal(v, before[k]) for k, v in sparse.state_dict().items())
    assert result.report.epochs[-1].loss < result.report.epochs[0].loss
    assert result.report.labels == (batches is PAIRS)
    assert "trained 6 epochs on 90 samples" in str(result.report)
    assert list(result.report.table()["epoch"]) == [1, 2, 3, 4, 5, 6]


def test_distillation_recovers_what_pruning_lost(dense, sparse):
    def error(net):
        with torch.no_grad():
            return float((net(X) - dense(X)).norm() / dense(X).norm())

    tuned = cimf.finetune(sparse, X, teacher=dense, epochs=20, batch_size=30, learning_rate=3e-3)
    assert error(tuned.network) < 0.7 * error(sparse)


def test_a_checkpoint_is_resumed_through_the_front_door(dense, sparse, tmp_path):
    options = {"teacher": dense, "epochs": 3, "batch_size": 30}
    whole = cimf.finetune(sparse, X, **options).network

    def stop(epoch):
        raise KeyboardInterrupt

    path = tmp_path / "tuned"
    with pytest.raises(KeyboardInterrupt):
        cimf.finetune(sparse, X, checkpoint=path, on_epoch=stop, **options)
    resumed = cimf.finetune(sparse, X, checkpoint=path, **options).network
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_norms_of_a_folded_network_are_aligned_without_changing_it(dense):
    folded = cimf.prune(dense, X, 0.0, "magnitude-global").network  # norms are identities now
    assert float(folded.norm_one.running_mean.abs().max()) == 0.0
    aligned = copy.deepcopy(folded)
    align_norms(aligned, X.split(20))
    with torch.no_grad():
        wanted, found = folded(X), aligned(X)
        trained = copy.deepcopy(aligned).train()(X)
        unaligned = copy.deepcopy(folded).train()(X)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(trained, wanted, atol=1e-4)
    assert not torch.allclose(unaligned, wanted, atol=1e-1)
    u = X.permute(1, 0, 2, 3)
    inner = nn.functional.conv2d(X, folded.one.weight).permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(aligned.norm_one.running_mean, inner.mean(1), atol=1e-6)
    assert torch.allclose(aligned.norm_one.running_var, inner.var(1, unbiased=False), atol=1e-5)
    assert u.shape[0] == 2


def test_reset_norms_against_one_pass_in_training_mode(dense):
    net = copy.deepcopy(dense)
    with torch.no_grad():
        net.one.weight *= 3.0
        net.two.bias += 1.0
    reference = copy.deepcopy(net).train()
    for norm in (reference.norm_one, reference.norm_two):
        norm.momentum = 1.0
    with torch.no_grad():
        reference(X.clone())
    reset_norms(net, [X])
    assert not net.training
    assert not net.norm_one.training
    assert net.norm_one.momentum == 0.1
    for name in ("norm_one", "norm_two"):
        one, two = getattr(net, name), getattr(reference, name)
        assert torch.allclose(one.running_mean, two.running_mean, atol=1e-6)
        assert torch.allclose(one.running_var, two.running_var, atol=1e-6)


def test_channels_that_are_gone_stay_gone(dense):
    net = copy.deepcopy(dense)
    with torch.no_grad():
        for parameter in (net.one.weight, net.norm_one.weight, net.norm_one.bias, net.two.weight,
                          net.two.bias, net.norm_two.weight, net.norm_two.bias):  # fmt: skip
            parameter[2] = 0.0
        net.two.bias[3] = 0.0  # of a row that is there: trained
    tuned = cimf.finetune(net, PAIRS, epochs=2, batch_size=30, weight_decay=0.1).network
    with torch.no_grad():
        assert (tuned.norm_one(tuned.one(X))[:, 2] == 0).all()
    for parameter in (tuned.two.bias, tuned.norm_two.weight, tuned.norm_two.bias):
        assert parameter[2] == 0
    assert tuned.two.bias[3] != 0


def test_real_targets_are_fitted_by_least_squares():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    u = torch.randn(60, 3, generator=G)
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]])
    with torch.no_grad():
        net.weight *= weight != 0
    pairs = [(u, u @ weight.T)]
    tuned = cimf.finetune(net, pairs, epochs=400, learning_rate=0.1).network
    assert torch.allclose(tuned.weight, weight, atol=1e-3)


def test_numpy_labels_on_two_batches(sparse):
    pairs = [(X[:50].numpy(), LABELS[:50].numpy()), (X[50:].numpy(), np.int8(LABELS[50:].numpy()))]
    one = cimf.finetune(sparse, pairs, epochs=1).network
    two = cimf.finetune(sparse, [(X, LABELS)], epochs=1).network
    assert torch.equal(one.head.weight, two.head.weight)


@pytest.mark.parametrize(
    ("batches", "given", "message"),
    [
        (BATCHES, {}, "without labels, give a teacher"),
        (BATCHES, {"loss": "distillation"}, "'distillation' needs a teacher"),
        (PAIRS, {"epochs": 0}, "epochs must be a whole number >= 1"),
        ([X[:, :1]], {"teacher": True}, "the network cannot be run on training samples"),
        ([(X, LABELS + 1)], {}, "labels go from 1 to 3; .* the classes 0 to 2"),
        ([(X, LABELS[:-1])], {}, "89 labels for 90 training samples"),
        ([(X, torch.randn(90, 2))], {}, r"labels have shape \(2,\).*outputs \(3,\)"),
        ([(X, torch.full((90, 3), torch.nan))], {}, "labels hold NaN"),
        ([(X, LABELS[:, None])], {}, "one class per sample"),
        ([(X * torch.inf, LABELS)], {}, "NaN or infinite"),
        ([], {"teacher": True}, "batches are empty"),
        (PAIRS, {"label_weight": 2.0}, "label_weight must be in"),
        (BATCHES, {"teacher": True, "loss": "states", "label_weight": 0.1}, "goes with"),
        (BATCHES, {"teacher": nn.Flatten()}, r"returns \(3,\) per sample, the teacher \(50,\)"),
    ],
)
def test_what_cannot_be_right_is_refused_before_any_work(sparse, batches, given, message):
    given = {**given, "teacher": sparse} if given.get("teacher") is True else given
    with pytest.raises(InputError, match=message):
        cimf.finetune(sparse, batches, **given)


def test_unknown_options_losses_and_half_precision(sparse):
    with pytest.raises(UnknownNameError, match="did you mean 'learning_rate'"):
        cimf.finetune(sparse, PAIRS, learning_rat=1.0)
    with pytest.raises(UnknownNameError, match="did you mean 'labels'"):
        cimf.finetune(sparse, PAIRS, loss="label")
    with pytest.raises(InputError, match=r"network.float\(\)"):
        cimf.finetune(copy.deepcopy(sparse).half(), PAIRS)


def test_states_need_a_teacher_of_the_same_layers(sparse):
    other = nn.Sequential(nn.Flatten(), nn.Linear(50, 3))
    with pytest.raises(InputError, match="the same layers"):
        cimf.finetune(sparse, BATCHES, teacher=other, loss="states")


def test_divergence_is_an_error_that_names_the_epoch(sparse):
    with pytest.raises(TrainingError, match="epoch 1"):
        cimf.finetune(sparse, PAIRS, epochs=2, batch_size=30, optimizer="sgd", learning_rate=1e30)


def test_a_result_is_taken_for_its_network():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    sparse = cimf.prune(net, [inputs], 0.5, "magnitude-layer")
    options = {"teacher": net, "epochs": 1, "batch_size": 30}
    one = cimf.finetune(sparse, inputs, **options)
    two = cimf.finetune(sparse.network, inputs, **options)
    three = cimf.finetune(one, inputs, **options).network
    for p, q in zip(one.network.parameters(), two.network.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert int((three[0].weight == 0).sum()) == int((sparse.network[0].weight == 0).sum()) > 0
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        cimf.finetune(3, inputs, **options)
