import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.decode.jpeg_markers import is_sound


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:4:4", "quality": 98},
        {"optimize": True, "restart_marker_rows": 1},
        {"comment": b"\xff\xd9 in a comment", "exif": b"Exif\0\0" + b"\xff\xd8\xff\xd9" * 9},
    ],
)
def test_what_encoders_write_is_sound(options: dict[str, Any], jpeg: Any) -> None:
    for seed in range(5):
        assert is_sound(jpeg(seed, width=70, height=50, **options))


def test_gray_and_cmyk_are_sound_and_bytes_after_the_end_do_not_matter(jpeg: Any) -> None:
    for mode in ("L", "CMYK"):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(jpeg(1))).convert(mode).save(buffer, "JPEG")
        assert is_sound(buffer.getvalue())
        assert is_sound(buffer.getvalue() + b"\xff\xd8 something else")


def test_real_photos_are_sound(real_jpegs: list[bytes]) -> None:
    assert all(map(is_sound, real_jpegs))


def test_other_files_are_not(jpeg: Any) -> None:
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"text", jpeg(1, kind="PNG")):
        assert not is_sound(data)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_cut_file_is_not_sound(cut: float, jpeg: Any) -> None:
    data = jpeg(2)
    assert not is_sound(data[: int(cut * len(data))])


def test_a_marker_within_a_scan_and_a_second_frame_are_not_sound(jpeg: Any) -> None:
    data = jpeg(3)
    scan = data.index(b"\xff\xda") + 14
    assert not is_sound(data[:scan] + b"\xff\x01" + data[scan:])
    frame = data.index(b"\xff\xc0")
    length = 2 + int.from_bytes(data[frame + 2 : frame + 4], "big")
    assert not is_sound(data[:frame] + data[frame : frame + length] + data[frame:])
