"""Random changes of images that keep their class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class FlipsAndShifts:
    """Mirror each image with probability 1/2 and shift it by up to `pixels` in each direction.

    What is shifted in is zero, the mean of normalised images (He et al. 2016, section 4.2).

    Attributes
    ----------
    pixels : int
    flip : bool
        Digits must not be mirrored.
    """

    pixels: int = 4
    flip: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images (b, channels, h, w)."""
        count, _, height, width = images.shape
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        room = 2 * self.pixels + 1
        down, right = torch.randint(room, (2, count), generator=generator)
        padded = functional.pad(images, [self.pixels] * 4)
        rows = (down[:, None] + torch.arange(height))[:, None, :, None]
        columns = (right[:, None] + torch.arange(width))[:, None, None, :]
        sample = torch.arange(count)[:, None, None, None]
        channel = torch.arange(images.shape[1])[None, :, None, None]
        return padded[sample, channel, rows, columns]
