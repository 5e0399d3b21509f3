import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.build.build import BuildResult
from pipeline.build.config import BuildConfig
from pipeline.build.dry_run import plan_build
from pipeline.common.errors import SourceError

SrpData = Callable[..., Result]
SIZES = ("--canvas-size", 168, "--crop-size", 112, "--glimpse-size", 32, "-j", 1)


def test_a_plan_has_the_images_shards_and_bytes_of_the_build_and_writes_nothing(
    image_tree: Path, make_shards: Callable[..., BuildResult], tmp_path: Path
) -> None:
    sizes = {"canvas_size": 168, "crop_size": 112, "glimpse_size": 32, "shard_mib": 1}
    config = BuildConfig(source=image_tree, out=tmp_path / "out", workers=1, **sizes)  # type: ignore[arg-type]
    plan = plan_build(config)
    assert not list(tmp_path.iterdir())
    built = make_shards(image_tree, tmp_path / "out", shard_mib=1).manifest
    for split in ("train", "val"):
        shards = built.of_split(split)
        assert plan.images[split] == built.num_samples(split)
        assert plan.shards[split] == len(shards)
        assert plan.num_bytes[split] == pytest.approx(
            sum(shard.num_bytes for shard in shards), rel=0.1
        )
    assert plan.images_per_s is not None
    assert plan.seconds == pytest.approx(27 / plan.images_per_s)
    assert not plan.exists
    assert plan_build(config).exists


def test_the_command_plans_folders_and_archives_for_people_and_programs(
    image_tree: Path, image_archive: Path, srp_data: SrpData, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    shown = srp_data("build-shards", image_tree, out, *SIZES, "--dry-run")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("train: 18 images, 1 shards, about ")
    assert lines[-2].startswith("decoding takes about ")
    assert lines[-1] == f"Nothing was written to {out}."
    told = json.loads(
        srp_data("build-shards", image_archive, out, *SIZES, "--dry-run", "--json").stdout
    )
    assert told["images"] == {"train": 18, "val": 9}
    assert (told["images_per_s"], told["seconds"], told["num_skipped"]) == (None, None, 1)
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        plan_build(BuildConfig(source=tmp_path / "none", out=tmp_path / "out"))
