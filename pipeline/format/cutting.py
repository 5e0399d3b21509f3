"""Cut crops from a canvas, and make glimpses of them.

The reference is torchvision on PIL images: `Resize((C, C)) -> FiveCrop(c)` for the originals,
`Resize((c, c))` of the image itself for `full`, and `Resize((s, s)) -> Grayscale -> Pad` of each
crop for the glimpses. `pixels.resize` gives Pillow's own pixels, so the results are equal bit for
bit.
"""

from collections.abc import Iterable

import numpy as np

from pipeline.format.crops import Box, CropLayout
from pipeline.pixels import Pixels
from pipeline.pixels.resize import gray, is_exact, resize, resize_boxes, resize_windows


def cut(canvas_HWC: Pixels, box: Box) -> Pixels:
    """View one box of the canvas, `(h, w, 3)`."""
    return canvas_HWC[box.y0 : box.y1, box.x0 : box.x1]


def resized_crops(source_HWC: Pixels, plan: CropLayout) -> Pixels:
    """Make the crops that are not windows of the canvas.

    They are resized from the source image: resized from the canvas, they would be blurred twice.

    Args:
        source_HWC: The upright source image, uint8 `(height, width, 3)`, RGB.
        plan: Where the crops lie.

    Returns:
        Uint8 `(R, 3, crop, crop)` in the order of the plan, each bit for bit Pillow's
        `image.resize((crop, crop), BILINEAR, box)` with the box of `CropLayout.source_box`. In
        memory a pixel's colours are neighbours, as shards store them and as resizing reads them.
    """
    height, width, _ = source_HWC.shape
    crops_RHWC = np.empty((len(plan.resized), plan.crop_px, plan.crop_px, 3), np.uint8)
    boxes = [plan.source_box(k, width=width, height=height) for k in plan.resized]
    for row, crop_HWC in enumerate(resize_boxes(source_HWC, plan.crop_px, boxes)):
        crops_RHWC[row] = crop_HWC
    return crops_RHWC.transpose(0, 3, 1, 2)


def original_crops(
    canvas_HWC: Pixels, resized_RCHW: Pixels, plan: CropLayout, candidates: Iterable[int]
) -> list[Pixels]:
    """View the chosen candidates, each uint8 `(3, crop, crop)`.

    Args:
        canvas_HWC: Uint8 `(C, C, 3)`, RGB.
        resized_RCHW: Result of `resized_crops`.
        plan: Where the crops lie.
        candidates: Indices on axis K.
    """
    return [
        cut(canvas_HWC, plan.boxes[k]).transpose(2, 0, 1)
        if plan.is_cut(k)
        else resized_RCHW[plan.resized.index(k)]
        for k in candidates
    ]


def glimpse(crop_CHW: Pixels, glimpse_px: int) -> Pixels:
    """Make one crop small and gray, uint8 `(1, s, s)`, not yet padded.

    Args:
        crop_CHW: Uint8 `(3, crop, crop)`, RGB.
        glimpse_px: Side s of the glimpse, px.

    Source: torchvision's `Resize((s, s))` then `Grayscale()` on a PIL image: the colours are
    resized first, and gray is Pillow's ITU-R 601-2 luma in integers.
    """
    return gray(resize(crop_CHW.transpose(1, 2, 0), glimpse_px))[None]


def glimpses(crops_CHW: Iterable[Pixels], glimpse_px: int) -> Pixels:
    """Make a glimpse of each crop, uint8 `(K, 1, s, s)`, not yet padded."""
    return np.stack([glimpse(crop_CHW, glimpse_px) for crop_CHW in crops_CHW])


def canvas_glimpses(
    canvas_HWC: Pixels, resized_RCHW: Pixels, plan: CropLayout, glimpse_px: int
) -> Pixels:
    """Make a glimpse of every candidate, as `glimpses` does, but several at a time.

    Args:
        canvas_HWC: Uint8 `(C, C, 3)`, RGB.
        resized_RCHW: Result of `resized_crops`.
        plan: Where the crops lie.
        glimpse_px: Side s of the glimpses, px.

    Returns:
        Uint8 `(K, 1, s, s)`, not yet padded.
    """
    if not is_exact():
        crops = original_crops(canvas_HWC, resized_RCHW, plan, range(len(plan)))
        return glimpses(crops, glimpse_px)
    windows = [k for k in range(len(plan)) if plan.is_cut(k)]
    corners = [(plan.boxes[k].x0, plan.boxes[k].y0) for k in windows]
    small = np.empty((len(plan), 1, glimpse_px, glimpse_px), np.uint8)
    colours = resize_windows(canvas_HWC, corners, crop_px=plan.crop_px, side_px=glimpse_px)
    for k, colour in zip(windows, colours, strict=True):
        small[k, 0] = gray(colour)
    for k, crop_CHW in zip(plan.resized, resized_RCHW, strict=True):
        small[k] = glimpse(crop_CHW, glimpse_px)
    return small


def pad_glimpses(glimpses_K1ss: Pixels, side_px: int) -> Pixels:
    """Pad right and below with zeros to `(K, 1, side, side)`."""
    missing = side_px - glimpses_K1ss.shape[-1]
    return np.pad(glimpses_K1ss, ((0, 0), (0, 0), (0, missing), (0, missing)))
