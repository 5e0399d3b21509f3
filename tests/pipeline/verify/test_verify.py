import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import Reported

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.read.reader import ShardReader
from pipeline.verify import verify as verifying
from pipeline.verify.verify import Verdict, verify_shards


def check(folder: Path) -> Verdict:
    return verify_shards(folder, workers=2)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def unsigned(path: Path) -> dict[str, Any]:
    """Read a manifest that somebody is to change who leaves its digest out."""
    fields: dict[str, Any] = json.loads(path.read_text())
    del fields["manifest_sha256"]
    return fields


@pytest.fixture
def own(shards: Path, tmp_path: Path) -> Path:
    """A folder of shards that a test may damage."""
    return shutil.copytree(shards, tmp_path / "shards")


def test_whole_shards_pass_and_progress_reaches_every_sample(shards: Path) -> None:
    progress = Reported()
    verdict = verify_shards(shards, workers=2, progress=progress)
    assert verdict.folder == shards
    assert verdict.unnamed == ()
    assert progress.calls[0] == ("verifying", 0, 27)
    assert progress.calls[-1] == ("verifying", 27, 27)


def test_canvases_of_every_codec_pass(codec_shards: Path) -> None:
    assert check(codec_shards).unnamed == ()


def test_the_folder_may_be_one_level_down(own: Path) -> None:
    assert check(own.parent).folder == own


def test_every_damaged_shard_is_named_with_the_offset(own: Path) -> None:
    manifest = manifests.load(own)
    first, last = manifest.shards[0], manifest.shards[-1]
    record = first.samples[1]
    flip(own / first.name, record.offset + 700)
    (own / last.name).write_bytes((own / last.name).read_bytes()[:-512])
    with pytest.raises(VerificationError) as caught:
        check(own)
    message = str(caught.value)
    assert message.startswith(f"2 of {len(manifest.shards)} shards are damaged. ")
    assert f"{first.name} at offset {record.offset} (sample {record.key})" in message
    assert f"{last.name} (broken from offset {last.num_bytes - 512}, past its samples)" in message
    assert "Run the same srp-data build-shards command again" in message


@pytest.mark.parametrize("from_end", [1, 600, 1024])
def test_a_flipped_byte_behind_the_last_sample_is_found(from_end: int, own: Path) -> None:
    shard = manifests.load(own).shards[0]
    flip(own / shard.name, shard.num_bytes - from_end)
    offset = shard.num_bytes - 1024
    with pytest.raises(VerificationError, match=rf"{shard.name}.*from offset {offset}"):
        check(own)


def again(folder: Path) -> Verdict:
    return verify_shards(folder, workers=2, reads_all=False)


def test_what_was_found_whole_is_read_again_only_where_it_was_written_to(own: Path) -> None:
    names = tuple(shard.name for shard in manifests.load(own).shards)
    assert again(own).unread == ()
    assert again(own).unread == names
    assert check(own).unread == ()
    flip(own / names[0], 700)
    with pytest.raises(VerificationError, match=rf"1 of {len(names)} shards are .*{names[0]}"):
        again(own)
    with pytest.raises(VerificationError, match=names[0]):
        again(own)  # it does not pass for whole because it has not changed since
    flip(own / names[0], 700)
    assert again(own).unread == names[1:]


def test_rot_below_the_file_system_is_found_by_reading_all_and_by_readers_as_the_page_says(
    own: Path,
) -> None:
    again(own)
    manifest = manifests.load(own)
    shard = manifest.shards[0]
    flip(own / shard.name, shard.samples[0].offset + 700)
    known = verifying.load_stamps(own)
    now = verifying.stamp(own, shard)  # rot changes bytes, and no time that a file has
    assert now is not None
    verifying.save_stamps(own, {**known, shard.name: now})
    assert shard.name in again(own).unread
    damage = rf"{shard.name} at offset {shard.samples[0].offset} "
    reader = ShardReader(own, manifest, manifest.of_split(shard.split))
    with pytest.raises(VerificationError, match=damage):
        reader.read(0)
    batches = BatchLoader(reader, BatchSpec(candidates=(0,), glimpse_px=None), workers=1).batches(
        [np.array([0])]
    )
    with pytest.raises(VerificationError, match=damage):
        next(iter(batches))
    with pytest.raises(VerificationError, match=damage):
        check(own)
    page = (Path(__file__).resolve().parents[3] / "shards/README.md").read_text()
    _, _, told = page.partition("### What `verify` does not read again")
    assert "cannot see bytes that changed below the file system" in " ".join(told.split())
    assert "`srp-data verify --all` reads every byte of every shard" in told


def test_a_damaged_or_foreign_note_of_what_was_whole_is_no_note(own: Path) -> None:
    again(own)
    note = own / ".verified.json"
    for data in (b"{", b"[1]", b'{"train-000000.tar": 1}', b"\xff"):
        note.write_bytes(data)
        assert again(own).unread == ()
    moved = own.rename(own.with_name("moved"))
    copied = shutil.copytree(moved, moved.with_name("copied"))  # other files: times and inodes
    assert again(copied).unread == ()


def test_a_folder_that_cannot_be_written_to_is_verified_all_the_same(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(verifying, "write_file", refuse)
    assert again(own).unread == ()
    assert again(own).unread == ()


def test_a_missing_shard_is_found(own: Path) -> None:
    (own / "val-000000.tar").unlink()
    with pytest.raises(VerificationError, match=r"none at .*val-000000\.tar\. Run the same"):
        check(own)


def test_a_label_that_is_not_the_manifests_is_found(own: Path) -> None:
    path = own / manifests.FILE_NAME
    fields = unsigned(path)
    labels = fields["shards"][0]["labels"]
    labels[0] = (labels[0] + 1) % 3
    path.write_text(json.dumps(fields))
    with pytest.raises(VerificationError, match=r"a label must be as in the manifest; got \d, not"):
        check(own)


def test_an_image_without_count_and_reason_is_found(own: Path) -> None:
    path = own / manifests.FILE_NAME
    fields = unsigned(path)
    fields["splits"]["val"]["sources"] += 1
    path.write_text(json.dumps(fields))
    with pytest.raises(VerificationError, match="got 9 of 10 in val"):
        check(own)


def test_a_shard_that_the_manifest_does_not_name_does_not_exist(own: Path) -> None:
    shutil.copy(own / "val-000000.tar", own / "val-000099.tar")
    assert check(own).unnamed == ("val-000099.tar",)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="srp-data build-shards SOURCE"):
        check(tmp_path)


def test_an_address_is_verified_as_a_stream(web: Any, srp_data: Any) -> None:
    result = srp_data("verify", web.address, "-j", "2")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"total: 27 samples in {web.address}: ok"


def test_damage_at_an_address_names_every_shard(web: Any, srp_data: Any, tmp_path: Path) -> None:
    web.folder = shutil.copytree(web.folder, tmp_path / "damaged")
    manifest = json.loads((web.folder / "manifest.json").read_text())
    first, second = (shard["name"] for shard in manifest["shards"][:2])
    data = bytearray((web.folder / first).read_bytes())
    data[2000] ^= 1
    (web.folder / first).write_bytes(data)
    (web.folder / second).unlink()
    result = srp_data("verify", web.address)
    assert result.exit_code == 3
    assert f"2 of {len(manifest['shards'])} shards are damaged." in result.stderr
    assert f"{first} at offset 0 (sample" in result.stderr
    assert f"got none at {web.address}/{second}." in result.stderr


def test_another_sha256_at_an_address_is_an_error(web: Any, srp_data: Any, tmp_path: Path) -> None:
    web.folder = shutil.copytree(web.folder, tmp_path / "other")
    path = web.folder / "manifest.json"
    fields = unsigned(path)
    fields["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(fields))
    result = srp_data("verify", web.address)
    assert result.exit_code == 3
    assert "sha256 must be as in the manifest; got another in train-000000.tar" in result.stderr


@pytest.fixture
def with_empty(
    own_tree: Path, make_shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """Shards of one image each, of which one is unusable, and the name of the shard without it."""
    (own_tree / "train/dog/dog_001.JPEG").write_bytes(b"no image")
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda *_, **__: 1)
    out = tmp_path / "with-empty"
    built = make_shards(own_tree, out, max_rejects=1).manifest
    (empty,) = (shard.name for shard in built.shards if not len(shard.samples))
    return out, empty


def test_a_shard_whose_images_were_all_rejected_passes_here_and_at_an_address(
    web: Any, srp_data: Any, with_empty: tuple[Path, str]
) -> None:
    web.folder, _ = with_empty
    for place in (web.folder, web.address):
        result = srp_data("verify", place)
        assert result.exit_code == 0, result.stderr
        assert "train: 17 samples of 18 images, 1 rejected, in 18 shards: ok" in result.stdout


@pytest.mark.parametrize("position", [0, 1023])
def test_a_flipped_byte_of_a_shard_without_samples_is_found_here_and_at_an_address(
    position: int, web: Any, srp_data: Any, with_empty: tuple[Path, str]
) -> None:
    web.folder, empty = with_empty
    flip(web.folder / empty, position)
    for place in (web.folder, web.address):
        result = srp_data("verify", place)
        assert result.exit_code == 3
        assert f"sha256 must be as in the manifest; got another in {empty}" in result.stderr


def test_a_shard_without_samples_that_is_longer_or_missing_at_an_address_is_found(
    web: Any, srp_data: Any, with_empty: tuple[Path, str]
) -> None:
    web.folder, empty = with_empty
    (web.folder / empty).write_bytes(bytes(1025))
    assert (
        f"got 1025 bytes, not 1024, in {web.address}/{empty}"
        in srp_data("verify", web.address).stderr
    )
    (web.folder / empty).unlink()
    result = srp_data("verify", web.address)
    assert result.exit_code == 3
    assert f"got none at {web.address}/{empty}." in result.stderr


def test_an_address_that_runs_a_command_is_refused(srp_data: Any, tmp_path: Path) -> None:
    result = srp_data("verify", f"pipe:touch {tmp_path}/ran")
    assert result.exit_code == 2
    assert "got the scheme pipe: in 'pipe:touch" in result.stderr
    assert not list(tmp_path.iterdir())


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "flipped":
        flip(path, len(data) // 2)
    else:
        path.write_bytes(data[:-1] if how == "cut" else data + b"\n")


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "gone"])
def test_a_side_file_that_does_not_follow_from_the_manifest_is_named(how: str, own: Path) -> None:
    again(own)  # the shards are known to be whole
    side_files = [*sorted(own.glob("*.idx")), own / "_info.json"]
    assert len(side_files) == 1 + len(manifests.load(own).shards)
    for path in side_files:
        before = path.read_bytes()
        spoil(path, how)
        fault = "missing" if how == "gone" else "other content"
        expected = rf"got {path.name} \({fault}\) in {own}. Run the same"
        for verification in (check, again):
            with pytest.raises(VerificationError, match=expected) as caught:
                verification(own)
            assert "shards are damaged" not in str(caught.value)
        path.write_bytes(before)
    check(own)


def test_side_files_at_an_address_are_compared_too(web: Any, srp_data: Any, tmp_path: Path) -> None:
    web.folder = shutil.copytree(web.folder, tmp_path / "damaged")
    spoil(web.folder / "train-000000.idx", "flipped")
    spoil(web.folder / "_info.json", "gone")
    result = srp_data("verify", web.address)
    assert result.exit_code == VerificationError.exit_status
    wrong = "_info.json (missing), train-000000.idx (other content)"
    assert f"got {wrong} in {web.address}. Copy the whole folder" in result.stderr


@pytest.mark.parametrize("how", ["cut", "unreadable"])
def test_damaged_shards_and_side_files_are_named_in_one_line(how: str, own: Path) -> None:
    shard = manifests.load(own).shards[0]
    flip(own / shard.name, 700)
    if how == "cut":
        spoil(own / "_info.json", how)
    else:
        (own / "_info.json").unlink()
        (own / "_info.json").mkdir()
    with pytest.raises(VerificationError, match=r"^1 of \d+ shards .* \| .*_info\.json"):
        check(own)
