from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cli.contact_sheet import MARGIN_PX, TEXT_PX, TILE_PX, draw_sheet
from pipeline.common.errors import ConfigError
from pipeline.format import manifest as manifests
from pipeline.read.reader import ShardReader


def test_a_sheet_shows_each_samples_crops_and_padded_glimpses(shards: Path, tmp_path: Path) -> None:
    draw_sheet(shards, tmp_path / "sheet.png", split="val", rows=2, seed=0)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    manifest = manifests.load(shards)
    reader = ShardReader(shards, manifest, manifest.of_split("val"))
    first = reader.read(int(np.random.default_rng(0).permutation(9)[0]))
    top = 2 * TEXT_PX + MARGIN_PX
    for column in range(6):
        left = MARGIN_PX + column * (TILE_PX + MARGIN_PX)
        tile = sheet[top : top + TILE_PX, left : left + TILE_PX]
        np.testing.assert_array_equal(tile, first.originals[column].transpose(1, 2, 0))
        below = top + TILE_PX + MARGIN_PX
        tile = sheet[below : below + TILE_PX, left : left + TILE_PX, 0]
        np.testing.assert_array_equal(tile, first.glimpses[column, 0])


def test_the_seed_decides_the_draw(canvas_shards: Path, tmp_path: Path) -> None:
    sheets = []
    for seed in (0, 0, 1):
        draw_sheet(canvas_shards, tmp_path / "sheet", split="train", rows=3, seed=seed)
        sheets.append((tmp_path / "sheet").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_more_rows_than_samples_show_them_all(canvas_shards: Path, tmp_path: Path) -> None:
    heights = []
    for rows in (1, 99):
        draw_sheet(canvas_shards, tmp_path / "sheet.png", split="val", rows=rows, seed=0)
        with Image.open(tmp_path / "sheet.png") as sheet:
            heights.append(sheet.height)
    assert heights[1] == 9 * heights[0]


def test_a_split_without_samples_is_refused(
    own_tree: Path, make_shards: Any, tmp_path: Path
) -> None:
    for path in own_tree.glob("val/*/*"):
        path.write_bytes(b"no image")
    make_shards(own_tree, tmp_path / "out", max_rejects=9)
    with pytest.raises(ConfigError, match="a split must hold samples; got 0 in 'val' of"):
        draw_sheet(tmp_path / "out", tmp_path / "sheet.png", split="val", rows=1, seed=0)
