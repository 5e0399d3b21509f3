import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest
from pipeline.format.index import ShardEntry
from pipeline.read.memory_map import MappedShards


@pytest.fixture
def records(shards: Path, tmp_path: Path) -> tuple[ShardEntry, ...]:
    """Shards in `tmp_path`, to be broken."""
    for path in shards.glob("*.tar"):
        shutil.copy(path, tmp_path)
    return manifest.load(shards).shards


def test_shards_are_mapped_anew_in_another_process(
    records: tuple[ShardEntry, ...], tmp_path: Path
) -> None:
    mapped = MappedShards(tmp_path, records)
    for number, record in enumerate(records):
        assert mapped.bytes_of(number).tobytes() == (tmp_path / record.name).read_bytes()
        assert mapped.bytes_of(number) is mapped.bytes_of(number)
    sent = pickle.loads(pickle.dumps(mapped))  # noqa: S301 - our own, as a DataLoader sends it
    assert sent.bytes_of(0).tobytes() == mapped.bytes_of(0).tobytes()
    assert sent.bytes_of(0).ctypes.data != mapped.bytes_of(0).ctypes.data


@pytest.mark.parametrize("in_use", [False, True])
def test_a_cut_or_missing_shard_is_named_with_the_place(
    in_use: bool, records: tuple[ShardEntry, ...], tmp_path: Path
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
    records: tuple[ShardEntry, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("pipeline.read.memory_map._open_files", lambda: 30)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits in ((100, 1000), (100, resource.RLIM_INFINITY), (resource.RLIM_INFINITY,) * 2):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        MappedShards(tmp_path, records)
    assert asked == [(100 + len(records), 1000), (100 + len(records), resource.RLIM_INFINITY)]
    most = 30 + len(records) + 64
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, most))
    MappedShards(tmp_path, records)
    assert asked[-1] == (most, most)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, most - 1))
    with pytest.raises(ConfigError) as caught:
        MappedShards(tmp_path, records)
    assert str(caught.value) == (
        f"the limit on open files must allow every shard; got {most - 1} for {len(records)} "
        "shards, 30 other files and 64 to spare. "
        "Raise it with ulimit -n, or build shards with a larger --shard-mib."
    )


READERS = """
import json, pickle, resource, sys
from pathlib import Path
from pipeline.common.errors import ConfigError
from pipeline.read.memory_map import MappedShards
from pipeline.format.index import SampleIndex, ShardEntry

def limit(soft, hard):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def open_reader():
    samples = SampleIndex(keys=[], labels=[], offsets=[], crc32=[], sizes={})
    return MappedShards(folder, [
        ShardEntry(name=f"{n}.tar", split="train", num_bytes=1, sha256="", samples=samples)
        for n in range(60)
    ])

def read_all(mapped):
    return sum(mapped.bytes_of(n).size for n in range(60))

folder = Path(sys.argv[1])
for n in range(60):
    (folder / f"{n}.tar").write_bytes(b"1")
"""
REPO = Path(__file__).resolve().parents[3]


def run_readers(text: str, folder: Path) -> list[str]:
    """Let a process of its own, whose limits nobody else has, read 60 files a reader."""
    command = [sys.executable, "-W", "error", "-c", READERS + text, str(folder)]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize("reads_at_once", [False, True])
def test_readers_of_one_process_share_its_limit_on_open_files(
    reads_at_once: bool, tmp_path: Path
) -> None:
    told = run_readers(
        f"""
limit(100, 290)
readers = []
try:
    while len(readers) < 9:
        readers.append(open_reader())
        {reads_at_once} and read_all(readers[-1])
except ConfigError as error:
    print(error)
print([read_all(mapped) for mapped in readers])
readers.pop()
print(read_all(open_reader()))
""",
        tmp_path,
    )
    assert re.fullmatch(
        r"the limit on open files must allow every shard; got 290 for 60 shards, 1[89]\d other "
        r"files and 64 to spare\. Raise it with .*",
        told[0],
    )
    assert told[1:] == ["[60, 60, 60]", "60"]


def test_a_reader_that_is_sent_to_another_process_raises_its_limit_too(tmp_path: Path) -> None:
    told = run_readers(
        """
sent = pickle.dumps(open_reader())
limit(50, 290)
print(read_all(pickle.loads(sent)))
limit(50, 50)
try:
    pickle.loads(sent)
except ConfigError as error:
    print(error)
""",
        tmp_path,
    )
    assert told[0] == "60"
    assert told[1].startswith("the limit on open files must allow every shard; got 50 for 60 ")
