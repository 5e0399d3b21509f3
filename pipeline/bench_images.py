"""Give every peer the same images: some of a split's canvases, glimpses and labels, as arrays."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib

from pipeline.errors import ConfigError, SourceError
from pipeline.manifest import Manifest
from pipeline.peers.turn import Batch, Images, digests
from pipeline.reader import changed_bytes, check_length
from pipeline.schema import CANVAS, LABEL, META, SMALL_GLIMPSES, decode_array
from pipeline.shard import SampleRecord, ShardRecord
from pipeline.sources import Progress, open_source

SPLIT = "train"


class _Origin(NamedTuple):
    """Where an image came from."""

    path: str
    sha256: str


def require_canvases(manifest: Manifest, folder: Path) -> None:
    """Check that these shards hold what every peer can be given.

    Raises:
        ConfigError: If they do not.
    """
    spec = manifest.spec
    if (spec.layout, spec.candidates) != ("canvas", "five"):
        raise ConfigError(
            "a bench of loaders needs shards with --layout canvas and --candidates five; got "
            f"--layout {spec.layout} and --candidates {spec.candidates} in {folder}. "
            "Build others with srp-data build-shards."
        )


def export_images(
    folder: Path, manifest: Manifest, out: Path, *, num_images: int, on_progress: Progress
) -> list[_Origin]:
    """Write the first images of the split, and check sums of what every peer must hand over.

    Args:
        folder: Of the shards.
        manifest: Of that folder.
        out: New folder.
        num_images: Not more than the split has.
        on_progress: Told of images.

    Returns:
        Where each image came from.

    Raises:
        VerificationError: If the shards are damaged.
    """
    out.mkdir()
    spec = manifest.spec
    side, small_px, num_crops = spec.canvas_size, spec.glimpse_size, len(spec.plan())
    canvases = _new_array(out / "canvases.npy", (num_images, side, side, 3))
    glimpses = _new_array(out / "glimpses.npy", (num_images, num_crops, 1, small_px, small_px))
    labels = np.empty(num_images, np.int64)
    origins = []
    samples = _samples(folder, manifest)
    for index in range(num_images):
        on_progress("reading shards", index, num_images)
        members = next(samples)
        canvases[index] = decode_array(members[CANVAS], folder.name)
        glimpses[index] = decode_array(members[SMALL_GLIMPSES], folder.name)
        labels[index] = int(bytes(members[LABEL]))
        meta = json.loads(bytes(members[META]))
        origins.append(_Origin(str(meta["path"]), str(meta["sha256"])))
    on_progress("reading shards", num_images, num_images)
    np.save(out / "labels.npy", labels)
    _write_expected(Images(out, spec.plan().boxes))
    return origins


def _new_array(
    path: Path, shape: tuple[int, ...]
) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
    return np.lib.format.open_memmap(path, "w+", np.uint8, shape)


def _samples(folder: Path, manifest: Manifest) -> Iterator[dict[str, memoryview]]:
    suffixes = manifest.suffixes()
    for shard in manifest.of_split(SPLIT):
        check_length(folder, shard)
        with (folder / shard.name).open("rb") as file:
            for sample in shard.samples:
                file.seek(sample.offset)
                data = memoryview(file.read(sample.length))
                yield _members(data, suffixes, sample, shard)


def _members(
    data: memoryview, suffixes: tuple[str, ...], sample: SampleRecord, shard: ShardRecord
) -> dict[str, memoryview]:
    if isal_zlib.crc32(data) != sample.crc32:
        raise changed_bytes(f"{shard.name} at offset {sample.offset} (sample {sample.key})")
    return {
        suffix: data[extent.offset - sample.offset :][: extent.size]
        for suffix, extent in zip(suffixes, sample.extents(), strict=True)
    }


def _write_expected(images: Images) -> None:
    def crops() -> Iterator[Batch]:
        for index in range(len(images)):
            only = slice(index, index + 1)
            yield Batch(images.crops(index)[None], images.glimpses[only], images.labels[only])

    whole = Batch(images.canvases, images.glimpses, images.labels)
    np.save(images.folder / "expected-crops.npy", digests(crops()))
    np.save(images.folder / "expected-canvases.npy", digests([whole]))


def copy_files(source: Path, origins: list[_Origin], out: Path, on_progress: Progress) -> None:
    """Copy the images' original files to `out/files/INDEX`.

    Raises:
        SourceError: If the source is not the one that the shards were built from.
    """
    archive = out / "archive"
    opened = open_source(source, scratch=archive, on_progress=on_progress)
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
