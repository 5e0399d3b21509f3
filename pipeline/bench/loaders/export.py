"""What every loader is given: some of a split's canvases, glimpses and labels, as arrays."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.bench.loaders.protocol import Batch, Images, digests
from pipeline.common.errors import ConfigError, SourceError
from pipeline.common.progress import SILENT, Progress
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.sources.folder import open_source
from pipeline.stream.folder import ShardFolder

SPLIT = "train"


class _Origin(NamedTuple):
    """Where an image came from."""

    path: str
    sha256: str


def require_canvases(shards: ShardFolder) -> None:
    """Check that these shards hold what every loader needs.

    Raises:
        ConfigError: If they do not.
    """
    spec = shards.manifest.spec
    if (spec.layout, spec.candidates) != ("canvas", "five"):
        raise ConfigError(
            "a bench of loaders needs shards with --layout canvas and --candidates five; got "
            f"--layout {spec.layout} and --candidates {spec.candidates} in {shards.place}. "
            "Build others with srp-data build-shards --candidates five."
        )


def export_images(
    shards: ShardFolder, out: Path, *, num_images: int, progress: Progress = SILENT
) -> list[_Origin]:
    """Write the first images of the split, and checksums of what every loader must hand over.

    Args:
        shards: Folder of canvases.
        out: New folder.
        num_images: Images to write, at most those of the split.
        progress: Reports images.

    Returns:
        Where each image came from.

    Raises:
        VerificationError: If the shards are damaged.
    """
    out.mkdir()
    spec = shards.manifest.spec
    side, small_px, num_crops = spec.canvas_size, spec.glimpse_size, len(spec.crop_layout)
    canvases = _new_array(out / "canvases.npy", (num_images, side, side, 3))
    glimpses = _new_array(out / "glimpses.npy", (num_images, num_crops, 1, small_px, small_px))
    reader = shards.reader(SPLIT)
    batch_spec = BatchSpec(candidates=tuple(range(num_crops)), glimpse_px=small_px, crops=False)
    for batch in BatchLoader(reader, batch_spec, workers=1).batches(np.arange(num_images)[:, None]):
        index = int(batch.indices_B[0])
        progress.update("reading shards", index, num_images)
        canvases[index] = np.asarray(batch.arrays.canvases_BCC3)
        glimpses[index, :, 0] = np.asarray(batch.arrays.glimpses_BLSS)
    progress.update("reading shards", num_images, num_images)
    np.save(out / "labels.npy", reader.labels_N[:num_images].astype(np.int64))
    _write_expected(Images(out, spec.crop_layout.boxes))
    metas = [reader.read(index).meta for index in range(num_images)]
    return [_Origin(meta.path, meta.sha256) for meta in metas]


def _new_array(
    path: Path, shape: tuple[int, ...]
) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
    return np.lib.format.open_memmap(path, "w+", np.uint8, shape)


def _write_expected(images: Images) -> None:
    def crops() -> Iterator[Batch]:
        for index in range(len(images)):
            only = slice(index, index + 1)
            yield Batch(images.crops(index)[None], images.glimpses[only], images.labels[only])

    whole = Batch(images.canvases, images.glimpses, images.labels)
    np.save(images.folder / "expected-crops.npy", digests(crops()))
    np.save(images.folder / "expected-canvases.npy", digests([whole]))


def copy_files(source: Path, origins: list[_Origin], out: Path, progress: Progress) -> None:
    """Copy the images' original files to `out/files/INDEX`.

    Raises:
        SourceError: If the source is not the one that the shards were built from.
    """
    archive = out / "archive"
    opened = open_source(source, scratch=archive, progress=progress)
    by_path = {image.path: image for image in opened.images[SPLIT]}
    folder = out / "files"
    folder.mkdir()
    for index, origin in enumerate(origins):
        data = by_path[origin.path].read() if origin.path in by_path else b""
        if hashlib.sha256(data).hexdigest() != origin.sha256:
            raise SourceError(
                "--source must be what the shards were built from; got another file, or none, at "
                f"{origin.path} of {source}. Name the other source, or drop --source."
            )
        (folder / str(index)).write_bytes(data)
    archive.unlink(missing_ok=True)
