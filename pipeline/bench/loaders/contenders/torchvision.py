"""torchvision's transforms on the fly: what training without shards costs, every epoch again.

`once` resizes an image to the canvas once. `twice` does it as the predecessor did, once for the
originals and once for the glimpses. Both give bytes, where the predecessor made floats.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pipeline.bench.loaders.protocol import Epoch, Images, Pixels, Sizes, Task
from pipeline.bench.loaders.tensors import Collate


def build(layout: str, images: Images, out: Path) -> None:
    """Take the original files as they are."""
    del layout
    for index in range(len(images)):
        shutil.copyfile(images.folder / f"files/{index}", out / f"{index}")


@dataclass(frozen=True, kw_only=True)
class _Files(Dataset[tuple[Pixels, Pixels, int]]):
    folder: Path
    labels: list[int]
    sizes: Sizes
    is_twice: bool

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Pixels, Pixels, int]:
        with Image.open(self.folder / f"{index}") as file:
            image = file.convert("RGB")
        crops = self._cut(image)
        small = self._cut(image) if self.is_twice else crops
        to_glimpse = transforms.Compose(
            [transforms.Resize((self.sizes.glimpse_px,) * 2), transforms.Grayscale()]
        )
        return (
            self._stack(crops),
            self._stack(tuple(to_glimpse(crop) for crop in small)),
            self.labels[index],
        )

    def _cut(self, image: Image.Image) -> tuple[Image.Image, ...]:
        canvas = transforms.Resize((self.sizes.canvas_px,) * 2)(image)
        cut: tuple[Image.Image, ...] = transforms.FiveCrop(self.sizes.crop_px)(canvas)
        return cut

    def _stack(self, views: tuple[Image.Image, ...]) -> Pixels:
        to_tensor = transforms.PILToTensor()
        stacked: Pixels = torch.stack([to_tensor(view) for view in views]).numpy()
        return stacked


def open_loader(task: Task, images: Images) -> Epoch:
    """Decode, resize and cut on worker processes, in a new order for each epoch."""
    loader = DataLoader(
        _Files(
            folder=Path(task.out),
            labels=images.labels.tolist(),
            sizes=images.sizes(),
            is_twice=task.variant == "twice",
        ),
        batch_size=task.batch_size,
        shuffle=True,
        **task.processes(),
        collate_fn=Collate(),
    )

    return lambda: loader
