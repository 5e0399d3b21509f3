"""Training on shards at an address: as on those of a folder, or one line, and never a hang."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from served import (
    Web,
    announce_less,
    delay,
    fall_silent,
    hang_up,
    interrupt_and_fall_silent,
    s3_server,
    size_of,
    web_server,
)
from warm import WarmPython

from pipeline import ShardFolder, training_batches
from pipeline.common.errors import (
    ConfigError,
    DownloadError,
    PreemptedRunError,
    StoppedRunError,
    VerificationError,
)
from pipeline.common.progress import Progress
from pipeline.remote import remote_file
from training.choose import method
from training.config import TrainConfig
from training.data.processes import Process
from training.run import train as train_module
from training.run.load import evaluate_run, shards_of
from training.saved.checkpoint import read_meta
from training.saved.folder import RunPaths
from training.saved.record import CacheRecord, RunRecord, load_record

Tiny = Callable[..., TrainConfig]
Train = Callable[..., RunRecord]
WHOLE = {"policy": "whole", "epochs": 2}
STAGED = {"policy": "distilled", "epochs": 2, "explore_epochs": 1, "fit_epochs": 2}
MIB = 2**20


@pytest.fixture
def web(several_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with web_server(several_shards, monkeypatch) as served:
        yield served


@pytest.fixture(scope="module")
def run(alone: Process) -> Train:
    """Train a run of any policy: `run(config, folder, shards, resume=True)`."""

    def trained(
        config: TrainConfig, folder: Path, shards: ShardFolder, **options: Any
    ) -> RunRecord:
        paths = RunPaths(folder=folder)
        return method.train(config, shards=shards, paths=paths, process=alone, **options)

    return trained


@pytest.fixture(scope="module")
def local(
    run: Train, tiny: Tiny, several_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RunPaths]:
    """Give what a run leaves on the shards in their folder: `local(**WHOLE)`. Only read it."""
    known: dict[str, RunPaths] = {}

    def trained(**options: Any) -> RunPaths:
        name = str(options["policy"])
        if name not in known:
            known[name] = RunPaths(folder=tmp_path_factory.mktemp("local") / name)
            run(tiny(**options), known[name].folder, ShardFolder.open(several_shards))
        return known[name]

    return trained


def assert_same(one: RunPaths, other: RunPaths) -> None:
    """Two runs are one, bit for bit, in weights and losses."""
    for file in ("last", "logits"):
        first, second = load_file(getattr(one, file)), load_file(getattr(other, file))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    records = [load_record(paths.record) for paths in (one, other)]
    losses = [[epoch.train_loss for epoch in record.epochs] for record in records]
    assert losses[0] == losses[1]
    assert records[0].evaluation == records[1].evaluation


@pytest.mark.parametrize("options", [WHOLE, STAGED], ids=["whole", "distilled"])
def test_a_run_on_shards_in_s3_is_the_run_on_the_folder_and_can_be_scored_again(
    options: dict[str, Any], several_shards: Path, local: Callable[..., RunPaths], run: Train,
    tiny: Tiny, alone: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(several_shards, tmp_path / "served/bucket/mine")
    with s3_server(tmp_path / "served", monkeypatch):
        shards = ShardFolder.open("s3://bucket/mine/", cache=tmp_path / "cache")
        assert len(shards.manifest.of_split("train")) >= 4
        paths = RunPaths(folder=tmp_path / "run")
        run(tiny(**options), paths.folder, shards)
        assert_same(paths, local(**options))
        record = load_record(paths.record)
        assert record.shards == "s3://bucket/mine"
        assert record.cache == CacheRecord(folder=str(tmp_path / "cache"), limit_mib=None)
        assert record.window_mib is None
        shutil.rmtree(tmp_path / "cache")
        again, evaluation = evaluate_run(
            paths, shards_path=None, candidates=None, checkpoint="last", workers=1, process=alone
        )
        assert (again, evaluation) == (record, record.evaluation)
        kept = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
        assert kept == {shard.sha256 for shard in shards.manifest.of_split("val")}


def test_an_epoch_through_faults_is_that_on_the_folder(
    web: Web, local: Callable[..., RunPaths], run: Train, tiny: Tiny, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.remote.http_session.READ_TIMEOUT_S", 0.3)
    remote_file._filesystem.cache_clear()
    silent = threading.Event()
    web.faults = [hang_up, partial(fall_silent, until=silent), hang_up]
    paths = RunPaths(folder=tmp_path / "run")
    run(tiny(**WHOLE), paths.folder, ShardFolder.open(web.address, cache=tmp_path / "cache"))
    silent.set()
    remote_file._filesystem.cache_clear()
    assert not web.faults
    assert_same(paths, local(**WHOLE))


def test_a_truncated_shard_ends_the_training_and_is_named(
    web: Web, run: Train, tiny: Tiny, tmp_path: Path
) -> None:
    web.faults = [announce_less]
    shards = ShardFolder.open(web.address, cache=tmp_path / "cache")
    with pytest.raises(VerificationError, match=rf"{web.address}/train-000000\.tar \(broken from"):
        run(tiny(**WHOLE), tmp_path / "run", shards)


def signalled_at(at_step: int) -> Callable[..., Any]:
    """Be a step in the middle of which this process gets SIGTERM, where it is this one."""
    real = train_module.train_step

    def step_of(state: Any, batch: Any, *, step: int) -> Any:
        if step == at_step:
            signal.raise_signal(signal.SIGTERM)
        return real(state, batch, step=step)

    return step_of


def gone_at(web: Web, cache: Path, monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """Let the server go, and the cache forget, in the middle of a step, counted from 0."""
    real = train_module.train_step

    def lost(state: Any, batch: Any, *, step: int) -> Any:
        if step == at_step:
            web.is_gone = True
            for path in cache.glob("*.tar"):
                path.unlink(missing_ok=True)
        return real(state, batch, step=step)

    monkeypatch.setattr(train_module, "train_step", lost)


@pytest.mark.parametrize("at_step", [0, 2, 3, 5])  # four steps an epoch
def test_a_run_whose_server_dies_is_saved_and_goes_on_as_an_unbroken_one(
    at_step: int, web: Web, run: Train, tiny: Tiny, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = tiny(**WHOLE, workers=1)
    whole = RunPaths(folder=tmp_path / "whole")
    run(config, whole.folder, ShardFolder.open(web.address, cache=tmp_path / "a", cache_mib=3))
    paths, cache = RunPaths(folder=tmp_path / "run"), tmp_path / "b"
    shards = ShardFolder.open(web.address, cache=cache, cache_mib=3)
    with monkeypatch.context() as patch:
        gone_at(web, cache, patch, at_step)
        with pytest.raises(DownloadError) as caught:
            run(config, paths.folder, shards)
    message = str(caught.value)
    assert message.startswith("shards must be reachable; got ")
    assert " Then continue with --resume: training stopped at " in message
    assert message.endswith(f", and saved, in {paths.folder}.")
    assert read_meta(paths.last).fingerprint == shards.manifest.fingerprint
    web.is_gone = False
    run(config, paths.folder, shards, resume=True)
    assert_same(paths, whole)


def test_a_limited_cache_trains_in_windows_that_the_record_holds_and_a_resume_keeps(
    web: Web, run: Train, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, orders, sizes = tmp_path / "cache", [], []
    shards = ShardFolder.open(web.address, cache=cache, cache_mib=4)
    splits = [shards.manifest.of_split(split) for split in ("train", "val")]
    assert sum(shard.num_bytes for shard in splits[0]) > 4 * MIB
    real = train_module.train_step

    def noted(state: Any, batch: Any, *, step: int) -> Any:
        orders.append(batch.indices_B.tolist())
        sizes.append(size_of(cache))
        return real(state, batch, step=step)

    monkeypatch.setattr(train_module, "train_step", noted)
    config = tiny(**WHOLE)
    record = run(config, tmp_path / "run", shards)
    assert max(sizes) <= 4 * MIB
    assert (record.window_mib, record.cache) == (2.0, CacheRecord.of(shards))
    rows = [row for batch in orders[:4] for row in batch]
    assert len(set(rows)) == 64
    reader = shards.reader("train")
    first = set(reader.shards_of(torch.tensor(orders[0]).numpy()).tolist())
    assert len(first) < len(splits[0])
    opened = shards_of(record, None)
    assert (opened.place, opened.cache) == (shards.place, shards.cache)

    monkeypatch.setattr(train_module, "train_step", signalled_at(1))
    paths = RunPaths(folder=tmp_path / "other")
    with pytest.raises(PreemptedRunError, match="stopped at step 2 of epoch 1"):
        run(config, paths.folder, shards)
    monkeypatch.setattr(train_module, "train_step", real)
    for cache_mib, now in ((None, "of all shards"), (3, "in windows of 1.5 MiB")):
        other = ShardFolder.open(web.address, cache=cache, cache_mib=cache_mib)
        with pytest.raises(ConfigError) as caught:
            run(config, paths.folder, other, resume=True)
        assert str(caught.value) == (
            f"--resume must go on with the run's own options; got an order in windows of 2 MiB "
            f"there, {now} by --cache-mib now in {paths.folder}. Use the run's options, or name "
            "another --experiment."
        )
    run(config, paths.folder, ShardFolder.open(web.address, cache=cache, cache_mib=4), resume=True)
    assert_same(paths, RunPaths(folder=tmp_path / "run"))


def test_a_run_begun_on_the_folder_goes_on_from_the_address(
    web: Web, local: Callable[..., RunPaths], run: Train, tiny: Tiny, several_shards: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paths = RunPaths(folder=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_step", signalled_at(1))
        with pytest.raises(PreemptedRunError):
            run(tiny(**WHOLE), paths.folder, ShardFolder.open(several_shards))
    shards = ShardFolder.open(web.address, cache=tmp_path / "cache", cache_mib=9)
    run(tiny(**WHOLE), paths.folder, shards, resume=True)
    assert_same(paths, local(**WHOLE))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_training_waits_stops_it_at_once_and_it_goes_on_from_there(
    number: signal.Signals, web: Web, local: Callable[..., RunPaths], run: Train, tiny: Tiny,
    tmp_path: Path,
) -> None:  # fmt: skip
    silent = threading.Event()
    web.faults = [partial(interrupt_and_fall_silent, number=number, until=silent)]
    shards = ShardFolder.open(web.address, cache=tmp_path / "cache")
    paths = RunPaths(folder=tmp_path / "run")
    with pytest.raises(StoppedRunError) as caught:
        run(tiny(**WHOLE), paths.folder, shards)
    assert str(caught.value) == f"stopped before the first step, in {paths.folder}."
    silent.set()
    run(tiny(**WHOLE), paths.folder, shards, resume=True)
    assert_same(paths, local(**WHOLE))


def test_a_signal_while_a_validation_waits_stops_it_at_once(
    web: Web, local: Callable[..., RunPaths], run: Train, tiny: Tiny, tmp_path: Path
) -> None:
    silent = threading.Event()
    interrupt = partial(interrupt_and_fall_silent, number=signal.SIGTERM, until=silent)
    shards = ShardFolder.open(web.address, cache=tmp_path / "cache")
    paths = RunPaths(folder=tmp_path / "run")

    class Silent(Progress):
        def update(self, stage: str, done: int, *_: object) -> None:
            if (stage, done) == ("training", 64):
                web.faults = [interrupt]

    with pytest.raises(PreemptedRunError, match=r"stopped at step 4 of epoch 1, and saved"):
        run(tiny(**WHOLE), paths.folder, shards, progress=Silent())
    silent.set()
    run(tiny(**WHOLE), paths.folder, shards, resume=True)
    assert_same(paths, local(**WHOLE))


def test_a_validation_whose_server_dies_keeps_the_epoch(
    web: Web, local: Callable[..., RunPaths], run: Train, tiny: Tiny, tmp_path: Path
) -> None:
    shards, paths = (
        ShardFolder.open(web.address, cache=tmp_path / "cache"), RunPaths(folder=tmp_path / "run")
    )  # fmt: skip

    class Gone(Progress):
        def update(self, stage: str, done: int, *_: object) -> None:
            web.is_gone = (stage, done) == ("training", 64)

    with pytest.raises(DownloadError, match="shards must be reachable; got ") as caught:
        run(tiny(**WHOLE), paths.folder, shards, progress=Gone())
    assert f"stopped at step 4 of epoch 1, and saved, in {paths.folder}." in str(caught.value)
    web.is_gone = False
    run(tiny(**WHOLE), paths.folder, shards, resume=True)
    assert_same(paths, local(**WHOLE))


def test_the_time_that_a_training_waits_is_recorded_and_kept_over_a_resume(
    web: Web, run: Train, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.faults = [delay]
    shards = ShardFolder.open(web.address, cache=tmp_path / "cache")
    first_batch = shards.reader("train").shards_of(
        training_batches(70, batch_size=16, seed=tiny().seed, epoch=0)[0]
    )
    assert 0 in first_batch
    config, paths = tiny(**WHOLE), RunPaths(folder=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_step", signalled_at(1))
        with pytest.raises(PreemptedRunError):
            run(config, paths.folder, shards)
    part = read_meta(paths.last).part
    assert part is not None
    assert 0.2 < part.waited_s < part.seconds
    record = run(config, paths.folder, shards, resume=True)
    first, second = record.epochs
    assert part.waited_s < (first.waited_s or 0) < first.seconds
    assert 0 < (second.waited_s or 0) < second.seconds
    assert load_record(paths.record) == record


@pytest.mark.sweep  # twice two processes
def test_two_processes_share_a_cache_and_train_what_two_train_on_the_folder(
    web: Web, several_shards: Path, warm_training: WarmPython, tmp_path: Path
) -> None:
    options = (
        *("--model", "test_resnet", "--epochs", "1", "-b", "8", "-j", "1", "--no-amp"),
        *("--device", "cpu", "--policy", "whole", "--output", str(tmp_path), "--experiment"),
    )
    cache = ("--cache", str(tmp_path / "cache"))
    for name, place in (("local", [str(several_shards)]), ("remote", [web.address, *cache])):
        words = ("-m", "training", "from", *place, *options, name)
        ended = warm_training.run_together(*words, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
    assert_same(*(RunPaths(folder=tmp_path / name) for name in ("remote", "local")))
    for shard in ShardFolder.open(several_shards).manifest.shards:
        assert web.asked_for(shard.name) == [""]
