"""The residual networks of the experiments, and their published weights.

ResNet-20 of He et al. (2016), "Deep Residual Learning for Image Recognition", section 4.2, and a
variant with a wide stem. Weights are read from ``$CIMF_DATA/weights``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from cimf.data.datasets import data_folder
from cimf.errors import DataError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: x -> relu?(conv(relu(conv(x))) + shortcut(x)).

    Parameters
    ----------
    channels_in, channels_out, stride : int
    projection : bool
        Where the shape changes, a 1x1 convolution with batch norm (True) or subsampling and zero
        padding of the channels, "option A" (False).
    relu : bool
        Whether a ReLU follows the addition.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, projection: bool, relu: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride, self.widen = stride, channels_out - channels_in
        self.relu = relu
        if projection and (stride != 1 or self.widen):
            self.shortcut: nn.Module | None = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        else:
            self.shortcut = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, channels_in, h, w) to (b, channels_out, h / stride, w / stride)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        elif self.stride != 1 or self.widen:
            half = self.widen // 2
            thin = x[:, :, :: self.stride, :: self.stride]
            out = out + functional.pad(thin, (0, 0, 0, 0, half, self.widen - half))
        else:
            out = out + x
        return functional.relu(out) if self.relu else out


class ResNet20(nn.Module):
    """Twenty layers in three stages of three blocks of 16, 32 and 64 channels.

    Parameters
    ----------
    n_classes : int
    stem : int
        Output channels of the first convolution.
    projection : bool
        As `BasicBlock`.
    relu_every_block : bool
        A ReLU after every addition, or only one at the end of each stage.
    pool : int, optional
        Window of the average pooling before the linear layer. Default: global.
    """

    def __init__(
        self,
        n_classes: int = 10,
        stem: int = 16,
        projection: bool = False,
        relu_every_block: bool = True,
        pool: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels, stages = stem, []
        for stage, width in enumerate((16, 32, 64), start=1):
            blocks = []
            for k in range(3):
                stride = 2 if stage > 1 and k == 0 else 1
                relu = relu_every_block or k == 2
                blocks.append(BasicBlock(channels, width, stride, projection, relu))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = pool
        cells = 1 if pool is None else (8 // pool) ** 2
        self.linear = nn.Linear(64 * cells, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 3, 32, 32) to logits (b, n_classes)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            out = stage(out)
        out = out.mean((2, 3)) if self.pool is None else functional.avg_pool2d(out, self.pool)
        return self.linear(torch.flatten(out, 1))


class LeNet5(nn.Module):
    """LeNet-5 as pruning papers have it (Caffe's): 20 and 50 channels, 500 hidden units."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.hidden, self.linear = nn.Linear(800, 500), nn.Linear(500, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 1, 28, 28) to logits (b, n_classes)."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.linear(functional.relu(self.hidden(torch.flatten(x, 1))))


@dataclass(frozen=True)
class Pretrained:
    """A trained network and the normalisation of its input.

    Attributes
    ----------
    network : nn.Module
        In eval mode.
    mean, std : tuple of float
        Per channel, of images in [0, 1].
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, images: NDArray) -> Tensor:
        """Return images (m, 3, h, w) in [0, 1] as the network's normalised float32 input."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (torch.from_numpy(images) - mean) / std


def resnet20_cifar10() -> Pretrained:
    """Return ResNet-20 with option-A shortcuts, trained on CIFAR-10.

    Raises
    ------
    DataError
        ``$CIMF_DATA/weights/resnet20-cifar10.safetensors`` is missing or does not fit.
    """
    net = _with_weights(ResNet20(), "resnet20-cifar10")
    return Pretrained(net, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def resnet20_cifar100() -> Pretrained:
    """Return the ResNet-20 variant with a 64-channel stem, trained on CIFAR-100.

    Raises
    ------
    DataError
        ``$CIMF_DATA/weights/resnet20w-cifar100.safetensors`` is missing or does not fit.
    """
    net = ResNet20(100, stem=64, projection=True, relu_every_block=False, pool=4)
    return Pretrained(
        _with_weights(net, "resnet20w-cifar100"), (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
    )


def _with_weights(net: nn.Module, name: str) -> nn.Module:
    root = data_folder()
    path = None if root is None else root / "weights" / f"{name}.safetensors"
    if path is None or not path.is_file():
        raise DataError(
            f"the trained weights {name}.safetensors are not available: set CIMF_DATA to a folder "
            f"that holds weights/{name}.safetensors"
        )
    try:
        net.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{path.name} does not hold the weights of this network: {error}"
        ) from error
    return net.eval()
