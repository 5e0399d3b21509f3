import pytest
from served import Web, range_of

from pipeline.format import manifest as manifests
from pipeline.stream import prefetch
from pipeline.stream.stream import SampleStream


def keys_of(stream: SampleStream) -> list[str]:
    return [sample.key for sample in stream.samples()]


def test_a_stream_reads_what_it_waits_for_in_blocks_and_counts_wait_and_bytes(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "BLOCK_BYTES", 200_000)  # a few samples
    stream = SampleStream(web.address, "train")
    assert (stream.waited_s, stream.fetched_bytes) == (0, 0)
    assert keys_of(stream) == keys_of(SampleStream(web.folder, "train"))
    shards = manifests.load(web.folder).of_split("train")
    assert stream.fetched_bytes == sum(shard.num_bytes for shard in shards)
    assert stream.waited_s > 0
    for shard in shards:
        wanted = sorted(map(range_of, web.asked_for(shard.name)))
        assert len(wanted) > 2
        assert [start for start, _ in wanted[1:]] == [end for _, end in wanted[:-1]]
    assert SampleStream(web.folder, "train").fetched_bytes == 0


def test_a_server_without_ranges_sends_each_shard_once(web: Web) -> None:
    web.has_ranges = False
    assert keys_of(SampleStream(web.address, "train")) == keys_of(SampleStream(web.folder, "train"))
    assert all(
        web.asked_for(shard.name) == [""] for shard in manifests.load(web.folder).of_split("train")
    )
