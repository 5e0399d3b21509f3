import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest

from pipeline import manifest
from pipeline.errors import ConfigError, VerificationError
from pipeline.mapped import MappedShards
from pipeline.shard import ShardRecord


@pytest.fixture
def records(shards: Path, tmp_path: Path) -> tuple[ShardRecord, ...]:
    """Shards in `tmp_path`, to be broken."""
    for path in shards.glob("*.tar"):
        shutil.copy(path, tmp_path)
    return manifest.load(shards).shards


def test_shards_are_mapped_anew_in_another_process(
    records: tuple[ShardRecord, ...], tmp_path: Path
) -> None:
    mapped = MappedShards(tmp_path, records)
    for number, record in enumerate(records):
        assert mapped.bytes_of(number).tobytes() == (tmp_path / record.name).read_bytes()
        assert mapped.bytes_of(number) is mapped.bytes_of(number)
        assert mapped.address_of(number) == mapped.bytes_of(number).ctypes.data
    sent = pickle.loads(pickle.dumps(mapped))  # noqa: S301 - our own, as a DataLoader sends it
    assert sent.bytes_of(0).tobytes() == mapped.bytes_of(0).tobytes()
    assert sent.address_of(0) != mapped.address_of(0)


@pytest.mark.parametrize("in_use", [False, True])
def test_a_cut_or_missing_shard_is_named_with_the_place(
    in_use: bool, records: tuple[ShardRecord, ...], tmp_path: Path
) -> None:
    def look() -> None:
        mapped.written_ns(0) if in_use else MappedShards(tmp_path, records)

    mapped = MappedShards(tmp_path, records)
    path, samples = tmp_path / records[0].name, records[0].samples
    cut = int(samples.offsets_N[1]) + 700
    os.truncate(path, cut)
    with pytest.raises(VerificationError) as caught:
        look()
    assert f"got {cut} bytes, not {records[0].num_bytes}, in {path}" in str(caught.value)
    assert f"broken from offset {cut}, sample {samples.key(1)}" in str(caught.value)
    path.unlink()
    with pytest.raises(VerificationError, match=f"got none at {path}"):
        look()


def test_the_limit_on_open_files_is_raised_or_named(
    records: tuple[ShardRecord, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((64, 1000), (64, resource.RLIM_INFINITY), (resource.RLIM_INFINITY,) * 2):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        MappedShards(tmp_path, records)
    assert asked == [(64 + len(records), 1000), (64 + len(records), resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(ConfigError) as caught:
        MappedShards(tmp_path, records)
    assert str(caught.value) == (
        f"every shard is a file that stays open; got {len(records)} shards where this system "
        "allows 20 files. Raise it with ulimit -n, or build shards with a larger --shard-mib."
    )
