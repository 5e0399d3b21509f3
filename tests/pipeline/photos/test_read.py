"""What is read of a file is what its shard holds, for every layout and codec."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.format.cutting import original_crops
from pipeline.photos.read import AHEAD, Photo, PhotoSpec, decoder_library, read_photo, read_photos
from pipeline.read.collate import BatchSpec
from pipeline.read.loader import BatchLoader
from pipeline.stream.folder import ShardFolder


def photo_of(file: Path, wanted: PhotoSpec) -> Photo:
    photo = read_photo(file, wanted)
    assert isinstance(photo, Photo), photo
    return photo


def check_same_bytes(folder: Path, source: Path) -> None:
    """Compare each validation image's crops and glimpses with those in its shard."""
    opened = ShardFolder.open(folder)
    reader, spec, layout = opened.reader("val"), opened.manifest.spec, opened.crop_layout
    everything = tuple(range(len(layout)))
    wanted = PhotoSpec(data=spec, looked_at=everything)
    for index in range(len(reader)):
        sample = reader.read(index)
        photo = photo_of(source / sample.meta.path, wanted)
        resized_R3HW = photo.resized_RHW3.transpose(0, 3, 1, 2)
        crops = original_crops(photo.canvas_CC3, resized_R3HW, layout, everything)
        for crop, stored in zip(crops, sample.crops, strict=True):
            assert np.array_equal(crop, stored)
        assert np.array_equal(photo.glimpses_LSS, sample.small_glimpses[:, 0])
        assert (photo.width, photo.height) == (sample.meta.width, sample.meta.height)


def test_a_file_gives_the_bytes_of_its_shard(shards: Path, image_tree: Path) -> None:
    check_same_bytes(shards, image_tree)


def test_a_file_gives_the_bytes_of_its_shard_by_every_codec(
    codec_shards: Path, image_tree: Path
) -> None:
    check_same_bytes(codec_shards, image_tree)


def test_glimpses_of_another_size_are_those_of_a_batch(shards: Path, image_tree: Path) -> None:
    opened = ShardFolder.open(shards)
    reader = opened.reader("val")
    loader = BatchLoader(reader, BatchSpec(candidates=(0, 3), glimpse_px=11), workers=1)
    (batch,) = loader.batches([np.arange(len(reader))])
    wanted = PhotoSpec(data=opened.manifest.spec, looked_at=(0, 3), glimpse_px=11)
    assert batch.arrays.glimpses_BLSS is not None
    for index, stored_LSS in enumerate(batch.arrays.glimpses_BLSS):
        photo = photo_of(image_tree / reader.read(index).meta.path, wanted)
        assert np.array_equal(photo.glimpses_LSS, stored_LSS)


def test_a_picture_keeps_the_shape_of_the_upright_image(
    canvas_shards: Path, tmp_path: Path
) -> None:
    spec = ShardFolder.open(canvas_shards).manifest.spec
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new("RGB", (400, 100), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (900, 1)).save(tmp_path / "line.png")
    photo = photo_of(tmp_path / "turned.jpg", PhotoSpec(data=spec, picture_px=200))
    assert (photo.width, photo.height) == (100, 400)
    assert photo.picture_HW3 is not None
    assert photo.picture_HW3.shape == (200, 50, 3)
    line = photo_of(tmp_path / "line.png", PhotoSpec(data=spec, picture_px=200))
    assert line.picture_HW3 is not None
    assert line.picture_HW3.shape == (1, 200, 3)
    assert photo_of(tmp_path / "line.png", PhotoSpec(data=spec)).picture_HW3 is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.jpg", b"not an image", "not an image of a known format"),
        ("empty.png", b"", "empty file"),
        ("missing.jpg", None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_gives_its_reason(
    name: str, content: bytes | None, reason: str, canvas_shards: Path, tmp_path: Path
) -> None:
    spec = ShardFolder.open(canvas_shards).manifest.spec
    if content is not None:
        (tmp_path / name).write_bytes(content)
    error = read_photo(tmp_path / name, PhotoSpec(data=spec))
    assert isinstance(error, ImageError)
    assert str(error) == reason


def test_a_folder_and_a_bomb_are_no_images(canvas_shards: Path, tmp_path: Path) -> None:
    spec = ShardFolder.open(canvas_shards).manifest.spec
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    (bomb, refused), (_, folder) = read_photos(
        [tmp_path / "bomb.png", tmp_path], PhotoSpec(data=spec), workers=1
    )
    assert bomb.name == "bomb.png"
    assert "is more than --max-pixels" in str(refused)
    assert str(folder) == "Is a directory"


def test_files_are_read_in_order_and_only_a_few_ahead(
    canvas_shards: Path, image_tree: Path
) -> None:
    spec = ShardFolder.open(canvas_shards).manifest.spec
    files = sorted((image_tree / "val").rglob("*.JPEG"))
    taken: list[Path] = []

    def named() -> Iterator[Path]:
        for file in files * 50:
            taken.append(file)
            yield file

    read = read_photos(named(), PhotoSpec(data=spec), workers=2)
    assert [next(read)[0] for _ in range(20)] == (files * 3)[:20]
    assert len(taken) <= 20 + AHEAD
    read.close()  # type: ignore[attr-defined]


def test_the_library_is_the_one_that_a_build_records(canvas_shards: Path) -> None:
    spec = ShardFolder.open(canvas_shards).manifest.spec
    assert decoder_library(spec) == spec.decoder_library
