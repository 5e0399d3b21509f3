"""srp's own loader, from shards that it writes here, so that building them is measured as well.

`stream` checks every byte in every epoch; the others map the shards and check each sample once.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.bench.loaders.protocol import Batch, Epoch, Images, Task
from pipeline.format import manifest
from pipeline.format.codecs import Codec
from pipeline.format.manifest import Manifest
from pipeline.format.sample import PlannedShard, SampleMeta, encode_sample, member_suffixes
from pipeline.format.spec import DataSpec
from pipeline.pixels import kernels
from pipeline.pixels import streaming_copy as copies
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.sampler import training_batches
from pipeline.stream.folder import ShardFolder
from pipeline.stream.stream import SampleStream
from pipeline.write.shard_writer import EncodedSample, write_shard

LOADED = (copies, kernels)  # numba's second is one of importing, here as with FFCV
SPLIT = "train"
PER_SHARD = 350
SHUFFLE_BUFFER = 100


def build(layout: str, images: Images, out: Path) -> None:
    """Write shards in the canvas layout; the layout's name is that of the codec."""
    spec = _spec(images, Codec(layout))
    shards = []
    for number, first in enumerate(range(0, len(images), PER_SHARD)):
        indices = range(first, min(first + PER_SHARD, len(images)))
        plan = PlannedShard(split=SPLIT, index=number, keys=tuple(map(str, indices)))
        encoded = (_encode(images, index, spec) for index in indices)
        shards.append(write_shard(out, plan, encoded, suffixes=member_suffixes(spec)))
    names = tuple(f"class-{label}" for label in range(int(images.labels.max()) + 1))
    written = Manifest(
        spec=spec,
        fingerprint="",
        classes=names,
        class_names=names,
        num_sources={SPLIT: len(images)},
        rejects=(),
        shards=tuple(shards),
    )
    (out / manifest.FILE_NAME).write_bytes(manifest.encode_manifest(written))


def _spec(images: Images, codec: Codec) -> DataSpec:
    sizes = images.sizes()
    return DataSpec(
        canvas_size=sizes.canvas_px,
        crop_size=sizes.crop_px,
        glimpse_size=sizes.glimpse_px,
        candidates="five",
        layout="canvas",
        decoder="",
        exif=True,
        max_pixels=1,
        seed=0,
        limit=None,
        shard_mib=128,
        codec=codec.name,
        codec_library=codec.library,
    )


def _encode(images: Images, index: int, spec: DataSpec) -> EncodedSample:
    label = int(images.labels[index])
    crop_px = spec.crop_size
    members = encode_sample(
        spec,
        canvas=images.canvases[index],
        resized=np.empty((0, 3, crop_px, crop_px), np.uint8),
        glimpses=images.glimpses[index],
        label=label,
        meta=SampleMeta(path=str(index), class_name="", sha256="", width=1, height=1),
    )
    return EncodedSample(str(index), label, members)


def open_loader(task: Task, images: Images) -> Epoch:
    """Read in a new order for each epoch."""
    if task.variant == "stream":
        return _stream(task)
    reader = ShardFolder.open(task.out).reader(SPLIT)
    spec = BatchSpec(
        candidates=tuple(range(len(task.boxes))),
        glimpse_px=images.sizes().glimpse_px,
        crops=task.mode == "crops",
        compiled=task.variant == "compiled",
    )
    loader = BatchLoader(reader, spec, workers=task.workers)
    passes = iter(range(1 << 30))

    def epoch() -> Iterator[Batch]:
        order = training_batches(len(reader), batch_size=1, seed=0, epoch=next(passes))[:, 0]
        batches = np.split(order, range(task.batch_size, len(order), task.batch_size))
        for batch in loader.batches(batches):
            crops, canvases, _, glimpses = batch.arrays
            pixels = canvases if crops is None else crops.transpose(0, 1, 4, 2, 3)
            yield Batch(pixels, None if glimpses is None else glimpses[:, :, None], batch.labels_B)

    return epoch


def _stream(task: Task) -> Epoch:
    """Stack streamed samples to batches, in this process alone."""
    stream = SampleStream(task.out, SPLIT, seed=0, shuffle_buffer=SHUFFLE_BUFFER)
    passes = iter(range(1 << 30))

    def epoch() -> Iterator[Batch]:
        samples = stream.samples(next(passes))
        while taken := [sample for _, sample in zip(range(task.batch_size), samples, strict=False)]:
            yield Batch(
                np.stack([sample.originals for sample in taken]),
                np.stack([sample.small_glimpses for sample in taken]),
                np.array([sample.label for sample in taken]),
            )

    return epoch
