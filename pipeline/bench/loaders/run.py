"""`srp-data bench load`: our loader beside the others, each from its own natural layout.

All are given the same images and must hand over the same bytes, which is checked in every turn.
A turn is a process of its own: it opens the loader, runs one epoch that does not count, then
whole epochs for a while, and the loop that takes the batches does nothing else. The limits are
what no loader can beat: copying the output once, and reading the bytes.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.bench.config import LoadBenchConfig
from pipeline.bench.loaders.export import SPLIT, copy_files, export_images, require_canvases
from pipeline.bench.loaders.process import run_child, shorten
from pipeline.bench.loaders.protocol import Answer, Task
from pipeline.bench.loaders.registry import PEERS, Peer, Variant
from pipeline.bench.loaders.rows import LoadRow
from pipeline.common.progress import Progress
from pipeline.format import manifest as manifests
from pipeline.format.manifest import Manifest

Measured = tuple[list[LoadRow], dict[str, Any]]


class _Place(NamedTuple):
    """What all contenders share."""

    config: LoadBenchConfig
    manifest: Manifest
    scratch: Path
    num_images: int


class _Contender(NamedTuple):
    """One variant that can have turns, or the reason why it has none."""

    peer: Peer
    variant: Variant
    built: Answer

    @property
    def name(self) -> str:
        return f"{self.peer.name}: {self.variant.text}"


def bench_load(config: LoadBenchConfig, *, progress: Progress) -> Measured:
    """Measure every loader that is here, and name the others.

    Returns:
        The rows in the order of the roster, and the setting they were measured in.

    Raises:
        ConfigError: If the shards do not suit, or `--python` names no interpreter.
        SourceError: If `--source` is not where the shards came from.
        VerificationError: If the shards are damaged.
    """
    manifest = manifests.load(config.shards)
    require_canvases(manifest, config.shards)
    num_images = min(config.images, manifest.num_samples(SPLIT))
    with tempfile.TemporaryDirectory(prefix="srp-bench-") as scratch:
        place = _Place(config, manifest, Path(scratch), num_images)
        _export(place, progress)
        contenders = _build_all(place, progress)
        turns = _take_turns(place, contenders, progress)
    rows = [_row(place, contender, turns[contender.name]) for contender in contenders]
    return rows, _setting(place)


def _export(place: _Place, progress: Progress) -> None:
    images = place.scratch / "images"
    origins = export_images(
        place.config.shards,
        place.manifest,
        images,
        num_images=place.num_images,
        progress=progress,
    )
    if place.config.source:
        copy_files(place.config.source, origins, images, progress)


def _build_all(place: _Place, progress: Progress) -> list[_Contender]:
    """Let each peer write its layouts, each once."""
    peers = [peer for peer in PEERS if peer.name in place.config.peers]
    contenders = []
    for number, peer in enumerate(peers):
        progress.update("building layouts", number, len(peers))
        built: dict[str, Answer] = {}
        for variant in peer.variants:
            if variant.layout not in built:
                built[variant.layout] = _build(place, peer, variant)
            contenders.append(_Contender(peer, variant, built[variant.layout]))
    progress.update("building layouts", len(peers), len(peers))
    return contenders


def _build(place: _Place, peer: Peer, variant: Variant) -> Answer:
    if peer.needs_files and not place.config.source:
        return Answer(problem="needs --source")
    answer = _run(place, peer, variant, action="build", workers=1)
    if answer.missing:
        return replace(answer, problem=f"not installed: {peer.install}")
    return answer


def _run(place: _Place, peer: Peer, variant: Variant, *, action: str, workers: int) -> Answer:
    config, spec = place.config, place.manifest.spec
    out = place.scratch / f"{peer.name}-{variant.layout}"
    task = Task(
        action=action,
        peer=peer.name,
        package=peer.package,
        variant=variant.name,
        mode=variant.mode,
        layout=variant.layout,
        images=str(place.scratch / "images"),
        out=str(out),
        workers=workers,
        batch_size=config.batch,
        seconds=config.seconds,
        boxes=spec.crop_layout.boxes,
    )
    return shorten(run_child(config.python_of(peer.name), task, scratch=place.scratch))


def _take_turns(
    place: _Place, contenders: list[_Contender], progress: Progress
) -> dict[str, dict[int, list[Answer]]]:
    """Give each contender a turn with each number of workers in each round.

    Returns:
        By contender and number of workers; the last answer of one that failed says why, and it
        had no turns after it.
    """
    counts = place.config.worker_counts
    turns: dict[str, dict[int, list[Answer]]] = {
        contender.name: {workers: [] for workers in counts} for contender in contenders
    }
    rounds = place.config.rounds + 1
    everything = [
        (number, contender, workers)
        for number in range(rounds)
        for contender in contenders
        for workers in counts
    ]
    for done, (_, contender, workers) in enumerate(everything):
        progress.update("measuring", done, len(everything))
        own = turns[contender.name]
        if contender.built.problem is None and not any(_problems(own)):
            own[workers].append(
                _run(place, contender.peer, contender.variant, action="turn", workers=workers)
            )
    progress.update("measuring", len(everything), len(everything))
    return turns


def _problems(turns: dict[int, list[Answer]]) -> Iterator[str]:
    for answers in turns.values():
        for answer in answers:
            if answer.missing or answer.problem:
                yield answer.problem or "not installed"


def _row(place: _Place, contender: _Contender, turns: dict[int, list[Answer]]) -> LoadRow:
    built = contender.built
    latest = [answer for answers in turns.values() for answer in answers]
    return LoadRow(
        name=contender.name,
        mode=contender.variant.mode,
        problem=next((text for text in (built.problem, *_problems(turns)) if text), None),
        version=latest[-1].version if latest else built.version,
        bytes_per_sample=built.num_bytes and built.num_bytes / place.num_images,
        build_s=built.build_s,
        # The first round warms up.
        turns={workers: tuple(answers[1:]) for workers, answers in turns.items()},
    )


def _setting(place: _Place) -> dict[str, Any]:
    config, spec = place.config, place.manifest.spec
    return {
        "shards": config.shards.resolve().name,
        "images": place.num_images,
        "rounds": config.rounds,
        "batch": config.batch,
        "seconds": config.seconds,
        "canvas_size": spec.canvas_size,
        "crop_size": spec.crop_size,
        "glimpse_size": spec.glimpse_size,
    }
