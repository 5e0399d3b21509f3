import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import build as build_module
from pipeline.build.config import BuildConfig
from pipeline.build.prepare import data_spec
from pipeline.format import manifest as manifests
from pipeline.verify.repair import config_of


@pytest.fixture
def built(image_tree: Path, srp_data: Any, tmp_path: Path) -> tuple[Path, Path]:
    source = shutil.copytree(image_tree, tmp_path / "images")
    out = tmp_path / "shards"
    command = ["build-shards", source, out, "--canvas-size", 24, "--crop-size", 16]
    result = srp_data(*map(str, [*command, "--glimpse-size", 8, "--workers", 1]))
    assert result.exit_code == 0, result.stderr
    return source, out


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != ".verified.json"
    }


def test_side_files_are_written_anew(built: tuple[Path, Path], srp_data: Any) -> None:
    source, out = built
    before = contents(out)
    (out / "_info.json").unlink()
    (out / "train-000000.idx").write_bytes(b"v1.2 0\n")
    assert srp_data("verify", str(out)).exit_code == 3
    result = srp_data("verify", str(out), "--repair", str(source), "--workers", "1")
    assert result.exit_code == 0, result.stderr
    assert contents(out) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_shards_are_built_again_byte_for_byte_and_the_others_are_left(
    damage: str, built: tuple[Path, Path], srp_data: Any
) -> None:
    source, out = built
    before = contents(out)
    shard = out / "train-000000.tar"
    other = (out / "val-000000.tar").stat().st_mtime_ns
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        position = len(data) // 2
        flipped = bytes([data[position] ^ 1]) + data[position + 1 :]
        shard.write_bytes(data[:position] + (flipped if damage == "flipped" else b""))
    assert srp_data("verify", str(out)).exit_code == 3
    result = srp_data("verify", str(out), "--repair", str(source), "--workers", "1")
    assert result.exit_code == 0, result.stderr
    assert "rebuilt train-000000.tar" in result.stderr
    assert "val-000000.tar" not in result.stderr
    assert contents(out) == before
    assert (out / "val-000000.tar").stat().st_mtime_ns == other


def test_another_source_is_refused_and_nothing_is_changed(
    built: tuple[Path, Path], srp_data: Any
) -> None:
    source, out = built
    (out / "train-000000.tar").unlink()
    before = contents(out)
    sorted((source / "train").glob("*/*"))[0].unlink()
    result = srp_data("verify", str(out), "--repair", str(source), "--workers", "1")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert contents(out) == before


def test_images_of_other_bytes_are_told_before_anything_is_changed(
    built: tuple[Path, Path], srp_data: Any
) -> None:
    source, out = built
    whole = contents(out)
    (out / "train-000000.tar").unlink()
    before = contents(out)
    image = sorted((source / "train").glob("*/*.JPEG"))[0]
    first = image.read_bytes()
    data = bytearray(first)
    data[-100] ^= 255
    image.write_bytes(data)
    repair = ("verify", str(out), "--repair", str(source), "--workers", "1")
    result = srp_data(*repair)
    assert result.exit_code == 3
    assert f"got others in {source}, which would change train-000000.tar." in result.stderr
    assert "Nothing was changed." in result.stderr
    assert contents(out) == before
    image.write_bytes(first)
    result = srp_data(*repair)
    assert result.exit_code == 0, result.stderr
    assert contents(out) == whole


def test_a_shard_with_rejects_is_left_as_it_is_though_its_image_is_readable_now(
    image_tree: Path, srp_data: Any, tmp_path: Path
) -> None:
    source, out = shutil.copytree(image_tree, tmp_path / "images"), tmp_path / "shards"
    image = sorted((source / "val").glob("*/*.JPEG"))[0]
    whole = image.read_bytes()
    image.write_bytes(bytes(len(whole)))
    build = ("build-shards", source, out, "--canvas-size=24", "--crop-size=16", "--glimpse-size=8")
    assert srp_data(*map(str, build), "--max-rejects=1", "--workers=1").exit_code == 0
    before = contents(out)
    image.write_bytes(whole)
    shard = out / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    result = srp_data("verify", str(out), "--repair", str(source), "--workers", "1")
    assert result.exit_code == 0, result.stderr
    assert contents(out) == before


def test_what_a_killed_repair_from_other_images_left_is_not_taken(
    built: tuple[Path, Path], srp_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = built
    before = contents(out)
    (out / "train-000000.tar").unlink()
    image = sorted((source / "train").glob("*/*.JPEG"))[0]
    whole = image.read_bytes()
    image.write_bytes(whole[:-100] + bytes([whole[-100] ^ 255]) + whole[-99:])
    repair = ("verify", str(out), "--repair", str(source), "--workers", "1")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "_changed", killed)
        assert srp_data(*repair).exit_code == 130
    image.write_bytes(whole)
    result = srp_data(*repair)
    assert result.exit_code == 0, result.stderr
    assert contents(out) == before


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draft": True},
        {"decoder": "pillow-simd"},
        {"decoder": "dali", "device": "gpu"},
        {"decoder": "dali"},
        {"codec": "jpeg", "jpeg_quality": 80, "jpeg_subsampling": "4:2:0"},
    ],
)
def test_a_spec_gives_the_options_that_it_is_of(options: dict[str, Any]) -> None:
    config = BuildConfig(
        source=Path("in"), out=Path("out"), workers=3, max_rejects=2, seed=5, limit=9,
        candidates="full+grid3", **options,
    )  # fmt: skip
    spec = replace(data_spec(config), decoder_library="pillow 13.0.0, libjpeg-turbo 3.2.0")
    found = config_of(spec, source=Path("in"), out=Path("out"), workers=3, max_rejects=2)
    assert found == config
    assert manifests.DataSpec(**vars(spec)) == spec
