"""What one worker does: it writes one shard, following each of its images from file to members."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.common.errors import ImageError, SrpError
from pipeline.decode import open_decoder
from pipeline.decode.rules import Views, own_process
from pipeline.engines.in_worker import count_image
from pipeline.format.manifest import Reject
from pipeline.format.sample import PlannedShard, SampleMeta, encode_sample, member_suffixes
from pipeline.format.spec import DataSpec
from pipeline.sources.image import SourceImage
from pipeline.write.place import FolderPlace, StorePlace
from pipeline.write.resume import Finished
from pipeline.write.shard_writer import EncodedSample, write_shard

MAX_LOSSES = 16  # workers that one shard may lose: eight images that kill two workers each


class Loss(NamedTuple):
    """A worker that "died" or "hung" after `num_done` images of its shard."""

    num_done: int
    how: str


class Task(NamedTuple):
    """What a worker needs to write one shard, which takes about `num_bytes`.

    After a loss, images are decoded one at a time, so that the next loss identifies its image.
    """

    place: FolderPlace | StorePlace
    spec: DataSpec
    num_threads: int
    shard: PlannedShard
    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]
    num_bytes: int
    losses: tuple[Loss, ...] = ()

    def quarantined(self) -> dict[str, str]:
        """Give the paths of images that two workers were lost on, and the reason of each."""
        counts: Counter[int] = Counter()
        reasons = {}
        for num_done, how in self.losses:
            counts[num_done] += 1
            if counts[num_done] == 2:
                reasons[self.images[num_done].path] = f"a worker {how} on it twice"
        return reasons

    def retry(self, num_done: int, how: str) -> "Task":
        """Give the task to run after a worker was lost on this one.

        Args:
            num_done: Images of the shard that were finished.
            how: "died" or "hung".

        Raises:
            SrpError: If no image can be blamed, or too many would be.
        """
        losses = (*self.losses, Loss(num_done, how))
        is_after_last = num_done >= len(self.images)
        num_here = sum(loss.num_done == num_done for loss in losses)
        if len(losses) == MAX_LOSSES or (is_after_last and num_here == 2):
            place = "after its last image" if is_after_last else f"at {self.images[num_done].path}"
            raise SrpError(
                f"{len(losses)} workers died or hung on {self.shard.name}, the last one {place}. "
                "Run the same command again with fewer --workers (out of memory?) or a longer "
                "--image-timeout; finished shards are kept."
            )
        return self._replace(losses=losses)


class _Read(NamedTuple):
    """An image that was read; the decoder passes it on with the image's views."""

    key: str
    image: SourceImage
    sha256: str


def build_shard(task: Task) -> Finished:
    """Write one shard, in a worker process."""
    rejects: list[Reject] = []

    def samples() -> Iterator[EncodedSample]:
        for read, views in _decode(task):
            if isinstance(views, ImageError):
                rejects.append(Reject(path=read.image.path, reason=str(views)))
            else:
                yield _encode(task, read, views)
            count_image()

    suffixes = member_suffixes(task.spec)
    with task.place.opened() as place:
        with own_process():
            shard = write_shard(
                place.out, task.shard, samples(), suffixes=suffixes, num_bytes=task.num_bytes
            )
        if len(shard.samples) + len(rejects) != len(task.images):
            raise RuntimeError(f"an image of {shard.name} was neither written nor rejected")
        finished = Finished(shard=shard, rejects=tuple(rejects))
        place.keep(finished)
    return finished


def _decode(task: Task) -> Iterator[tuple[_Read, Views | ImageError]]:
    decoder = open_decoder(task.spec, task.num_threads)
    if not task.losses:
        return decoder.decode(_read(task))
    return (decoded for read in _read(task) for decoded in decoder.decode([read]))


def _read(task: Task) -> Iterator[tuple[_Read, bytes | ImageError]]:
    quarantined = task.quarantined()
    for key, image in zip(task.shard.keys, task.images, strict=True):
        if reason := quarantined.get(image.path):
            yield _Read(key, image, sha256=""), ImageError(reason)
            continue
        try:
            data = image.read()
        except OSError as error:
            # Without paths of this machine: equal sources give equal manifests.
            yield _Read(key, image, sha256=""), ImageError(error.strerror or "unreadable")
        else:
            yield _Read(key, image, hashlib.sha256(data).hexdigest()), data


def _encode(task: Task, read: _Read, views: Views) -> EncodedSample:
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
