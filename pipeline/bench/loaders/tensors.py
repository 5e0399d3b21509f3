"""Batches for the loaders that run on torch's DataLoader, made where they need no further copy.

Each loader is measured at its best: crops are cut straight into the batch, in memory that a worker
process shares with the main one, so no pixel is copied twice or sent through a pipe.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import get_worker_info

from pipeline.bench.loaders.protocol import Batch, Box, Pixels, cut_into

Image = tuple[Pixels, Pixels, int]
"""Pixels of the canvas or of the crops, glimpses, label."""


def empty(*shape: int) -> torch.Tensor:
    """Take memory for bytes; in a worker, where torch's own collate would put the batch."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


@dataclass(frozen=True, kw_only=True)
class Collate:
    """Puts images together.

    Attributes:
        boxes: Where crops are cut from a canvas; none hands over the pixels as they are.
    """

    boxes: tuple[Box, ...] = ()

    def __call__(self, images: Sequence[Image]) -> Batch:
        """Make one batch."""
        pixels, small, labels = zip(*images, strict=True)
        glimpses = empty(len(images), *small[0].shape)
        for target, glimpse in zip(glimpses.numpy(), small, strict=True):
            target[...] = glimpse
        return Batch(self._pixels(pixels), glimpses, torch.tensor(labels))

    def _pixels(self, pixels: Sequence[Pixels]) -> torch.Tensor:
        if not self.boxes:
            batch = empty(len(pixels), *pixels[0].shape)
            for target, one in zip(batch.numpy(), pixels, strict=True):
                target[...] = one
            return batch
        side = self.boxes[0][2] - self.boxes[0][0]
        crops_BKHWC = empty(len(pixels), len(self.boxes), side, side, 3)
        for target, canvas in zip(crops_BKHWC.numpy(), pixels, strict=True):
            cut_into(target, canvas, self.boxes)
        return crops_BKHWC.permute(0, 1, 4, 2, 3)
