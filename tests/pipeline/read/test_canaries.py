"""Code of a stranger in shards and addresses. Each canary makes a folder if it is run; none may."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from webdataset.autodecode import decoders
from webdataset.gopen import gopen_schemes

from pipeline.cli.contact_sheet import draw_sheet
from pipeline.common.checksum import NO_DIGEST, embed_sha256
from pipeline.common.errors import ConfigError, SrpError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.format.ustar import TAR_END, tar_header, tar_padding
from pipeline.read.reader import ShardReader
from pipeline.stream.store import open_store
from pipeline.stream.stream import SampleStream
from pipeline.verify.verify import verify_shards

# All that webdataset would decode by itself, a few of them as its other handlers would.
SUFFIXES = sorted({*decoders, "pickle.gz", "pkl.gz", "PKL", "x.pyd", "npy.gz", "jpg", "mp4", "py"})
OWN = {"cls", "json"}


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def payload(suffix: str, marker: Path) -> bytes:
    """Give bytes that run the canary where a reader of this suffix unpickles."""
    if suffix.startswith(("npy", "npz")):
        buffer = io.BytesIO()
        array = np.array([Canary(marker)], dtype=object)
        (np.save if "npy" in suffix else np.savez)(buffer, array, allow_pickle=True)
        data = buffer.getvalue()
    else:
        data = pickle.dumps(Canary(marker), protocol=0)
    return gzip.compress(data) if suffix.endswith(".gz") else data


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The folder that no test may find."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class Planted(NamedTuple):
    """A folder of shards whose manifest knows what a stranger put into the first of them."""

    folder: Path
    place: str


def plant(
    shards: Path, folder: Path, *, change: Callable[[dict[str, bytes]], dict[str, bytes]],
    declare: Callable[[str], str] = str, declare_all: bool = True,
) -> Planted:  # fmt: skip
    """Change a copy's first sample; offsets, sizes and checksums in its manifest follow.

    Args:
        shards: To copy.
        folder: To copy them to.
        change: From the sample's members by suffix to those that are written.
        declare: From a suffix of the sample to the one that the manifest gives it.
        declare_all: Whether the checksum covers every member, or those of the manifest alone.
    """
    shutil.copytree(shards, folder)
    shard, suffixes = manifests.load(folder).shards[0], manifests.load(folder).suffixes()
    first, path = shard.samples[0], folder / shard.name
    data = path.read_bytes()
    members = {
        suffix: data[extent.offset :][: extent.size]
        for suffix, extent in zip(suffixes, first.extents(), strict=True)
    }
    changed = change(members)
    parts = [
        tar_header(f"{first.key}.{suffix}", len(member)) + member + bytes(tar_padding(len(member)))
        for suffix, member in changed.items()
    ]
    whole = b"".join(parts)
    told = whole if declare_all else b"".join(parts[: len(suffixes)])
    path.write_bytes(whole + data[first.length :])
    lengths = [len(member) for member in list(changed.values())[: len(suffixes)]]
    text = json.loads((folder / "manifest.json").read_text())
    fields = text["shards"][0]
    moved = len(whole) - first.length
    fields["bytes"] += moved
    fields["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    fields["crc32"][0] = zlib.crc32(told)
    fields["offsets"][1:] = [offset + moved for offset in fields["offsets"][1:]]
    columns = {s: n if isinstance(n, list) else [n] * len(shard.samples)
               for s, n in fields["sizes"].items()}  # fmt: skip
    for column, length in zip(columns.values(), lengths, strict=True):
        column[0] = length
    fields["sizes"] = {declare(suffix): column for suffix, column in columns.items()}
    text["manifest_sha256"] = NO_DIGEST
    data = embed_sha256(json.dumps(text).encode(), "manifest_sha256")
    (folder / "manifest.json").write_bytes(data)
    assert path.read_bytes().endswith(TAR_END)
    return Planted(folder, rf"{shard.name} at offset 0 \(sample {first.key}\)")


def by_index(folder: Path) -> None:
    manifest = manifests.load(folder)
    reader = ShardReader(folder, manifest, manifest.shards)
    for index in range(len(reader)):
        reader.read(index)


def by_batch(folder: Path) -> None:
    manifest = manifests.load(folder)
    reader = ShardReader(folder, manifest, manifest.shards)
    reader.locate(range(len(reader)))


def as_a_stream(folder: Path) -> None:
    store = open_store(folder)
    manifest = store.load_manifest()
    for split in manifest.splits:
        for _ in SampleStream(store, split, manifest=manifest).samples():
            pass


def by_verify(folder: Path) -> None:
    verify_shards(folder, workers=1)


def as_a_sheet(folder: Path) -> None:
    manifest = manifests.load(folder)
    split = manifest.shards[0].split
    rows = manifest.num_samples(split)
    draw_sheet(folder, folder / "sheet.png", split=split, rows=rows, seed=0)


READERS = [by_index, by_batch, as_a_stream, by_verify, as_a_sheet]
Read = Callable[[Path], None]


@pytest.mark.parametrize("read", READERS)
def test_the_shards_are_sound_before_anything_is_planted(
    read: Read, canvas_shards: Path, tmp_path: Path
) -> None:
    read(plant(canvas_shards, tmp_path / "shards", change=dict).folder)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pkl.gz"])
def test_the_canary_is_alive(suffix: str, canvas_shards: Path, tmp_path: Path) -> None:
    marker = tmp_path / "canary"
    change = renamed(suffix, marker)
    planted = plant(canvas_shards, tmp_path / "shards", change=change)
    shard = planted.folder / manifests.load(canvas_shards).shards[0].name
    with shard.open("rb") as stream:
        files = webdataset.tariterators.tar_file_expander([{"url": "", "stream": stream}])
        sample = next(webdataset.tariterators.group_by_keys(files))
    assert suffix in sample
    assert not marker.exists()
    webdataset.autodecode.Decoder([])(sample)
    assert marker.is_dir()


def renamed(suffix: str, marker: Path) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        data = payload(suffix, marker)
        return dict((suffix, data) if s == "cls" else (s, m) for s, m in members.items())

    return change


def added(suffix: str, marker: Path) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: {**members, suffix: payload(suffix, marker)}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in OWN])
def test_a_member_of_another_suffix_is_refused_by_name(
    suffix: str, read: Read, canvas_shards: Path, tmp_path: Path, marker: Path
) -> None:
    change = renamed(suffix, marker)
    planted = plant(canvas_shards, tmp_path / "shards", change=change)
    with pytest.raises(VerificationError, match=planted.place) as caught:
        read(planted.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", ["pkl", "pyd", "npy", "cls2", "CLS"])
def test_the_name_of_a_member_is_reason_enough(
    suffix: str, read: Read, canvas_shards: Path, tmp_path: Path
) -> None:
    def rename(members: dict[str, bytes]) -> dict[str, bytes]:
        return {suffix if own == "cls" else own: data for own, data in members.items()}

    planted = plant(canvas_shards, tmp_path / "shards", change=rename)
    with pytest.raises(VerificationError, match=planted.place):
        read(planted.folder)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix not in OWN])
def test_a_manifest_that_declares_another_suffix_is_refused(
    suffix: str, read: Read, canvas_shards: Path, tmp_path: Path, marker: Path
) -> None:
    declare = {"cls": suffix}
    planted = plant(
        canvas_shards, tmp_path / "shards",
        change=renamed(suffix, marker), declare=lambda own: declare.get(own, own),
    )  # fmt: skip
    with pytest.raises(VerificationError, match=rf"got ValueError: members .*{suffix}.* in "):
        read(planted.folder)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("declare_all", [True, False])
@pytest.mark.parametrize("suffix", ["pkl", "pyd", "txt"])
def test_a_member_between_two_samples_is_refused(
    suffix: str, declare_all: bool, read: Read, canvas_shards: Path, tmp_path: Path, marker: Path
) -> None:
    planted = plant(
        canvas_shards, tmp_path / "shards",
        change=added(suffix, marker), declare_all=declare_all,
    )  # fmt: skip
    with pytest.raises(VerificationError, match=r"got ValueError: offset \d+ of '.*' in .*\.tar"):
        read(planted.folder)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["pkl", "npy", "npz"])
@pytest.mark.parametrize("shards_of", ["canvas_shards", "tensor_shards", "zstd_shards"])
def test_a_pickle_under_a_suffix_of_ours_is_refused(
    shards_of: str, kind: str, read: Read, tmp_path: Path, marker: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    shards = request.getfixturevalue(shards_of)
    data = payload(kind, marker)
    for number, suffix in enumerate(manifests.load(shards).suffixes()):

        def disguise(members: dict[str, bytes], own: str = suffix) -> dict[str, bytes]:
            return {s: data if s == own else m for s, m in members.items()}

        planted = plant(shards, tmp_path / str(number), change=disguise)
        if read is by_batch and suffix not in ("cls", *manifests.load(shards).npy_shapes()):
            read(planted.folder)  # it only finds members; what is decoded is decoded elsewhere
        else:
            with pytest.raises(VerificationError, match=planted.place):
                read(planted.folder)
        shutil.rmtree(planted.folder)


SCHEMES = sorted({*gopen_schemes, "file", "sh", "exec", "ssh", "ftp", "htgs"} - {"__default__"})
REMOTE = {"http", "https", "gs"}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: Path) -> None:
    """Stand-ins for what webdataset would run; each is a canary."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("curl", "gsutil", "ais", "ssh", "scp", "sh", "aws", "wget"):
        (folder / name).write_text(f"#!/bin/sh\nmkdir {marker}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("GOPEN_REWRITE", f"http://=pipe:mkdir {marker};/=pipe:mkdir {marker}")
    monkeypatch.chdir(tmp_path)


def addresses(marker: Path) -> list[str]:
    command, bare = f"mkdir {marker}", f">{marker}"  # the shell's shortest program has no space
    local = [s for s in SCHEMES if s not in REMOTE]
    plain = [f"{s}:{bare}" for s in SCHEMES] + [f"{s}://host/a;{bare}" for s in local]
    schemes = [f"{s}:{command}" for s in SCHEMES] + [f"{s}://host/a; {command}" for s in SCHEMES]
    odd = ["-", f"|{command}", f"$({command})", f"PIPE:{command}", f" pipe:{command}"]
    chains = [f"simplecache::pipe:{command}", f"file::pipe:{command}", "reference://x"]
    return [*plain, *schemes, *odd, *chains]


@pytest.mark.usefixtures("programs")
def test_the_programs_are_canaries(tmp_path: Path) -> None:
    webdataset.gopen(f"pipe:mkdir {tmp_path}/other").read()
    webdataset.gopen(f"pipe:>{tmp_path}/file").read()
    assert (tmp_path / "other").is_dir()
    assert (tmp_path / "file").is_file()
    stream = webdataset.gopen("gs://host/a")
    stream.read()
    (tmp_path / "canary").rmdir()


@pytest.mark.usefixtures("programs")
def test_no_address_runs_a_command(marker: Path) -> None:
    for address in addresses(marker):
        with pytest.raises(SrpError, match=r"^(shards must|SHARDS must)") as caught:
            open_store(address).load_manifest()
        assert "\n" not in str(caught.value)


# What stands before an address, and what behind it.
COMMANDS = {
    "verify": [], "show -o sheet.png": [], "build-shards": ["out"], "scatter": ["out"],
    "bench load": [], "bench build": [],
}  # fmt: skip


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("command", COMMANDS)
def test_no_argument_of_a_command_runs_one(
    command: str, marker: Path, srp_data: Callable[..., Any]
) -> None:
    for address in addresses(marker):
        result = srp_data(*command.split(), "--", address, *COMMANDS[command])
        assert result.exit_code == 2, (address, result.output)
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("command", ["from", "evaluate", "audit"])
def test_no_argument_of_the_trainer_runs_a_command(command: str, marker: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra train, which is not installed")
    from training.cli.train import main

    for address in addresses(marker):
        result = CliRunner().invoke(main, [command, "--", address])
        assert result.exit_code in (1, 2), (address, result.output)
        assert isinstance(result.exception, SystemExit)


def test_what_is_refused_is_refused_as_an_address_and_not_as_a_missing_folder() -> None:
    with pytest.raises(ConfigError, match=r"got the scheme pipe: in 'pipe:ls'"):
        open_store("pipe:ls")
