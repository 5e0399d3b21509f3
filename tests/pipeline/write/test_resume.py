import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format import manifest as manifests
from pipeline.write.shard_writer import sha256_of

REPO = Path(__file__).resolve().parents[3]

# One image a shard, so that there is much to be killed in the middle of.
OPTIONS = {"canvas_size": 336, "crop_size": 224, "layout": "tensors", "shard_mib": 1}


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def unbroken(
    image_tree: Path, make_shards: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Every file of a build that nobody disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    make_shards(image_tree, out, **OPTIONS)
    return files(out)


def start_build(source: Path, out: Path) -> subprocess.Popen[bytes]:
    options = ["--canvas-size=336", "--crop-size=224", "--glimpse-size=32", "--layout=tensors"]
    command = [sys.executable, "-m", "pipeline.cli.main", "build-shards", str(source), str(out)]
    repo = Path(__file__).resolve().parents[3]
    return subprocess.Popen(
        [*command, *options, "--shard-mib=1", "--workers=1"],
        cwd=repo,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(condition: Callable[[], object]) -> None:
    """Wait; whoever waits for ever is ended by whoever runs the tests."""
    while not condition():
        time.sleep(0.001)


def break_off(source: Path, out: Path, how: signal.Signals) -> tuple[int, str]:
    """Send a signal to a build when it has finished a few shards; return how it ended."""
    with start_build(source, out) as process:
        wait_for(lambda: len(list(out.glob("train-*.tar"))) >= 3 or process.poll() is not None)
        process.send_signal(how)
        # Comes back when the last process with this pipe has ended, and so have the workers.
        output, _ = process.communicate()
    assert not (out / "manifest.json").exists(), "the build was over before it was broken off"
    return process.returncode, output.decode()


def assert_no_partial_shard(out: Path, unbroken: dict[str, str]) -> None:
    for path in out.glob("*.tar"):
        assert sha256_of(path) == unbroken[path.name]


def test_a_killed_build_goes_on_with_the_same_command_and_ends_in_the_same_bytes(
    image_tree: Path, unbroken: dict[str, str], make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, _ = break_off(image_tree, out, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert_no_partial_shard(out, unbroken)
    noted = {path.name.removesuffix(".json") for path in out.glob(".build/*/*.tar.json")}
    assert 2 <= len(noted) < 27
    times = {name: (out / name).stat().st_mtime_ns for name in noted}
    (out / ".train-000000.tar.1.partial").write_bytes(b"what a killed writer left")
    result = make_shards(image_tree, out, workers=2, **OPTIONS)
    assert set(result.reused) == noted
    assert {name: (out / name).stat().st_mtime_ns for name in noted} == times
    assert files(out) == unbroken


def test_an_interrupted_build_says_how_to_go_on_and_leaves_no_partial_file(
    image_tree: Path, unbroken: dict[str, str], make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, output = break_off(image_tree, out, signal.SIGINT)
    assert status == 130
    assert "error: interrupted. Resume with: " in output
    assert "Traceback" not in output
    assert not list(out.rglob("*.partial"))
    assert_no_partial_shard(out, unbroken)
    assert make_shards(image_tree, out, **OPTIONS).reused
    assert files(out) == unbroken


def test_code_in_the_current_folder_is_not_run(image_tree: Path, tmp_path: Path) -> None:
    for name in ("numba", "PIL", "simplejpeg"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    code = "from pipeline.cli.main import main; main()"
    sizes = ("--canvas-size=48", "--crop-size=32", "--glimpse-size=8")
    subprocess.run(
        [sys.executable, "-P", "-c", code, "build-shards", image_tree, tmp_path / "out", *sizes],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        check=True,
    )
    assert not (tmp_path / "canary").exists()


def test_a_finished_build_is_reused_whole(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    first = make_shards(image_tree, tmp_path / "out")
    before = files(tmp_path / "out")
    second = make_shards(image_tree, tmp_path / "out")
    assert first.reused == ()
    assert second.reused == tuple(shard.name for shard in first.manifest.shards)
    assert second.manifest == first.manifest
    assert files(tmp_path / "out") == before


def test_a_lost_or_damaged_shard_is_built_again_and_no_other(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    names = [shard.name for shard in make_shards(image_tree, out, **OPTIONS).manifest.shards]
    before = files(out)
    (out / names[0]).unlink()
    with (out / names[2]).open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    with (out / names[3]).open("r+b") as file:
        file.truncate(5000)
    assert make_shards(image_tree, out, **OPTIONS).reused == (names[1], *names[4:])
    assert files(out) == before


CHANGES = [
    ({"layout": "tensors"}, r"layout 'canvas' there, 'tensors' requested"),
    ({"glimpse_size": 16}, r"glimpse_size 32 there, 16 requested"),
    ({"seed": 3, "exif": False}, r"exif True there, False requested; seed 0 there, 3 requested"),
    (
        {"codec": "zstd"},
        r"codec 'raw' there, 'zstd' requested; codec_library '' there, 'zstd [\d.]+' requested",
    ),
    ({"limit": 5}, r"limit None there, 5 requested"),
]


@pytest.mark.parametrize(("change", "difference"), CHANGES)
def test_other_options_for_the_same_folder_are_refused_with_the_difference(
    change: dict[str, Any], difference: str, canvas_shards: Path, image_tree: Path, make_shards: Any
) -> None:
    before = files(canvas_shards)
    options = {"layout": "canvas", "candidates": "full+five", "shard_mib": 1} | change
    with pytest.raises(ConfigError, match=rf"same build; got .*\({difference}\)\. Choose another"):
        make_shards(image_tree, canvas_shards, **options)
    assert files(canvas_shards) == before
    assert not (canvas_shards / ".build").exists()


def test_an_unfinished_build_of_other_options_is_refused_with_the_difference(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    spoiled = own_tree / "train/cat/cat_000.JPEG"
    data = spoiled.read_bytes()
    spoiled.write_bytes(b"no image")
    with pytest.raises(Exception, match="max-rejects"):
        make_shards(own_tree, out)
    before = files(out)
    with pytest.raises(ConfigError, match=r"\(crop_size 112 there, 100 requested\)"):
        make_shards(own_tree, out, crop_size=100)
    spoiled.write_bytes(data)
    with pytest.raises(ConfigError, match=r"\(other source images\)\. Choose another folder, or"):
        make_shards(own_tree, out)
    assert files(out) == before


def test_other_images_for_the_same_folder_are_refused(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    make_shards(own_tree, tmp_path / "out")
    (own_tree / "val/cat/cat_000.JPEG").rename(own_tree / "val/cat/other.JPEG")
    with pytest.raises(ConfigError, match="other source images"):
        make_shards(own_tree, tmp_path / "out")


def test_a_damaged_manifest_is_built_again_once_it_is_deleted(
    image_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_shards(image_tree, out)
    before = files(out)
    (out / manifests.FILE_NAME).write_text("{")
    with pytest.raises(VerificationError, match="Delete it and run the same srp-data build-shards"):
        make_shards(image_tree, out)
    (out / manifests.FILE_NAME).unlink()
    assert make_shards(image_tree, out).reused == ()
    assert files(out) == before


def test_a_spoiled_note_of_a_shard_is_not_believed(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (own_tree / "train/cat/cat_000.JPEG").write_bytes(b"no image")
    with pytest.raises(Exception, match="max-rejects"):
        make_shards(own_tree, out, shard_mib=1)
    notes = sorted(out.glob(".build/*/*.tar.json"))
    notes[0].write_text("{")
    notes[1].write_text(notes[2].read_text())
    reused = make_shards(own_tree, out, shard_mib=1, max_rejects=1).reused
    assert set(reused) == {note.name.removesuffix(".json") for note in notes[2:]}
