"""`srp-data bench load`: our loader and the others, each from its own natural layout.

All are given the same images and must hand over the same bytes, which every turn checks. A turn is
a process of its own: it opens the loader, runs one warm-up epoch, then whole epochs for
a while, and the loop that takes the batches does nothing else. The limits are what no loader can
beat: copying the output once, and reading the bytes.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.bench.config import LoadBenchConfig
from pipeline.bench.loaders.export import SPLIT, copy_files, export_images, require_canvases
from pipeline.bench.loaders.process import run_child, shorten
from pipeline.bench.loaders.protocol import Answer, Task
from pipeline.bench.loaders.registry import LOADERS, REFERENCE, Loader, Variant
from pipeline.command.results import Contender, Row, Turn, interleave
from pipeline.common.progress import Progress
from pipeline.stream.folder import ShardFolder

Measured = tuple[list[Row], dict[str, Any]]


class _Bench(NamedTuple):
    """What all contenders share."""

    config: LoadBenchConfig
    shards: ShardFolder
    scratch: Path
    num_images: int


def bench_load(config: LoadBenchConfig, *, progress: Progress) -> Measured:
    """Measure every loader that is installed, and list the others.

    Returns:
        The rows in the order of the registry, and the setting they were measured in.

    Raises:
        ConfigError: If the shards do not suit, or `--python` names no interpreter.
        SourceError: If `--source` is not where the shards came from.
        VerificationError: If the shards are damaged.
    """
    shards = ShardFolder.open(config.shards)
    require_canvases(shards)
    num_images = min(config.images, shards.manifest.num_samples(SPLIT))
    with tempfile.TemporaryDirectory(prefix="srp-bench-") as scratch:
        bench = _Bench(config, shards, Path(scratch), num_images)
        images = bench.scratch / "images"
        origins = export_images(shards, images, num_images=num_images, progress=progress)
        if config.source:
            copy_files(config.source, origins, images, progress)
        contenders = _build_all(bench, progress)
        rows = interleave(contenders, rounds=config.rounds, progress=progress)
    return rows, _setting(bench)


def _build_all(bench: _Bench, progress: Progress) -> list[Contender]:
    """Let each loader write its layouts, each once."""
    loaders = [loader for loader in LOADERS if loader.name in bench.config.loaders]
    contenders = []
    for number, loader in enumerate(loaders):
        progress.update("building layouts", number, len(loaders))
        built: dict[str, Answer] = {}
        for variant in loader.variants:
            if variant.layout not in built:
                built[variant.layout] = _build(bench, loader, variant)
            for workers in bench.config.worker_counts:
                contenders.append(
                    _contender(bench, loader, variant, built[variant.layout], workers)
                )
    progress.update("building layouts", len(loaders), len(loaders))
    return contenders


def _build(bench: _Bench, loader: Loader, variant: Variant) -> Answer:
    if loader.needs_files and not bench.config.source:
        return Answer(problem="needs --source")
    answer = _run(bench, loader, variant, action="build", workers=1)
    if answer.missing:
        return replace(answer, problem=f"not installed: {loader.install}")
    return answer


def _contender(
    bench: _Bench, loader: Loader, variant: Variant, built: Answer, workers: int
) -> Contender:
    name = f"{loader.name}: {variant.text}"
    figures = {}
    if built.num_bytes is not None and built.build_s is not None:
        num_kilobytes = built.num_bytes / bench.num_images / 1000
        figures = {"kB a sample": num_kilobytes, "build, s": built.build_s}
    return Contender(
        row=Row(
            name=_row_name(name, workers),
            labels={
                "gives": variant.mode,
                "loader": name,
                "workers": str(workers),
                "version": built.version,
            },
            figures=figures,
            problem=built.problem,
        ),
        measure=partial(_take_turn, bench, loader, variant, workers),
        against=tuple(
            _row_name(f"{other.name}: {reference.text}", workers)
            for other in LOADERS
            for reference in other.variants
            if (other.name, reference.name) == REFERENCE and reference.mode == variant.mode
        ),
    )


def _row_name(name: str, workers: int) -> str:
    return f"{name}, workers {workers}"


def _take_turn(bench: _Bench, loader: Loader, variant: Variant, workers: int) -> Turn:
    answer = _run(bench, loader, variant, action="turn", workers=workers)
    if answer.missing:
        return Turn(problem=answer.problem or "not installed")
    figures = {
        "CPU ms a sample": answer.cpu_s and 1000 * answer.cpu_s,
        "import, s": answer.import_s,
        "first batch, s": answer.first_batch_s,
    }
    return Turn(
        answer.rate,
        {name: value for name, value in figures.items() if value is not None},
        answer.problem,
    )


def _run(bench: _Bench, loader: Loader, variant: Variant, *, action: str, workers: int) -> Answer:
    config = bench.config
    task = Task(
        action=action,
        loader=loader.name,
        package=loader.package,
        variant=variant.name,
        mode=variant.mode,
        layout=variant.layout,
        images=str(bench.scratch / "images"),
        out=str(bench.scratch / f"{loader.name}-{variant.layout}"),
        workers=workers,
        batch_size=config.batch,
        seconds=config.seconds,
        boxes=bench.shards.crop_layout.boxes,
    )
    return shorten(run_child(config.python_of(loader.name), task, scratch=bench.scratch))


def _setting(bench: _Bench) -> dict[str, Any]:
    config, spec = bench.config, bench.shards.manifest.spec
    return {
        "shards": config.shards.resolve().name,
        "images": bench.num_images,
        "rounds": config.rounds,
        "batch": config.batch,
        "seconds": config.seconds,
        "canvas_size": spec.canvas_size,
        "crop_size": spec.crop_size,
        "glimpse_size": spec.glimpse_size,
    }
