import errno
import os
import resource
from pathlib import Path

import pytest

from pipeline.common.atomic_io import (
    atomic_write,
    named_errors,
    remove_partials,
    whole_write,
    write_file,
)


def test_a_file_appears_with_all_its_bytes_and_nothing_beside_it(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"one")
    write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")

    def fail() -> None:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"half of the ne")
            assert (tmp_path / "a").read_bytes() == b"old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("sync"), real_sync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (steps.append("rename"), real_replace(a, b))[1]
    )
    with whole_write(tmp_path / "a") as file:
        file.write(b"x")
    assert steps == ["sync", "rename"]
    steps.clear()
    write_file(tmp_path / "a", b"x")
    assert steps == ["sync", "rename", "sync"], "of the file, and then of its folder"


def test_a_disk_that_takes_no_more_names_the_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as good as full
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_file(tmp_path / "a", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_errors_that_name_a_file_or_no_system_call_stay_as_they_are(tmp_path: Path) -> None:
    for error in (OSError("odd"), FileNotFoundError(errno.ENOENT, "none", "there")):
        with pytest.raises(OSError, match=r"odd|none") as caught, named_errors(tmp_path):
            raise error
        assert caught.value is error


def test_partials_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.tar.123.partial", "a.tar", ".hidden", "a.partial"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", ".hidden", "a.partial"}
