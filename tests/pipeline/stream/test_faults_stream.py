"""An epoch over a real S3 server through faults: every sample once, in the order of the folder."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from served import Relay, RelayFault, cut, drop, refuse_for_now, s3_relay, s3_server, stall

from pipeline import BatchLoader, BatchSpec, ShardReader, training_batches
from pipeline.common.errors import DownloadError
from pipeline.format.sample import Sample
from pipeline.stream import prefetch
from pipeline.stream.folder import ShardFolder
from pipeline.stream.store import open_store
from pipeline.stream.stream import SampleStream

ADDRESS = "s3://bucket/deep/mine"
FAULTS: list[RelayFault] = [
    drop,
    cut,
    partial(refuse_for_now, code="InternalError", status=500),
    partial(refuse_for_now, code="SlowDown", status=503),
    partial(refuse_for_now, code="ServiceUnavailable", status=503),
]


@pytest.fixture(scope="module")
def folder(
    image_tree: Path, make_shards: Callable[..., object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Eighteen training samples in six shards or more."""
    out = tmp_path_factory.mktemp("served") / "bucket/deep/mine"
    make_shards(image_tree, out, layout="tensors", candidates="five", shard_mib=1)
    return out


@pytest.fixture
def relay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    root = folder.parents[2]
    with s3_server(root, monkeypatch) as port, s3_relay(port, monkeypatch) as found:
        yield found


def streamed(stream: SampleStream) -> list[tuple[str, bytes, bytes]]:
    def plain(sample: Sample) -> tuple[str, bytes, bytes]:
        return sample.key, sample.originals.tobytes(), sample.glimpses.tobytes()

    return [plain(sample) for epoch in range(2) for sample in stream.samples(epoch)]


def batches_of(reader: ShardReader) -> list[bytes]:
    order = training_batches(len(reader), batch_size=3, seed=7, epoch=0)
    assert sorted(order.ravel().tolist()) == list(range(18))
    loader = BatchLoader(reader, BatchSpec(candidates=(0, 4), glimpse_px=16), workers=2)
    return [
        b"".join(array.tobytes() for array in batch.arrays if array is not None)
        for batch in loader.batches(order)
    ]


@pytest.mark.parametrize("has_cache", [False, True])
def test_a_stream_through_faults_gives_every_sample_once_in_the_order_of_the_folder(
    has_cache: bool, relay: Relay, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "BLOCK_BYTES", 600_000)  # one or two samples
    expected = streamed(SampleStream(folder, "train", seed=3, shuffle_buffer=4))
    assert len({key for key, *_ in expected[:18]}) == 18
    relay.faults = [*FAULTS, stall]
    store = open_store(ADDRESS, cache=tmp_path / "cache" if has_cache else None)
    stream = SampleStream(store, "train", seed=3, shuffle_buffer=4)
    assert streamed(stream) == expected
    assert not relay.faults
    num_bytes = sum(shard.num_bytes for shard in stream.manifest.of_split("train"))
    assert stream.fetched_bytes >= num_bytes
    assert stream.waited_s > 0


def test_batches_through_faults_are_those_of_the_folder(
    relay: Relay, folder: Path, tmp_path: Path
) -> None:
    expected = batches_of(ShardFolder.open(folder).reader("train"))
    relay.faults = [*FAULTS, stall]
    reader = ShardFolder.open(ADDRESS, cache=tmp_path / "cache").reader("train")
    assert batches_of(reader) == expected
    assert not relay.faults
    assert reader.mapped.waited_s > 0
    assert reader.mapped.fetched_bytes >= sum(s.num_bytes for s in reader._shards)


@pytest.mark.sweep
def test_an_s3_server_that_stays_out_of_order_ends_in_one_line(relay: Relay, folder: Path) -> None:
    relay.faults = [FAULTS[2]] * 1000
    with pytest.raises(DownloadError) as caught:
        streamed(SampleStream(ADDRESS, "train"))
    assert f"from {ADDRESS}/train-000000.tar at offset 0. Check the address" in str(caught.value)
    assert "\n" not in str(caught.value)
