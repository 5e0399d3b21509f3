"""One table of odd images, and what every decoder must make of each."""

import functools
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from specs import decoded, spec_of

from pipeline.common.errors import ImageError
from pipeline.decode import open_decoder
from pipeline.decode.rules import FORMATS, Views, own_process

MAX_PIXELS = 1_000_000
RED, BLUE, PINK = (250, 0, 0), (0, 0, 250), (200, 40, 90)
SIZE = (40, 20)
UNKNOWN = "not an image of a known format"


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour: Any = PINK, mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new(mode, size, colour)


def noisy(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    return encode(Image.fromarray(pixels), kind)


def turned(kind: str) -> bytes:
    """Give a picture that is red above blue once it is turned; it is stored lying."""
    lying = plain(RED, size=(40, 20))
    lying.paste(BLUE, (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    return encode(lying, kind, exif=exif, **lossless.get(kind, {}))


def moving(kind: str) -> bytes:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encode(plain(RED), kind, save_all=True, append_images=[plain(BLUE)], **lossless)


def see_through(kind: str) -> bytes:
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    return encode(plain((*PINK, 7), "RGBA"), kind, **options)


def deep_rgb_png() -> bytes:
    """Give a PNG of 16 bits a channel, which Pillow reads but does not write."""
    row = b"\0" + b"".join(struct.pack(">H", value << 8 | 0x34) for value in PINK) * SIZE[0]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * SIZE[1])),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def huge_header(kind: str, width: int, height: int) -> bytes:
    """Give a file that promises this many pixels in very few bytes."""
    if kind == "JPEG":
        data = bytearray(encode(plain(), "JPEG"))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
        return bytes(data)
    if kind == "PNG":
        data = bytearray(encode(plain(), "PNG"))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        return bytes(data)
    if kind == "PPM":
        return f"P6 {width} {height} 255 ".encode() + bytes(100)
    if kind == "BMP":
        data = bytearray(encode(plain(), "BMP"))
        data[18:26] = struct.pack("<ii", width, height)
        return bytes(data)
    if kind == "GIF":
        data = bytearray(encode(plain(), "GIF"))
        data[6:10] = struct.pack("<HH", width, height)
        return bytes(data)
    if kind == "TIFF":
        return with_tags(encode(plain(), "TIFF"), {256: width, 257: height, 278: height})
    return huge_webp(kind, width, height)


def huge_webp(kind: str, width: int, height: int) -> bytes:
    if kind == "WEBP of frames":  # a sound one: two small frames on a large canvas
        data = bytearray(moving("WEBP"))
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == "WEBP lossless":
        data = bytearray(encode(plain(), "WEBP", lossless=True))
        bits = struct.unpack("<I", data[21:25])[0] & ~0xFFFFFFF
        data[21:25] = struct.pack("<I", bits | width - 1 | height - 1 << 14)
    else:
        data = bytearray(encode(plain(), "WEBP"))
        data[26:30] = struct.pack("<HH", width, height)
    return bytes(data)


def with_tags(data: bytes, tags: dict[int, int]) -> bytes:
    """Change the values of a TIFF's first folder."""
    changed = bytearray(data)
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack("<H", data[at : at + 2])
        if tag in tags:
            changed[at + 2 : at + 12] = struct.pack("<HII", 4, 1, tags[tag])
    return bytes(changed)


HUGE = ["JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP", "WEBP lossless", "WEBP of frames"]
KINDS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "GIF", "WEBP")

# What is seen: a colour everywhere, or one above another.
SEEN: dict[str, tuple[Callable[[], bytes], tuple[Any, ...]]] = {
    **{kind: (functools.partial(encode, plain(), kind), (PINK,)) for kind in KINDS},
    "CMYK JPEG": (lambda: encode(plain().convert("CMYK"), "JPEG"), (PINK,)),
    "CMYK TIFF": (lambda: encode(plain().convert("CMYK"), "TIFF"), (PINK,)),
    "gray JPEG": (lambda: encode(plain(99, "L"), "JPEG"), ((99, 99, 99),)),
    "gray PNG": (lambda: encode(plain(99, "L"), "PNG"), ((99, 99, 99),)),
    "black and white PNG": (lambda: encode(plain(1, "1"), "PNG"), ((255, 255, 255),)),
    "16-bit gray PNG": (lambda: encode(plain(0xAB12, "I;16"), "PNG"), ((0xAB,) * 3,)),
    "16-bit gray TIFF": (lambda: encode(plain(0xAB12, "I;16"), "TIFF"), ((0xAB,) * 3,)),
    "16-bit RGB PNG": (deep_rgb_png, (PINK,)),
    "alpha PNG": (lambda: see_through("PNG"), (PINK,)),
    "alpha TIFF": (lambda: see_through("TIFF"), (PINK,)),
    "alpha WEBP": (lambda: see_through("WEBP"), (PINK,)),
    "transparent GIF": (
        lambda: encode(plain().quantize(2), "GIF", transparency=0), (PINK,),
    ),
    **{f"EXIF-turned {kind}": (functools.partial(turned, kind), (RED, BLUE))
       for kind in ("JPEG", "PNG", "TIFF", "WEBP")},
    **{f"animated {kind}": (functools.partial(moving, kind), (RED,))
       for kind in ("GIF", "PNG", "TIFF", "WEBP", "MPO")},
    "JPEG with text behind it": (lambda: encode(plain(), "JPEG") + b"<?php ?>", (PINK,)),
}  # fmt: skip

# What is refused, and with which words.
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"not a picture\n" * 99, UNKNOWN),
    "zeros": (lambda: bytes(5000), UNKNOWN),
    "corrupt JPEG": (lambda: noisy("JPEG")[:200] + bytes(3000), ""),
    "corrupt PNG": (lambda: noisy("PNG").replace(b"IHDR", b"IHDX"), ""),
    **{f"truncated {kind}": (lambda kind=kind: noisy(kind)[: len(noisy(kind)) // 2], "")
       for kind in KINDS},
    **{f"the first bytes of a {kind}": (lambda kind=kind: noisy(kind)[:12], "") for kind in KINDS},
    "float TIFF": (lambda: encode(plain(0.5, "F"), "TIFF"), "float images have no documented"),
    "EPS": (lambda: encode(plain(), "EPS"), UNKNOWN),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', UNKNOWN),
    "ICO": (lambda: encode(plain(), "ICO"), UNKNOWN),
    **{f"enormous {kind}": (
           functools.partial(huge_header, kind, 16_000, 15_000),
           "16000x15000 px is more than --max-pixels 1000000",
       ) for kind in HUGE},
}  # fmt: skip


SPEC = spec_of(canvas_px=16, crop_px=16, max_pixels=MAX_PIXELS)


@pytest.fixture(params=["pillow", "draft", "dali"])
def decode(request: pytest.FixtureRequest) -> Iterator[Callable[[bytes], Views | ImageError]]:
    """Decode one file with each decoder in turn."""
    name = str(request.param)
    if name == "dali":
        pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'srp[dali]'")
    is_draft = name == "draft"
    spec = replace(SPEC, decoder="pillow" if is_draft else name, draft=is_draft)
    decoder = open_decoder(spec)
    with own_process():
        yield lambda data: decoded(decoder, [data])[0]


def skip_without_webp(name: str) -> None:
    if "WEBP" in name and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")


def test_every_format_that_is_let_in_is_in_the_table() -> None:
    assert set(FORMATS) == set(KINDS) == set(HUGE) & set(KINDS)


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen(name: str, decode: Callable[[bytes], Views | ImageError]) -> None:
    skip_without_webp(name)
    make, colours = SEEN[name]
    views = decode(make())
    assert isinstance(views, Views), views
    for colour, rows in zip(colours, np.split(views.canvas, len(colours)), strict=True):
        inner = rows[1:-1].astype(int)  # a resize blends across the edge of two colours
        assert np.abs(inner - colour).max() <= 4, (inner[0, 0], colour)
    is_turned = "turned" in name
    assert (views.width, views.height) == (SIZE[::-1] if is_turned else SIZE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, decode: Callable[[bytes], Views | ImageError]) -> None:
    skip_without_webp(name)
    make, words = REFUSED[name]
    views = decode(make())
    assert isinstance(views, ImageError)
    reason = str(views)
    assert words in reason
    assert reason.isprintable()
    assert " at 0x" not in reason


# Runs with little memory: what allocates before it checks does not come to its answer.
CHILD = r"""
import io, re, resource, sys
from pathlib import Path
from PIL import Image
from pipeline.decode import open_decoder
from pipeline.format.spec import DataSpec
from pipeline.decode.rules import own_process
from pipeline.common.errors import ImageError
own = own_process()
own.__enter__()
spec = DataSpec(
    canvas_size=16, crop_size=16, glimpse_size=1, candidates="five", layout="canvas",
    decoder="pillow", exif=True, max_pixels=100_000_000, seed=0, limit=None, shard_mib=128,
)
decoder = open_decoder(spec)
def decode(data):
    return decoder.decode_one(data)
files = [Path(name) for name in sys.argv[2:]]
decode(Path(sys.argv[1]).read_bytes())  # loads what a decoder needs
used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20),) * 2)
for file in files:
    views = decode(file.read_bytes())
    print(file.name, "|", views if isinstance(views, ImageError) else "a picture")
"""


def decode_with_little_memory(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Give each file's verdict from a process that may take 160 MiB more than it has."""
    good = folder / "good"
    good.write_bytes(noisy("JPEG"))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", CHILD, str(good), *(str(folder / name) for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(line.split(" | ", 1) for line in done.stdout.splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
def test_a_bomb_of_any_format_is_refused_before_its_pixels_are_allocated(tmp_path: Path) -> None:
    kinds = [kind for kind in HUGE if "WEBP" not in kind or features.check("webp")]
    files = {kind: huge_header(kind, 16_000, 15_000) for kind in kinds}
    reason = "16000x15000 px is more than --max-pixels 100000000"
    assert decode_with_little_memory(tmp_path, files) == dict.fromkeys(files, reason)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
def test_an_image_that_memory_does_not_suffice_for_is_rejected_and_the_next_one_read(
    tmp_path: Path,
) -> None:
    files = {kind: huge_header(kind, 9900, 9900) for kind in ("JPEG", "PNG", "PPM", "BMP", "TIFF")}
    verdicts = decode_with_little_memory(tmp_path, {**files, "good": noisy("JPEG")})
    reason = "it needs more memory than there is"
    assert verdicts == {**dict.fromkeys(files, reason), "good": "a picture"}


def test_what_pillow_would_refuse_as_a_bomb_is_built_below_the_cap_where_warnings_are_errors(
    own_tree: Path, tmp_path: Path
) -> None:
    guard = Image.MAX_IMAGE_PIXELS
    assert guard
    for name, width in (("warned", 12_000), ("refused", 18_000)):
        assert width * 10_000 > (guard if name == "warned" else 2 * guard)
        (own_tree / f"train/cat/{name}.jpg").write_bytes(
            encode(plain(99, "L", (width, 10_000)), "JPEG")
        )
    command = [
        sys.executable, "-W", "error", "-m", "pipeline.cli.main", "build-shards", own_tree,
        tmp_path / "out", "--draft", "--max-pixels=180000000", "--canvas-size=32",
        "--crop-size=32", "--glimpse-size=8", "--workers=1",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("train: 20 images in, 20 samples out"), done.stdout + done.stderr
    assert "Warning" not in done.stderr


def test_a_build_names_every_image_that_it_cannot_use(
    own_tree: Path, tmp_path: Path, srp_data: Any
) -> None:
    folder = own_tree / "train/cat"
    bad = {
        "a hole.jpg": "53687091200 bytes are more than 1073741824",
        "broken.jpg": "No such file or directory",
        "empty.png": "empty file",
        "itself.jpg": "Too many levels of symbolic links",
        "text.jpg": UNKNOWN,
        "unreadable.jpg": "Input/output error",
    }
    with (folder / "a hole.jpg").open("wb") as file:
        file.truncate(50 << 30)
    (folder / "broken.jpg").symlink_to("nowhere")
    (folder / "empty.png").touch()
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "text.jpg").write_text("no image")
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")  # a read error, for root as well
    if Path("/proc/sys/vm/compact_memory").exists():
        bad["write-only.jpg"] = "Permission denied"
        (folder / "write-only.jpg").symlink_to("/proc/sys/vm/compact_memory")
    out = tmp_path / "out"
    command = ["build-shards", own_tree, out, "-j", 1, "--canvas-size", 32, "--crop-size", 32]
    result = srp_data(*command, "--glimpse-size", 8)
    assert result.exit_code == 4
    assert f"got {len(bad)}, the first" in result.stderr
    rejects = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    found = {reject["path"]: reject["reason"] for reject in rejects}
    assert found == {f"train/cat/{name}": reason for name, reason in bad.items()}
    result = srp_data(*command, "--glimpse-size", 8, "--max-rejects", len(bad))
    assert result.exit_code == 0
    assert f"train: {18 + len(bad)} images in, 18 samples out" in result.stdout
