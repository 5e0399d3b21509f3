"""What one worker does: it owns a shard, and follows each of its images from bytes to members."""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.build import worker_pool
from pipeline.build.resume import Finished, save_state
from pipeline.build.shard_writer import EncodedSample, write_shard
from pipeline.common.atomic_io import remove_partials
from pipeline.common.errors import ImageError, SrpError
from pipeline.decode import Backend, open_decoder
from pipeline.decode.rules import Decoder, Views, own_process
from pipeline.format.manifest import Reject
from pipeline.format.sample import PlannedShard, SampleMeta, encode_sample, member_suffixes
from pipeline.format.spec import DataSpec
from pipeline.sources.image import SourceImage

MAX_LOSSES = 16  # workers that one shard may cost: eight images that kill each theirs twice


class Loss(NamedTuple):
    """A worker that "died" or "hung" when so many images of its shard were through."""

    num_done: int
    how: str


class Task(NamedTuple):
    """What a worker needs to write one shard, which takes about `num_bytes`.

    After a loss, images are decoded one by one, so that the next loss has one image to blame.
    """

    out: Path
    records: Path
    spec: DataSpec
    backend: Backend
    shard: PlannedShard
    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]
    num_bytes: int
    losses: tuple[Loss, ...] = ()

    def quarantined(self) -> dict[str, str]:
        """Give the images on which two workers were lost, and the reason of each, by path."""
        met: Counter[int] = Counter()
        reasons = {}
        for num_done, how in self.losses:
            met[num_done] += 1
            if met[num_done] == 2:
                reasons[self.images[num_done].path] = f"a worker {how} on it twice"
        return reasons

    def retry(self, num_done: int, how: str) -> "Task":
        """Put a worker that was lost down to the image that it was at.

        Args:
            num_done: Images of the shard that were through.
            how: "died" or "hung".

        Raises:
            SrpError: If no image is to blame, or too many would be.
        """
        remove_partials(self.out, of=self.shard.name)
        losses = (*self.losses, Loss(num_done, how))
        is_after_last = num_done >= len(self.images)
        num_here = sum(loss.num_done == num_done for loss in losses)
        if len(losses) == MAX_LOSSES or (is_after_last and num_here == 2):
            place = "after its last image" if is_after_last else f"at {self.images[num_done].path}"
            raise SrpError(
                f"a shard must not cost more and more workers; got {len(losses)} that died or hung "
                f"on {self.shard.name}, the last {place}. Run the same command again with fewer "
                "--workers (out of memory?) or a longer --image-timeout: finished shards are kept."
            )
        return self._replace(losses=losses)


class _Read(NamedTuple):
    """An image whose bytes are with the decoder."""

    key: str
    image: SourceImage
    sha256: str


def write_one(task: Task) -> Finished:
    """Build one shard, in a process of ours."""
    rejects: dict[str, Reject] = {}
    images = _encode_images(task, rejects)
    suffixes = member_suffixes(task.spec)
    with own_process():
        shard = write_shard(
            task.out, task.shard, images, suffixes=suffixes, num_bytes=task.num_bytes
        )
    in_order = tuple(rejects[image.path] for image in task.images if image.path in rejects)
    if len(shard.samples) + len(in_order) != len(task.images):
        raise RuntimeError(f"an image of {shard.name} was neither written nor rejected")
    finished = Finished(shard=shard, rejects=in_order)
    save_state(task.records, finished)
    return finished


def _encode_images(task: Task, rejects: dict[str, Reject]) -> Iterator[EncodedSample]:
    decoder = open_decoder(task.backend, task.spec)
    decoding: deque[_Read] = deque()
    files = _read_images(task, decoding, rejects)
    for views in _one_by_one(decoder, files) if task.losses else decoder.decode(files):
        read = decoding.popleft()
        if isinstance(views, ImageError):
            rejects[read.image.path] = Reject(path=read.image.path, reason=str(views))
        else:
            yield _encode_image(task, read, views)
        worker_pool.count_image()


def _one_by_one(decoder: Decoder, files: Iterable[bytes]) -> Iterator[Views | ImageError]:
    for data in files:
        yield from decoder.decode([data])


def _read_images(task: Task, decoding: deque[_Read], rejects: dict[str, Reject]) -> Iterator[bytes]:
    """Yield files as the decoder asks for them, which may be many before the first is decoded."""
    quarantined = task.quarantined()
    for key, image in zip(task.shard.keys, task.images, strict=True):
        if image.path in quarantined:
            rejects[image.path] = Reject(path=image.path, reason=quarantined[image.path])
            worker_pool.count_image()
            continue
        try:
            data = image.read()
        except OSError as error:
            # Without paths of this machine: equal sources give equal manifests.
            reason = error.strerror or "unreadable"
            rejects[image.path] = Reject(path=image.path, reason=reason)
            worker_pool.count_image()
            continue
        decoding.append(_Read(key, image, hashlib.sha256(data).hexdigest()))
        yield data


def _encode_image(task: Task, read: _Read, views: Views) -> EncodedSample:
    label = task.classes.index(read.image.class_name)
    members = encode_sample(
        task.spec,
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
    )
    return EncodedSample(read.key, label, members)
