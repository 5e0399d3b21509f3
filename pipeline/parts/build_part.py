"""Build some shards of a plan, beside other parts of it, which do not know of each other.

Each shard is written aside under a name of its own and renamed, and so is its record; in a store an
object appears whole. So two parts that build one shard, such as a task and the task that replaces
it, both leave the same whole files.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline.build.build import start_workers, write_shards
from pipeline.build.config import BuildConfig
from pipeline.build.output import open_shared
from pipeline.build.prepare import spec_here, tasks_left
from pipeline.common.errors import ConfigError, RejectsError, SourceError
from pipeline.common.progress import SILENT, Progress
from pipeline.format.manifest import Reject
from pipeline.format.spec import DataSpec
from pipeline.parts.numbers import parse_numbers
from pipeline.parts.plan import require_folder
from pipeline.parts.plan_file import SavedPlan, load_plan, read_shards
from pipeline.remote.objects import look_up_all
from pipeline.sources.image import SourceImage
from pipeline.write.planning import Planned
from pipeline.write.resume import Finished, changes


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What a part left behind.

    Attributes:
        numbers: Its shards' positions in the plan.
        reused: Names of shards that an earlier run had finished.
        retried: Names of shards that lost a worker, once for each loss.
        rejects: Images that are in none of its shards.
        num_recorded: Shards of the plan that have a record by now, of all parts.
        num_shards: Shards of the plan.
    """

    numbers: tuple[int, ...]
    reused: tuple[str, ...]
    retried: tuple[str, ...]
    rejects: tuple[Reject, ...]
    num_recorded: int
    num_shards: int


def build_part(config: BuildConfig, shards: str, *, progress: Progress = SILENT) -> PartResult:
    """Build some shards of the plan in OUT, or what is missing of them.

    Args:
        config: The build that was planned; its source may lie elsewhere on this machine.
        shards: Which ones, as `parse_numbers` reads it.
        progress: Reports finished shards checked, and images built.

    Raises:
        ConfigError: If OUT has no plan, or one of another build, or too few shards.
        SourceError: If the source is not the one that was planned.
        StoreError: If an address cannot be read or written.
        NoRoomError: If the shards do not fit on the disk.
        RejectsError: If more of their images are unusable than allowed for the whole build.
        VerificationError: If the plan is damaged.
    """
    require_folder(config.source)
    saved = load_plan(config.out)
    _require_same(saved, spec_here(config))
    numbers = parse_numbers(shards, len(saved.lines))
    start_workers(config)
    with open_shared(config, saved.fingerprint) as output:
        plan = saved.with_images(read_shards(saved, numbers, source=config.source))
        _require_unchanged(plan.shards)
        before = output.finished_before(plan, expected={}, progress=progress)
        tasks = tasks_left(plan, before, config=config, place=output.place(plan))
        output.require_room(tasks, config)
        written, retried = write_shards(tasks, config, progress=progress)
        output.sync(plan)
        result = PartResult(
            numbers=numbers,
            reused=tuple(before),
            retried=tuple(retried),
            rejects=_rejects({**before, **written}),
            num_recorded=output.num_recorded(plan),
            num_shards=len(saved.lines),
        )
    _check_rejects(result, at_most=config.max_rejects)
    return result


def _require_same(saved: SavedPlan, spec: DataSpec) -> None:
    if changed := changes(spec, asdict(saved.spec)):
        raise ConfigError(
            f"a part must be of the plan in OUT; got another in {saved.place} ({changed}). Give "
            "the options that srp-data plan was given, or plan another folder."
        )


def _require_unchanged(shards: Sequence[Planned]) -> None:
    """Check that the images are there, of the size that was planned.

    At an address only the first image of each shard is asked about. Reading compares the size of
    every image, and rejects it by name.
    """
    for image, size in _sizes(shards):
        if size != image.size:
            raise SourceError(
                f"the source must be as when it was planned; got {size:,} bytes in {image.place}, "
                f"which had {image.size:,}. Give that source, or plan another folder."
            )


def _sizes(shards: Sequence[Planned]) -> Iterator[tuple[SourceImage, int]]:
    """Give images and the bytes that they have now; 0 if there are none."""
    first = [images[0] for _, images in shards if images]
    store = first[0].store if first else None
    if store:
        found = look_up_all(store, [image.file for image in first])
        for image, stored in zip(first, found, strict=True):
            yield image, stored.num_bytes if stored else 0
        return
    for image in (image for _, images in shards for image in images):
        try:
            yield image, os.stat(image.file).st_size
        except OSError:  # a broken link counts as empty, in a listing too
            yield image, 0


def _rejects(finished: Mapping[str, Finished]) -> tuple[Reject, ...]:
    return tuple(reject for name in sorted(finished) for reject in finished[name].rejects)


def _check_rejects(result: PartResult, *, at_most: int) -> None:
    """End a part that alone has too many rejects for a merge; its shards stay."""
    if len(result.rejects) > at_most:
        first = result.rejects[0]
        raise RejectsError(
            f"at most --max-rejects {at_most} images may be unusable; got {len(result.rejects)} "
            f"in these shards alone, the first {first.path} ({first.reason}). Repair them, or "
            "raise --max-rejects here and for srp-data merge; finished shards are kept."
        )
