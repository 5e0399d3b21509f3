import contextlib
import io
import itertools
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pipeline.format import codecs
from pipeline.format.codecs import Codec
from pipeline.format.npy import npy_header
from pipeline.format.spec import CODECS, JPEG_SUBSAMPLINGS
from pipeline.pixels import Pixels, kernels

REPO = Path(__file__).resolve().parents[3]

JPEG = Codec("jpeg", 95, "4:4:4")
LOSSLESS = [Codec("zstd"), Codec("png"), Codec("webp")]
CODED = [*LOSSLESS, JPEG]

IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """A picture with neither edges nor noise."""
    y, x = np.mgrid[:height, :width]
    return np.stack([100 + x, 90 + y, 80 + (x + y) // 2], axis=-1).astype(np.uint8)


def encoded(codec: Codec, image: Pixels) -> bytes:
    return b"".join(codec.encode(image))


def decoded(codec: Codec, data: bytes, height: int, width: int) -> Pixels:
    out = np.empty((height, width, 3), np.uint8)
    codec.decode_into(data, out)
    return out


@pytest.fixture(params=[*CODED, "zstd in numpy"], ids=str)
def coded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Codec:
    """Each codec; that with a filter of ours with either way to undo it."""
    is_numpy = request.param == "zstd in numpy"
    monkeypatch.setattr(codecs, "_num_added_up", itertools.count())
    monkeypatch.setattr(codecs, "_NUM_BEFORE_NUMBA", 10**9 if is_numpy else 0)
    if is_numpy:
        monkeypatch.delitem(sys.modules, "pipeline.pixels.kernels")
    return Codec("zstd") if is_numpy else request.param


def test_there_is_a_suffix_and_a_share_for_every_codec_of_the_option() -> None:
    for name in CODECS:
        codec = Codec(name)
        extension = codecs.EXTENSIONS[name]
        assert codec.canvas_suffix in (extension, f"canvas.{extension}")
        assert codec.resized_suffix == f"resized.{extension}"
        assert 0 < codec.typical_share <= 1
        assert codec.is_lossy == (name == "jpeg")
        assert bool(codec.library) == (name != "raw")


@pytest.mark.parametrize("codec", LOSSLESS, ids=str)
@given(image=IMAGES)
def test_lossless_codecs_give_back_any_image(codec: Codec, image: Pixels) -> None:
    height, width, _ = image.shape
    np.testing.assert_array_equal(decoded(codec, encoded(codec, image), height, width), image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (31, 53), (336, 336)])
def test_noise_and_flat_colours_of_any_size_come_back(shape: tuple[int, int], coded: Codec) -> None:
    for image in (noise(*shape), np.full((*shape, 3), 200, np.uint8), smooth(*shape) // 2):
        back = decoded(coded, encoded(coded, image), *shape)
        if not coded.is_lossy:
            np.testing.assert_array_equal(back, image)


def test_photos_come_back(real_jpegs: list[bytes], coded: Codec) -> None:
    for data in real_jpegs:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        back = decoded(coded, encoded(coded, image), *image.shape[:2])
        if coded.is_lossy:
            difference = np.abs(back.astype(int) - image)
            assert difference.max() <= 32
            assert difference.mean() < 2
        else:
            np.testing.assert_array_equal(back, image)


@given(image=IMAGES)
def test_the_kernel_and_numpy_undo_the_filter_alike(image: Pixels) -> None:
    deltas = np.ascontiguousarray(image.transpose(2, 0, 1))
    one, other = np.empty_like(image), np.empty_like(image)
    codecs.add_up(deltas, one)
    kernels.add_up(deltas, other)
    np.testing.assert_array_equal(one, other)


def test_a_few_canvases_are_read_without_the_second_that_numba_takes_to_import() -> None:
    code = (
        "import sys, numpy as np; from pipeline.format.codecs import Codec; codec = Codec('zstd');"
        "image = np.ones((3, 4, 3), np.uint8); codec.decode_into(*codec.encode(image), image);"
        "print(sorted({'numba', 'torch', 'pipeline.pixels.kernels'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, capture_output=True)
    assert done.stdout == b"[]\n"


@pytest.mark.parametrize("codec", CODED, ids=str)
def test_equal_pixels_give_equal_bytes_however_they_lie_in_memory(codec: Codec) -> None:
    image = noise(20, 30)
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 10:40] = image
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    data = encoded(codec, image)
    assert encoded(codec, wide[:, 10:40]) == encoded(codec, planes) == encoded(codec, image) == data


@pytest.mark.parametrize("codec", CODED, ids=str)
def test_threads_may_decode_at_the_same_time(codec: Codec) -> None:
    images = [noise(64, 64, seed) for seed in range(8)]
    files = [encoded(codec, image) for image in images]
    expected = [decoded(codec, data, 64, 64) for data in files]
    with ThreadPoolExecutor(4) as pool:
        back = list(pool.map(lambda data: decoded(codec, data, 64, 64), files * 20))
    for index, image in enumerate(back):
        np.testing.assert_array_equal(image, expected[index % len(files)])


@pytest.mark.parametrize("codec", CODED, ids=str)
def test_what_is_mapped_can_be_decoded_as_it_is(codec: Codec) -> None:
    image = noise(9, 9)
    data = encoded(codec, image)
    view = memoryview(b"before" + data + b"after")[6:-5]
    np.testing.assert_array_equal(decoded(codec, view, 9, 9), decoded(codec, data, 9, 9))  # type: ignore[arg-type]


def test_a_zstd_member_is_one_frame_with_its_size_of_a_plain_npy() -> None:
    image = noise(5, 7)
    data = encoded(Codec("zstd"), image)
    assert data[:4] == b"\x28\xb5\x2f\xfd"
    assert not data[4] & 0b100, "has no checksum: the shard's CRC covers it already"
    plain = zstandard.decompress(data)
    assert zstandard.frame_content_size(data) == len(plain) == 128 + image.size
    deltas = np.load(io.BytesIO(plain), allow_pickle=False)
    assert (deltas.shape, deltas.dtype, deltas.flags.c_contiguous) == ((3, 5, 7), np.uint8, True)
    green, red, blue = deltas.cumsum(1, dtype=np.uint8).cumsum(2, dtype=np.uint8)
    np.testing.assert_array_equal(np.stack([red + green, green, blue + green], -1), image)


@pytest.mark.parametrize(
    ("codec", "kind"), list(zip(CODED[1:], ("PNG", "WEBP", "JPEG"), strict=True)), ids=str
)
def test_pillow_reads_what_any_program_reads(codec: Codec, kind: str) -> None:
    image = smooth(40, 50)
    with Image.open(io.BytesIO(data := encoded(codec, image))) as opened:
        assert (opened.format, opened.mode, opened.size) == (kind, "RGB", (50, 40))
        np.testing.assert_array_equal(np.asarray(opened), decoded(codec, data, 40, 50))


@pytest.mark.parametrize("subsampling", JPEG_SUBSAMPLINGS)
def test_a_jpeg_has_the_quality_and_subsampling_that_were_asked_for(subsampling: str) -> None:
    image = smooth(48, 48)
    sizes = []
    for quality in (50, 95, 100):
        data = encoded(Codec("jpeg", quality, subsampling), image)
        assert simplejpeg.decode_jpeg_header(data)[3] == subsampling.replace(":", "")
        assert np.abs(decoded(JPEG, data, 48, 48).astype(int) - image).max() <= 12
        sizes.append(len(data))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("codec", CODED, ids=str)
@given(data=st.data())
def test_damaged_bytes_end_in_a_value_error_or_in_other_pixels(
    codec: Codec, data: st.DataObject
) -> None:
    sound = encoded(codec, noise(12, 10))
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(0, len(sound)))]
    # Only what is gross is found here, and the rest by the shard's CRC.
    with contextlib.suppress(ValueError):
        decoded(codec, bytes(damaged), 12, 10)


@pytest.mark.parametrize("codec", CODED, ids=str)
@given(data=st.binary(max_size=300))
def test_what_was_never_an_image_is_a_value_error(codec: Codec, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(codec, data, 3, 3)


@pytest.mark.parametrize("codec", CODED, ids=str)
@pytest.mark.parametrize("shape", [(12, 11), (11, 12), (1, 1), (10, 12), (24, 5)])
def test_an_image_of_another_size_is_refused(codec: Codec, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{shape[1]}x{shape[0]} px|another"):
        decoded(codec, encoded(codec, noise(12, 10)), *shape)


@pytest.mark.parametrize("codec", CODED, ids=str)
@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_cut_image_is_refused(codec: Codec, cut: int) -> None:
    data = encoded(codec, noise(30, 30))
    with pytest.raises(ValueError, match=r"."):
        decoded(codec, data[:-cut], 30, 30)


def huge_png() -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)) + codecs._PNG_END
    )


def huge_webp() -> bytes:
    data = bytearray(encoded(Codec("webp"), noise(9, 9)))
    data[21:25] = (0x3FFF | 0x3FFF << 14).to_bytes(4, "little")
    return bytes(data)


def huge_jpeg() -> bytes:
    data = encoded(JPEG, noise(9, 9))
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + b"\xff\xdc\xff\xdc" + data[frame + 9 :]


def huge_zstd() -> bytes:
    """A frame of 300 MB of zeros, in few bytes and with an honest size."""
    return zstandard.compress(bytes(300_000_000), level=1)


@pytest.mark.parametrize(
    ("codec", "make"),
    list(zip(CODED, (huge_zstd, huge_png, huge_webp, huge_jpeg), strict=True)),
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_huge_size_is_refused_before_anything_is_allocated(codec: Codec, make: object) -> None:
    data = make()  # type: ignore[operator]
    out = np.empty((9, 9, 3), np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"in place of 9x9 px|not of the 371 bytes"):
            codec.decode_into(data, out)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def npy(header: bytes) -> bytes:
    return zstandard.compress(header.ljust(128 + 27))


@pytest.mark.parametrize(
    "data",
    [
        encoded(Codec("zstd"), noise(3, 3)) + b"x",
        encoded(Codec("zstd"), noise(3, 3)) * 2,
        zstandard.compress(bytes(128 + 27)),
        npy(npy_header((3, 9, 1))),
        npy(npy_header((3, 3, 3)).replace(b"|u1", b"|O8")),
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + encoded(Codec("zstd"), noise(3, 3)),
    ],
)
def test_a_frame_that_holds_anything_but_such_deltas_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a zstd frame (with an error|not of the )"):
        decoded(Codec("zstd"), data, 3, 3)


def saved(mode: str, kind: str, **options: bool) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (3, 3), 7).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (Codec("png"), saved("L", "PNG")),
        (Codec("png"), saved("RGBA", "PNG")),
        (Codec("png"), saved("I;16", "PNG")),
        (Codec("webp"), saved("RGB", "WEBP")),
        (Codec("webp"), saved("RGBA", "WEBP", lossless=True, exact=True)),
        (Codec("jpeg"), saved("RGB", "PNG")),
        (Codec("jpeg"), saved("CMYK", "JPEG")),
    ],
)
def test_other_kinds_of_image_are_refused(codec: Codec, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decoded(codec, data, 3, 3)


def test_a_jpeg_without_its_options_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="with a quality and a subsampling"):
        encoded(Codec("jpeg"), noise(3, 3))
