"""What one worker does: it owns a shard, and follows each of its images from bytes to members."""

import hashlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline import engines
from pipeline.backends import Backend, open_decoder
from pipeline.decode import Views, ViewSpec
from pipeline.errors import ImageError
from pipeline.manifest import DataSpec, Reject, suffixes_of
from pipeline.plan import SourceImage
from pipeline.resume import Finished, save_state
from pipeline.schema import SampleMeta, ShardSpec, encode_sample
from pipeline.writer import EncodedSample, write_shard


class Task(NamedTuple):
    """What a worker needs to write one shard."""

    out: Path
    records: Path
    spec: DataSpec
    views: ViewSpec
    backend: Backend
    shard: ShardSpec
    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]


class _Read(NamedTuple):
    """An image whose bytes are with the decoder."""

    key: str
    image: SourceImage
    sha256: str


def write_one(task: Task) -> Finished:
    """Build one shard."""
    rejects: dict[str, Reject] = {}
    images = _encode_images(task, rejects)
    shard = write_shard(task.out, task.shard, images, suffixes=suffixes_of(task.spec))
    in_order = tuple(rejects[image.path] for image in task.images if image.path in rejects)
    if len(shard.samples) + len(in_order) != len(task.images):
        raise RuntimeError(f"an image of {shard.name} was neither written nor rejected")
    finished = Finished(shard=shard, rejects=in_order)
    save_state(task.records, finished)
    return finished


def _encode_images(task: Task, rejects: dict[str, Reject]) -> Iterator[EncodedSample]:
    decoder = open_decoder(task.backend, task.views)
    decoding: deque[_Read] = deque()
    for views in decoder.decode(_read_images(task, decoding, rejects)):
        read = decoding.popleft()
        if isinstance(views, ImageError):
            rejects[read.image.path] = Reject(path=read.image.path, reason=str(views))
        else:
            yield _encode_image(task, read, views)
        engines.count_image()


def _read_images(task: Task, decoding: deque[_Read], rejects: dict[str, Reject]) -> Iterator[bytes]:
    """Yield files as the decoder asks for them, which may be many before the first is decoded."""
    for key, image in zip(task.shard.keys, task.images, strict=True):
        try:
            data = image.read()
        except OSError as error:
            # Without paths of this machine: equal sources give equal manifests.
            reason = error.strerror or "unreadable"
            rejects[image.path] = Reject(path=image.path, reason=reason)
            engines.count_image()
            continue
        decoding.append(_Read(key, image, hashlib.sha256(data).hexdigest()))
        yield data


def _encode_image(task: Task, read: _Read, views: Views) -> EncodedSample:
    label = task.classes.index(read.image.class_name)
    members = encode_sample(
        canvas=views.canvas,
        resized=views.resized,
        glimpses=views.glimpses,
        label=label,
        meta=SampleMeta(
            path=read.image.path,
            class_name=read.image.class_name,
            sha256=read.sha256,
            width=views.width,
            height=views.height,
        ),
        plan=task.views.plan,
        layout=task.spec.layout,
        codec=task.spec.pixel_codec(),
    )
    return EncodedSample(read.key, label, members)
