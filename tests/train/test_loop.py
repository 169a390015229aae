"""The training loop: the same bits again and after an interruption, clear ends of bad runs."""

import copy
import math

import pytest
import torch
from torch import nn

from cimf.errors import InputError, RunError, TrainingError, UnknownNameError
from cimf.runs import terminal
from cimf.train import loop
from cimf.train.augment import FlipsAndShifts
from cimf.train.descent import Descent
from cimf.train.loop import fit
from cimf.train.objectives import distillation_loss, label_loss, relative_error
from cimf.train.training_data import TrainingData
from cimf.train.training_options import Training, cut

G = torch.Generator().manual_seed(0)
X = torch.randn(65, 1, 6, 6, generator=G)
LABELS = torch.randint(0, 3, (65,), generator=G)
DATA = TrainingData(X, LABELS)


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


def run(training, net=None, data=DATA):
    net = network() if net is None else net
    descent = Descent(net.train(), lambda u, y: label_loss(net(u), y), training, len(data))
    return net, fit(descent, data, training)


def same(one, two):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def options(**given):
    return Training(**{"epochs": 4, "batch_size": 16, "augment": FlipsAndShifts(1), **given})


def test_a_seed_decides_everything_and_the_global_state_is_left_alone():
    net = network()
    before = torch.get_rng_state()
    one, report = run(options(), net)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    two, again = run(options())
    assert same(one, two)
    assert [e.loss for e in report.epochs] == [e.loss for e in again.epochs]
    assert not same(one, run(options(seed=1))[0])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"optimizer": "sgd", "schedule": "steps", "milestones": (1, 3), "learning_rate": 0.05},
        {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01},
        {"schedule": "constant"},
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, given):
    path = tmp_path / "run.pt"
    whole, report = run(options(**given))

    def interrupt(epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(options(checkpoint=path, on_epoch=interrupt, **given))
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    seen = []
    resumed, again = run(options(checkpoint=path, on_epoch=seen.append, **given))
    assert [e.number for e in seen] == [3, 4]
    assert same(whole, resumed)
    assert [e.loss for e in again.epochs] == [e.loss for e in report.epochs]
    finished, _ = run(options(checkpoint=path, **given))
    assert same(whole, finished)


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(options(checkpoint=path))
    other = TrainingData(X, LABELS.flip(0))
    shifted = network()
    shifted[0].weight.data += 1e-3
    for attempt in (
        lambda: run(options(checkpoint=path, epochs=5)),
        lambda: run(options(checkpoint=path, augment=FlipsAndShifts(2))),
        lambda: run(options(checkpoint=path), data=other),
        lambda: run(options(checkpoint=path), net=shifted),
    ):
        with pytest.raises(RunError, match="checkpoint of another run"):
            attempt()
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="no checkpoint of a training run"):
        run(options(checkpoint=path))


def test_divergence_names_the_epoch_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    net = network()
    calls = []

    def objective(u, y):
        calls.append(1)
        loss = label_loss(net(u), y)
        # 4 batches an epoch and 4 of the trial: the second batch of the third epoch
        return loss * math.nan if len(calls) == 4 + 2 * 4 + 2 else loss

    training = options(checkpoint=path)
    descent = Descent(net.train(), objective, training, len(DATA))
    with pytest.raises(TrainingError, match=r"epoch 3, batch 2: the loss is nan.*holds epoch 2"):
        fit(descent, DATA, training)
    assert len(torch.load(path, weights_only=True)["epochs"]) == 2
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_parameters_that_overflow_end_a_run(tmp_path):
    training = Training(epochs=1, batch_size=65, optimizer="sgd", learning_rate=1e38,
                        schedule="constant", checkpoint=tmp_path / "x")  # fmt: skip
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    data = TrainingData(1e8 * X, LABELS)
    with pytest.raises(TrainingError, match=r"epoch 1: '1.weight' holds NaN.*was not written"):
        run(training, net, data)


def test_the_time_is_measured_without_a_trace_and_said_first(monkeypatch):
    said = []
    monkeypatch.setattr(loop, "_SILENT", 0.0)
    monkeypatch.setattr(terminal, "log", said.append)
    net, _ = run(options())
    assert said[0].startswith("training, about 0 s: 0 of 16")
    monkeypatch.setattr(loop, "_seconds_per_step", lambda *_: 0.0)
    assert same(net, run(options())[0])


def test_batches_hold_every_sample_and_none_is_alone():
    for count in (1, 15, 16, 17, 33, 40):
        parts = cut(torch.arange(count), 16)
        assert torch.equal(torch.cat(parts), torch.arange(count))
        assert count == 1 or min(map(len, parts)) > 1
        assert len(parts) == Training(batch_size=16).batches(count)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number >= 1"),
        ({"epochs": True}, "epochs must be"),
        ({"batch_size": 1.5}, "batch_size must be"),
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay must be a number >= 0"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"schedule": "steps"}, "milestones"),
        ({"milestones": (3,)}, "milestones"),
        ({"augment": "flip"}, "augment must be a function"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used"),
    ],
)
def test_options_that_cannot_be_right(given, message):
    with pytest.raises(InputError, match=message):
        Training(**given)


def test_names_of_optimisers_and_schedules():
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        Training(optimizer="adm")
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        Training(schedule="cosin")


def test_a_frozen_network_has_nothing_to_train():
    with pytest.raises(InputError, match="requires_grad_"):
        run(options(), network().requires_grad_(False))


def test_losses_against_their_definitions():
    found, wanted = torch.randn(5, 4, generator=G), torch.randn(5, 4, generator=G)
    p, q = (wanted / 3).softmax(1), (found / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert distillation_loss(found, wanted, 3.0) == pytest.approx(float(expected), rel=1e-5)
    assert distillation_loss(wanted, wanted, 3.0) == pytest.approx(0.0, abs=1e-6)
    maps = [v[:, :, None].expand(5, 4, 2).contiguous() for v in (found, wanted)]
    assert distillation_loss(*maps, 3.0) == pytest.approx(float(expected), rel=1e-5)
    spread = ((wanted - wanted.mean()) ** 2).mean()
    expected = ((found - wanted) ** 2).mean() / spread
    assert relative_error(found, wanted) == pytest.approx(float(expected), rel=1e-5)


def test_images_are_shifted_and_mirrored_as_wholes():
    image = torch.arange(1.0, 10).reshape(1, 1, 3, 3).expand(200, 1, 3, 3)
    found = FlipsAndShifts(1)(image, torch.Generator().manual_seed(0))
    padded = nn.functional.pad(image[:1], [1] * 4)
    possible = [
        base[..., i : i + 3, j : j + 3]
        for base in (padded, padded.flip(3))
        for i in range(3)
        for j in range(3)
    ]
    hits = [sum(torch.equal(f[None], p) for p in possible) for f in found]
    assert min(hits) >= 1
    assert all(any(torch.equal(f[None], p) for f in found) for p in possible)
    plain = FlipsAndShifts(0, flip=False)(image, torch.Generator().manual_seed(0))
    assert torch.equal(plain, image)


def test_a_copy_of_the_data_is_the_same_data():
    assert DATA.digest() == copy.deepcopy(DATA).digest()
    assert DATA.digest() != TrainingData(X).digest()
