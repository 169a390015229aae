"""Trained networks with labelled training samples: what the methods that train begin with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cimf.data.networks import Pretrained
    from cimf.studies.case import Case


def digits() -> Case:
    """Return an MLP on the digits of scikit-learn."""
    return _mlp("digits", (64, 64, 32, 10), epochs=40, learning_rate=1e-2, batch_size=64)


def fashion_mlp() -> Case:
    """Return the MLP of the paper's Table 1 on Fashion-MNIST."""
    from experiments.fashion import SIZES

    return _mlp("fashion_mnist", SIZES, epochs=20, learning_rate=5e-3, batch_size=256)


def fashion_mlp_short() -> Case:
    """Return the same MLP after six epochs at a lower rate.

    Less accurate, and less easily moved: what robustness is gained depends on where it begins.
    """
    from experiments.fashion import SIZES

    return _mlp("fashion_mnist", SIZES, epochs=6, learning_rate=1e-3, batch_size=256)


def fashion_lenet() -> Case:
    """Return LeNet-5 on Fashion-MNIST."""
    import torch

    from cimf.data import datasets
    from cimf.data.networks import LeNet5
    from cimf.train.supervised import Schedule, trained

    data = datasets.fashion_mnist()
    shape = (-1, 1, 28, 28)
    data = replace(
        data,
        train_inputs=data.train_inputs.reshape(shape),
        test_inputs=data.test_inputs.reshape(shape),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = LeNet5()
    schedule = Schedule(epochs=15, learning_rate=3e-3, batch_size=128)
    cache = datasets.cache_folder() / "networks"
    net = trained(untrained, {"network": "LeNet-5"}, data, seed=0, schedule=schedule, cache=cache)
    return _case(net, data)


def cifar10() -> Case:
    """Return ResNet-20 with its published weights, and all training images that are there."""
    from cimf.data import corpora, networks

    return _images(corpora.cifar10, networks.resnet20_cifar10)


def cifar100() -> Case:
    """Return the wide-stem ResNet-20 with its published weights."""
    from cimf.data import corpora, networks

    return _images(corpora.cifar100, networks.resnet20_cifar100)


def newsgroups() -> Case:
    """Return DistilBERT's architecture on 20 Newsgroups; without labels for training."""
    from cimf.data import corpora
    from experiments.newsgroups import task

    return task(corpora.newsgroups(), None, None, seed=0)


NETWORKS: dict[str, tuple[str, Callable[[], Case]]] = {
    "digits": ("MLP 64-64-32-10, digits", digits),
    "fashion-mlp": ("MLP 784-64-32-16-10, Fashion-MNIST", fashion_mlp),
    "fashion-mlp-short": ("MLP 784-64-32-16-10, Fashion-MNIST, 6 epochs", fashion_mlp_short),
    "fashion-lenet": ("LeNet-5, Fashion-MNIST", fashion_lenet),
    "cifar10": ("ResNet-20, CIFAR-10", cifar10),
    "cifar100": ("ResNet-20 variant, CIFAR-100", cifar100),
    "newsgroups": ("DistilBERT architecture, 20 Newsgroups", newsgroups),
}
"""By name: title, and what loads it."""


def chosen_networks(
    text: str | None, default: Sequence[str], known: Collection[str]
) -> Iterator[tuple[str, str, Callable[[], Case]]]:
    """Yield name, title and loader of the networks that "digits,cifar10" names.

    Raises
    ------
    UnknownNameError
        One that is not in `known`.
    """
    from cimf.errors import UnknownNameError

    names = default if text is None else text.split(",")
    for name in names:
        if name not in known:
            raise UnknownNameError("network", name, list(known))
    for name in names:
        yield name, *NETWORKS[name]


def _mlp(dataset: str, sizes: tuple[int, ...], **schedule: Any) -> Case:
    from cimf.data import datasets
    from cimf.train.supervised import Schedule, trained_mlp

    data = getattr(datasets, dataset)()
    cache = datasets.cache_folder() / "networks"
    return _case(trained_mlp(sizes, data, seed=0, schedule=Schedule(**schedule), cache=cache), data)


def _images(load: Callable[[], Any], network: Callable[[], Pretrained]) -> Case:
    data, trained = load(), network()
    made = replace(
        data,
        train_inputs=trained.prepare(data.train_inputs).numpy(),
        test_inputs=trained.prepare(data.test_inputs).numpy(),
    )
    return _case(trained.network, made)


def _case(net: Any, data: Any) -> Case:
    import torch

    from cimf.studies.case import Case

    return Case(
        net,
        torch.from_numpy(data.train_inputs),
        torch.from_numpy(data.test_inputs),
        torch.from_numpy(data.test_labels),
        data.describe(),
        torch.from_numpy(data.train_labels),
    )
