"""Any bytes in the place of a shard, a manifest or a checkpoint: refused in words, or read alike.

pytest tries some hundreds; `python tests/test_fuzz.py TARGET -max_total_time=600` goes on with
atheris, guided by the code that each input reaches.
"""

import random
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from pipeline import ShardFolder
from pipeline.build.build import build_shards
from pipeline.build.config import BuildConfig
from pipeline.common.errors import SrpError
from pipeline.datasets.config import SceneConfig
from pipeline.datasets.scenes import draw_dataset
from pipeline.format import manifest as manifests
from pipeline.format.index_file import LocalFiles
from pipeline.format.manifest import Manifest
from pipeline.read.reader import ShardReader
from pipeline.stream.stream import SampleStream
from training.config import TrainConfig
from training.data.processes import Process
from training.run.resume import open_record, save_run
from training.run.state import RunState, build_state
from training.saved.checkpoint import load_optimizer, load_weights, read_meta
from training.saved.folder import RunPaths
from training.saved.record import EpochRecord

EXAMPLES = 3 * settings.default.max_examples  # more by make test-all
Found = list[tuple[str, int, bytes]]


@cache
def shards() -> Path:
    """Build shards of three images, once."""
    folder = Path(tempfile.mkdtemp())
    draw_dataset(SceneConfig(out=folder / "images", train=1, val=1, size_px=32))
    config = BuildConfig(
        source=folder / "images", out=folder / "shards", canvas_size=16, crop_size=12,
        glimpse_size=4, candidates="full+five", codec="zstd", workers=1, limit=3,
    )  # fmt: skip
    build_shards(config)
    return config.out


def by_index(folder: Path, manifest: Manifest) -> Found:
    reader = ShardReader(folder, manifest, manifest.of_split("train"))
    reader.locate(range(len(reader)))
    samples = [reader.read(index) for index in range(len(reader))]
    return [(s.key, s.label, b"".join(crop.tobytes() for crop in s.crops)) for s in samples]


def by_stream(folder: Path, manifest: Manifest) -> Found:
    stream = SampleStream(folder, "train", manifest=manifest)
    return [
        (s.key, s.label, b"".join(crop.tobytes() for crop in s.crops)) for s in stream.samples()
    ]


@cache
def known() -> Found:
    return by_index(shards(), manifests.load(shards()))


class ShardTarget:
    """A shard's bytes, read by index and as a stream; its checksums may have been forged."""

    def seeds(self) -> list[bytes]:
        return [(shards() / "train-000000.tar").read_bytes()]

    def check(self, data: bytes) -> None:
        folder, manifest = Path(tempfile.gettempdir()) / "srp-fuzz", manifests.load(shards())
        folder.mkdir(exist_ok=True)
        (folder / "train-000000.tar").write_bytes(data)
        for read in (by_index, by_stream):
            try:
                assert read(folder, manifest) == known()
            except SrpError:
                continue


class ManifestTarget:
    """A manifest's bytes: with its digest, and without one, as a stranger would write it."""

    def seeds(self) -> list[bytes]:
        signed = (shards() / manifests.FILE_NAME).read_bytes()
        return [signed, signed.replace(b"manifest_sha256", b"manifest_sha255")]

    def check(self, data: bytes) -> None:
        try:
            found = manifests.decode_manifest(data, LocalFiles(folder=Path()))
        except (SrpError, OverflowError, RecursionError, TypeError, ValueError):
            return
        if b'"manifest_sha256"' in data[:256]:
            assert found == manifests.load(shards())
        if found.of_split("train"):
            for read in (by_index, by_stream):
                try:
                    keys = [key for key, _, _ in read(shards(), found)]
                    assert len(keys) == found.num_samples("train")
                except SrpError:
                    continue


@cache
def trained() -> tuple[RunState, RunPaths]:
    """Save a small run, once."""
    opened, alone = (
        ShardFolder.open(shards()),
        Process(rank=0, world_size=1, device=torch.device("cpu")),
    )
    config = TrainConfig(
        model="test_resnet", epochs=2, batch_size=2, shift=2, proposer_channels=(4,), device="cpu"
    )
    paths = RunPaths(folder=Path(tempfile.mkdtemp()) / "run")
    state = build_state(replace(config, workers=1), opened, alone)
    record = open_record(config, shards=opened, paths=paths, process=alone, resume=False)
    paths.folder.mkdir()
    epoch = EpochRecord(
        epoch=1, train_loss=1.0, train_top1=1.0, val_top1=1.0, images_per_s=1.0, seconds=1.0
    )
    save_run(state, paths, replace(record, epochs=(epoch,)), 0.0)
    return state, paths


class CheckpointTarget:
    """A checkpoint's bytes: with its digest, and without one."""

    def seeds(self) -> list[bytes]:
        signed = trained()[1].last.read_bytes()
        return [signed, signed.replace(b"srp_sha256", b"srp_sha255")]

    def check(self, data: bytes) -> None:
        state, paths = trained()
        path = paths.folder / "fuzzed.safetensors"
        path.write_bytes(data)
        try:
            meta = read_meta(path)
            load_weights(path, state.model)
            load_optimizer(path, state.model, state.optimizer, state.scheduler)
        except SrpError:
            return
        if b"srp_sha256" in data:
            assert meta == read_meta(paths.last)


TARGETS: dict[str, Any] = {
    "shard": ShardTarget, "manifest": ManifestTarget, "checkpoint": CheckpointTarget,
}  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, repeat, and put numbers in the place of others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(max(1, len(changed)))
        length = rng.choice((1, 2, 8, 64, 512))
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 3:
            changed[at : at + length] = rng.randbytes(length)
        else:
            changed[at : at + 1] = rng.choice((b"9" * 20, b"-1", b"null", b"[[", b'"', b"\xff"))
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_make_a_loader_crash_or_read_something_else(name: str) -> None:
    target, rng = TARGETS[name](), random.Random(0)
    for seed in target.seeds():
        target.check(seed)
        for _ in range(EXAMPLES):
            target.check(mutate(seed, rng))


def main() -> None:
    """Fuzz one target until libFuzzer's options say that it is enough."""
    import atheris

    target = TARGETS[sys.argv.pop(1)]()
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(seed)
    for module in (
        "pipeline.format.manifest", "pipeline.read.reader", "pipeline.stream.stream",
        "pipeline.format.sample", "pipeline.format.index", "pipeline.format.npy",
        "training.saved.checkpoint",
    ):  # fmt: skip
        instrument(atheris, sys.modules[module])
    largest = 2 * max(map(len, target.seeds()))
    atheris.Setup([*sys.argv, f"-max_len={largest}", "-timeout=20", str(corpus)], target.check)
    atheris.Fuzz()


def instrument(atheris: Any, module: Any) -> None:
    """Let atheris see which lines of a module an input reaches."""
    for value in vars(module).values():
        inner = list(vars(value).values()) if isinstance(value, type) else []
        for each in (value, *inner):
            if hasattr(each, "__code__") and each.__module__ == module.__name__:
                atheris.instrument_func(each)


if __name__ == "__main__":
    main()
