"""Plain tars of images, as webdataset, wids and DALI read them."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pipeline.bench.loaders.protocol import Images, Pixels

NUM_SHARDS = 8  # up to eight workers have equal work


def npy(array: Pixels) -> bytes:
    """Write an array as `.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_shards(
    images: Images, out: Path, members: Callable[[int], Mapping[str, bytes]]
) -> list[Path]:
    """Write tars with plain ustar headers, which need no second header for each member.

    Args:
        images: Only their number is used.
        out: Folder.
        members: Gives an image's members by suffix.
    """
    paths = []
    for number, indices in enumerate(np.array_split(np.arange(len(images)), NUM_SHARDS)):
        if not len(indices):
            continue
        paths.append(out / f"{number:06d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in indices:
                for suffix, data in members(int(index)).items():
                    header = tarfile.TarInfo(f"{index:06d}.{suffix}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
    return paths
