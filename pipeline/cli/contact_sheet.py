"""A contact sheet: what the crops and glimpses in the shards look like."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.common.atomic_io import write_file
from pipeline.format.manifest import Manifest
from pipeline.format.sample import Sample
from pipeline.stream.folder import ShardFolder

TILE_PX = 112
TEXT_PX = 16
MARGIN_PX = 6
BACKGROUND = (250, 250, 248)
INK = (30, 30, 30)


def draw_sheet(shards: Path, png: Path, *, split: str, rows: int, seed: int) -> None:
    """Draw random samples, a row of crops above a row of padded glimpses for each.

    Args:
        shards: Folder of shards, or one that holds it.
        png: File to write.
        split: Split to draw from.
        rows: Number of samples.
        seed: Seed of the choice of samples.

    Raises:
        ConfigError: If there are no shards, or the split is empty.
        VerificationError: If a sample is damaged.
    """
    folder = ShardFolder.open(shards)
    reader = folder.reader(split)
    chosen = np.random.default_rng(seed).permutation(len(reader))[:rows]
    names = folder.crop_layout.names
    blocks = [_draw_sample(reader.read(int(index)), names, folder.manifest) for index in chosen]
    width = blocks[0].width
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), BACKGROUND)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    write_file(png, encoded.getvalue())


def _draw_sample(sample: Sample, names: tuple[str, ...], manifest: Manifest) -> Image.Image:
    step = TILE_PX + MARGIN_PX
    size = (MARGIN_PX + step * len(names), 2 * TEXT_PX + 2 * step + MARGIN_PX)
    block = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(block)
    font = ImageFont.load_default(12)
    title = f"{manifest.class_names[sample.label]}  ({sample.key})"
    draw.text((MARGIN_PX, MARGIN_PX // 2), title, INK, font=font)
    for column, name in enumerate(names):
        left = MARGIN_PX + column * step
        draw.text((left, TEXT_PX + MARGIN_PX // 2), name, INK, font=font)
        top = 2 * TEXT_PX + MARGIN_PX
        crop = Image.fromarray(np.ascontiguousarray(sample.crops[column].transpose(1, 2, 0)))
        block.paste(crop.resize((TILE_PX, TILE_PX)), (left, top))
        padded = Image.fromarray(np.ascontiguousarray(sample.glimpses[column, 0]))
        block.paste(padded.resize((TILE_PX, TILE_PX)).convert("RGB"), (left, top + step))
    return block
