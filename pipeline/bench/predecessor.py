"""The course project's transforms, for the bench: each image resized and cropped twice, in floats.

Only `bench_build` imports this, and only where torchvision is installed.
"""

import io
from collections.abc import Callable

import torch
from PIL import Image
from torchvision import transforms

from pipeline.format.spec import DataSpec


def make_transforms(spec: DataSpec) -> Callable[[bytes], tuple[torch.Tensor, torch.Tensor]]:
    """Make what turns a file into float originals and padded glimpses, `(K, 3 or 1, c, c)`."""
    torch.set_num_threads(1)  # as every contender
    crop_px, small_px, canvas_px = spec.crop_size, spec.glimpse_size, spec.canvas_size
    missing = crop_px - small_px
    cut = [transforms.Resize((canvas_px, canvas_px)), transforms.FiveCrop(crop_px)]
    to_tensor = transforms.ToTensor()
    to_glimpse = transforms.Compose(
        [
            transforms.Resize((small_px, small_px)),
            transforms.Grayscale(),
            transforms.ToTensor(),
            transforms.Pad((0, 0, missing, missing)),
        ]
    )
    originals = transforms.Compose(
        [*cut, lambda crops: torch.stack([to_tensor(crop) for crop in crops])]
    )
    glimpses = transforms.Compose(
        [*cut, lambda crops: torch.stack([to_glimpse(crop) for crop in crops])]
    )

    def transform(data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return originals(image), glimpses(image)

    return transform
