"""Read image files as shards of a spec would hold them, in threads, a few ahead of their use."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.common.errors import ImageError
from pipeline.decode.pillow import PillowDecoder
from pipeline.decode.rules import own_process, views_of
from pipeline.format.codecs import Codec, codec_of
from pipeline.format.cutting import glimpses, original_crops
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels
from pipeline.sources.image import SourceImage

AHEAD = 64  # photos that are decoded and wait for their use


@dataclass(frozen=True, kw_only=True)
class PhotoSpec:
    """What is read of an image file.

    Attributes:
        data: What shards would hold of it.
        looked_at: Candidates whose glimpses are made; indices on axis K.
        glimpse_px: Side of the glimpses, px; another size than the spec's is made from the crops.
        picture_px: Longer side of a picture for people, px; None makes none.
    """

    data: DataSpec
    looked_at: tuple[int, ...] = ()
    glimpse_px: int | None = None
    picture_px: int | None = None


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One image file, with the pixels that a reader of its shard would give.

    Attributes:
        file: Where it lies.
        width: Width of the upright image, px.
        height: Its height, px.
        canvas_CC3: Uint8, RGB.
        resized_RHW3: Uint8, the candidates that are not windows of the canvas.
        glimpses_LSS: Uint8, gray, not padded.
        picture_HW3: Uint8, the upright image, resized; None where none was wanted.
    """

    file: Path
    width: int
    height: int
    canvas_CC3: Pixels
    resized_RHW3: Pixels
    glimpses_LSS: Pixels
    picture_HW3: Pixels | None


def decoder_library(spec: DataSpec) -> str:
    """Name the libraries that decode here; a spec names those that a build was made with."""
    return PillowDecoder(spec).library


def read_photos(
    files: Iterable[Path], wanted: PhotoSpec, *, workers: int
) -> Iterator[tuple[Path, Photo | ImageError]]:
    """Read files in their order; the reason takes the place of one that cannot be used.

    Pillow decodes, whichever decoder the spec names.

    Args:
        files: Taken one at a time, shortly before they are decoded.
        wanted: What is read of each.
        workers: Threads.
    """
    remaining = iter(files)
    with own_process(), ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[Path, Future[Photo | ImageError]]] = deque()
        try:
            while True:
                for file in islice(remaining, AHEAD - len(waiting)):
                    waiting.append((file, pool.submit(read_photo, file, wanted)))
                if not waiting:
                    return
                file, photo = waiting.popleft()
                yield file, photo.result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_photo(file: Path, wanted: PhotoSpec) -> Photo | ImageError:
    """Read one file, or give the reason why it cannot be used."""
    decoder = PillowDecoder(wanted.data)
    try:
        source_HW3, (width, height) = decoder.upright(_bytes_of(file))
    except ImageError as error:
        return error
    views = views_of(source_HW3, wanted.data, width=width, height=height)
    codec = codec_of(wanted.data)
    canvas_CC3 = _as_stored(views.canvas, codec)
    resized_RHW3 = _as_stored(views.resized.transpose(0, 2, 3, 1), codec)
    looked_at = list(wanted.looked_at)
    if wanted.glimpse_px is None or wanted.glimpse_px == wanted.data.glimpse_size:
        small_L1SS = views.glimpses[looked_at]
    else:
        layout, resized_R3HW = wanted.data.crop_layout, resized_RHW3.transpose(0, 3, 1, 2)
        crops = original_crops(canvas_CC3, resized_R3HW, layout, looked_at)
        small_L1SS = glimpses(crops, wanted.glimpse_px)
    return Photo(
        file=file,
        width=width,
        height=height,
        canvas_CC3=canvas_CC3,
        resized_RHW3=resized_RHW3,
        glimpses_LSS=small_L1SS[:, 0],
        picture_HW3=None
        if wanted.picture_px is None
        else _picture(source_HW3, width, height, wanted.picture_px),
    )


def _bytes_of(file: Path) -> bytes:
    try:
        size = os.stat(file).st_size
        return SourceImage(
            path=str(file), split="", class_name="", size=size, file=str(file), offset=None
        ).read()
    except (OSError, ValueError) as error:  # of a name with a zero byte
        raise ImageError(getattr(error, "strerror", None) or str(error)) from error


def _as_stored(pixels: Pixels, codec: Codec) -> Pixels:
    """Give pixels as a reader gets them back: a lossy codec changes them."""
    if not codec.is_lossy or not len(pixels):
        return pixels
    return codec.decode(b"".join(codec.encode(pixels)), pixels.shape, "memory")


def _picture(source_HW3: Pixels, width: int, height: int, side_px: int) -> Pixels:
    scale = side_px / max(width, height)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    image = Image.fromarray(np.ascontiguousarray(source_HW3))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))
