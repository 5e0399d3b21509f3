"""READ FIRST: from a folder of images to a folder of shards, each here or at an address.

Prepare: list the source, plan which image goes to which shard, find finished shards. Run: workers
write the others. Publish: name the rejects, move shards into place, write the manifest last.
`pipeline/parts/` does the three in commands of their own, on any number of machines.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.build.config import BuildConfig
from pipeline.build.landmarks import landmarks
from pipeline.build.output import open_output
from pipeline.build.prepare import plan_source, spec_here, tasks_left
from pipeline.build.publish import describe
from pipeline.common.errors import VerificationError
from pipeline.common.progress import SILENT, Progress
from pipeline.engines import local, open_ray
from pipeline.engines.local import Retry
from pipeline.format.manifest import Manifest
from pipeline.sources.folder import require_source
from pipeline.write.resume import Finished
from pipeline.write.worker import Task, build_shard


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build left behind.

    Attributes:
        manifest: The manifest of the whole folder.
        reused: Names of shards that an earlier run had finished.
        retried: Names of shards that lost a worker, once for each loss.
        skipped: Paths of files that are not images in train/CLASS/ or val/CLASS/, as `spelt_out`
            escapes them.
    """

    manifest: Manifest
    reused: tuple[str, ...]
    retried: tuple[str, ...]
    skipped: tuple[str, ...]


def build_shards(
    config: BuildConfig, *, expected: Manifest | None = None, progress: Progress = SILENT
) -> BuildResult:
    """Build the shards of a source, or continue an interrupted build.

    Args:
        config: What to build.
        expected: For a repair, the manifest whose shards must result.
        progress: Reports bytes of an archive, finished shards checked, and images built.

    Raises:
        ConfigError: If OUT holds another build.
        SourceError: If the source cannot be used.
        StoreError: If an address cannot be read or written.
        NoRoomError: If the shards do not fit on the disk.
        RejectsError: If more images are unusable than allowed; nothing is published.
        VerificationError: If other shards result than expected; nothing is published.
    """
    spec = spec_here(config)
    require_source(config.source)
    start_workers(config)
    digests = {shard.name: shard.sha256 for shard in expected.shards} if expected else {}
    with open_output(config) as output:
        plan = plan_source(config, spec, scratch=output.images, progress=progress)
        before = output.finished_before(plan, expected=digests, progress=progress)
        tasks = tasks_left(plan, before, config=config, place=output.place(plan))
        output.require_room(tasks, config)
        output.begin(plan, before)
        written, retried = write_shards(tasks, config, progress=progress)
        finished = {**before, **written}
        built = describe(plan, finished)
        if changed := _changed(built, digests):
            output.forget(plan)  # no later build may reuse these shards
            raise VerificationError(
                "a repair needs the images that the shards were built from; got others in "
                f"{config.source}, which would change {', '.join(changed)}. Nothing was changed. "
                "Give the original source."
            )
        output.publish(plan, built, finished, at_most=config.max_rejects)
    return BuildResult(
        manifest=built, reused=tuple(before), retried=tuple(retried), skipped=plan.skipped
    )


def start_workers(config: BuildConfig) -> None:
    """Start what local workers are forked from, early: it imports while the source is listed.

    Raises:
        ConfigError: If the workers are Ray's, which is not installed or does not answer.
    """
    if config.engine == "ray":
        open_ray().cluster.require_listening(config.ray_address)
    else:
        local.start_server(("pipeline.write.worker", "pipeline.pixels.kernels"))


def write_shards(
    tasks: Sequence[Task], config: BuildConfig, *, progress: Progress = SILENT
) -> tuple[dict[str, Finished], list[str]]:
    """Write the shards of all tasks.

    Returns:
        What was written, by name, and the names of retried shards.
    """
    retried: list[str] = []

    def retry(task: Task, num_done: int, how: str) -> Task:
        retried.append(task.shard.name)
        return task.retry(num_done, how)

    run = _run_on_ray if config.engine == "ray" else _run_here
    results = run(tasks, config, retry, progress)
    return {result.shard.name: result for result in results}, retried


def _run_here(
    tasks: Sequence[Task], config: BuildConfig, retry: Retry[Task], progress: Progress
) -> Iterator[Finished]:
    return local.run_tasks(
        build_shard,
        tasks,
        workers=config.workers,
        timeout_s=config.image_timeout_s,
        retry=retry,
        num_images=sum(len(task.images) for task in tasks),
        progress=progress,
    )


def _run_on_ray(
    tasks: Sequence[Task], config: BuildConfig, retry: Retry[Task], progress: Progress
) -> Iterator[Finished]:
    if not tasks:
        return
    with landmarks(tasks) as find_fault:
        yield from open_ray().run_tasks(
            build_shard,
            tasks,
            shards=[(task.shard.name, len(task.images)) for task in tasks],
            address=config.ray_address,
            workers=config.workers,
            timeout_s=config.image_timeout_s,
            needs_gpu=config.device == "gpu",
            find_fault=find_fault,
            retry=retry,
            progress=progress,
        )


def _changed(built: Manifest, digests: Mapping[str, str]) -> list[str]:
    """Name the shards that have another SHA-256 than a repair must give."""
    sha256s = {shard.name: shard.sha256 for shard in built.shards}
    return [name for name, digest in digests.items() if sha256s.get(name) != digest]
