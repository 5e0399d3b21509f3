"""What one sample is, and how it becomes the members of a tar shard and back.

Both programs read this file; it is the format. `shards/README.md` says the same in words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.common.errors import VerificationError
from pipeline.format.codecs import Codec
from pipeline.format.crops import CropLayout
from pipeline.format.cutting import original_crops, pad_glimpses
from pipeline.format.npy import Member, decode_array, encode_array
from pipeline.pixels import Pixels

ORIGINALS = "originals.npy"
GLIMPSES = "glimpses.npy"
SMALL_GLIMPSES = "small-glimpses.npy"
LABEL = "cls"
META = "json"

_NO_PIXELS: Pixels = np.empty((0, 0, 3), np.uint8)


def member_suffixes(layout: str, plan: CropLayout, codec: Codec) -> tuple[str, ...]:
    """List a sample's members in the order in which they lie in the tar."""
    if layout == "tensors":
        return (ORIGINALS, GLIMPSES, LABEL, META)
    resized = (codec.resized_suffix,) if plan.resized else ()
    return (codec.canvas_suffix, *resized, SMALL_GLIMPSES, LABEL, META)


def npy_shapes(
    layout: str, plan: CropLayout, codec: Codec, glimpse_px: int
) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the members that are arrays, by suffix."""
    crop, canvas = plan.crop_px, plan.canvas_px
    shapes: dict[str, tuple[int, ...]] = {
        ORIGINALS: (len(plan), 3, crop, crop),
        GLIMPSES: (len(plan), 1, crop, crop),
        SMALL_GLIMPSES: (len(plan), 1, glimpse_px, glimpse_px),
    }
    if codec.name == "raw":
        shapes[codec.canvas_suffix] = (canvas, canvas, 3)
        shapes[codec.resized_suffix] = (len(plan.resized), crop, crop, 3)
    return {name: shapes[name] for name in member_suffixes(layout, plan, codec) if name in shapes}


@dataclass(frozen=True, kw_only=True)
class SampleMeta:
    """Where a sample came from.

    Attributes:
        path: Of the source image relative to the source's root, with `/`.
        class_name: Folder name of its class.
        sha256: Of the source file's bytes.
        width: Of the source image before resizing, px.
        height: The same, px.
    """

    path: str
    class_name: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image as both programs see it, whatever the layout on disk.

    Attributes:
        key: Path relative to its split, safe and unique, without a suffix.
        label: Index of the class.
        crops: K views, each uint8 `(3, H, W)`, RGB. They share memory with the shard or with
            one another.
        small_glimpses: Uint8 `(K, 1, s, s)`, before padding.
        meta: Where it came from.
    """

    key: str
    label: int
    crops: tuple[Pixels, ...]
    small_glimpses: Pixels
    meta: SampleMeta

    @property
    def originals(self) -> Pixels:
        """Stack the crops, uint8 `(K, 3, H, W)`."""
        return np.stack(self.crops)

    @property
    def glimpses(self) -> Pixels:
        """Pad the glimpses with zeros right and below, uint8 `(K, 1, H, W)`."""
        return pad_glimpses(self.small_glimpses, self.crops[0].shape[-1])

    def stacked(self) -> Pixels:
        """Give the predecessor's tensor, uint8 `(K, 4, H, W)`: RGB, then the glimpse."""
        return np.concatenate([self.originals, self.glimpses], axis=1)


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """One shard to be written.

    Attributes:
        split: `train` or `val`.
        index: Position among the split's shards.
        keys: Of its samples, in order.
    """

    split: str
    index: int
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name, such as `train-000000.tar`."""
        return f"{self.split}-{self.index:06d}.tar"


def encode_sample(
    *,
    canvas: Pixels,
    resized: Pixels,
    glimpses: Pixels,
    label: int,
    meta: SampleMeta,
    plan: CropLayout,
    layout: str,
    codec: Codec,
) -> dict[str, Member]:
    """Turn one image into its members, by suffix, in tar order.

    Args:
        canvas: Uint8 `(C, C, 3)`, RGB.
        resized: Uint8 `(R, 3, H, W)`, what `crops.resized_crops` made of it.
        glimpses: Uint8 `(K, 1, s, s)`, not padded.
        label: Index of the class.
        meta: Where it came from.
        plan: The K candidates.
        layout: `tensors` or `canvas`.
        codec: How the canvas and what was resized are written.
    """
    members: dict[str, Member] = {}
    if layout == "tensors":
        crops = original_crops(canvas, resized, plan, range(len(plan)))
        members[ORIGINALS] = encode_array(np.stack(crops))
        members[GLIMPSES] = encode_array(pad_glimpses(glimpses, plan.crop_px))
    else:
        members[codec.canvas_suffix] = _encode_pixels(canvas, codec)
        if plan.resized:
            members[codec.resized_suffix] = _encode_pixels(resized.transpose(0, 2, 3, 1), codec)
        members[SMALL_GLIMPSES] = encode_array(glimpses)
    members[LABEL] = (str(label).encode(),)
    members[META] = (json.dumps(vars(meta), sort_keys=True, ensure_ascii=True).encode(),)
    return members


def _encode_pixels(array: Pixels, codec: Codec) -> Member:
    """Write `(H, W, 3)`, or `(R, H, W, 3)`, which one below the other are one image."""
    if codec.name == "raw":
        return encode_array(array)
    return (codec.encode(array.reshape(-1, *array.shape[-2:])),)


def decode_sample(
    key: str,
    members: Mapping[str, bytes | memoryview],
    *,
    plan: CropLayout,
    layout: str,
    codec: Codec,
    glimpse_px: int,
    where: str,
    candidates: tuple[int, ...] | None = None,
) -> Sample:
    """Turn members back into a sample; what is raw stays a view on its bytes.

    Args:
        key: The sample's key.
        members: Bytes by suffix. The candidates that are not asked for may be absent.
        plan: The K candidates of the shards.
        layout: `tensors` or `canvas`.
        codec: How the canvas was written.
        glimpse_px: Side s of the stored glimpses, px.
        where: Shard and key, for errors.
        candidates: Indices on axis K to decode; all by default.

    Raises:
        VerificationError: If a member is missing or is not what its suffix says.
    """
    chosen = tuple(range(len(plan))) if candidates is None else candidates
    try:
        if layout == "tensors":
            originals = decode_array(members[ORIGINALS], where)
            crops = [originals[k] for k in chosen]
            small = decode_array(members[GLIMPSES], where)[:, :, :glimpse_px, :glimpse_px]
        else:
            crops = _decode_crops(members, plan, codec, chosen, where)
            small = decode_array(members[SMALL_GLIMPSES], where)
        label = int(bytes(members[LABEL]))
        meta = _decode_meta(json.loads(bytes(members[META])))
    except (LookupError, ValueError, TypeError) as error:
        raise VerificationError(
            f"a sample must hold {', '.join(member_suffixes(layout, plan, codec))}; "
            f"got {error!r} in {where}. Rebuild the shard."
        ) from error
    _check_shapes(crops, small, plan=plan, glimpse_px=glimpse_px, where=where)
    return Sample(
        key=key, label=label, crops=tuple(crops), small_glimpses=small[list(chosen)], meta=meta
    )


def _decode_crops(
    members: Mapping[str, bytes | memoryview],
    plan: CropLayout,
    codec: Codec,
    chosen: tuple[int, ...],
    where: str,
) -> list[Pixels]:
    """Decode what the chosen candidates are cut from, and cut them."""
    canvas_HWC, resized_RHWC = _NO_PIXELS, _NO_PIXELS[None]
    canvas_px, crop_px = plan.canvas_px, plan.crop_px
    if any(plan.is_cut(k) for k in chosen):
        data = members[codec.canvas_suffix]
        canvas_HWC = _decode_pixels(data, codec, (canvas_px, canvas_px, 3), where)
    if not all(plan.is_cut(k) for k in chosen):
        data, shape = members[codec.resized_suffix], (len(plan.resized), crop_px, crop_px, 3)
        resized_RHWC = _decode_pixels(data, codec, shape, where)
    return original_crops(canvas_HWC, resized_RHWC.transpose(0, 3, 1, 2), plan, chosen)


def _decode_pixels(
    data: bytes | memoryview, codec: Codec, shape: tuple[int, ...], where: str
) -> Pixels:
    if codec.name == "raw":
        return decode_array(data, where)
    pixels = np.empty(shape, np.uint8)
    codec.decode_into(data, pixels.reshape(-1, *shape[-2:]))
    pixels.flags.writeable = False  # as raw pixels are
    return pixels


def _decode_meta(fields: dict[str, Any]) -> SampleMeta:
    return SampleMeta(**fields)


def _check_shapes(
    crops: list[Pixels], small: Pixels, *, plan: CropLayout, glimpse_px: int, where: str
) -> None:
    crop_shape = (3, plan.crop_px, plan.crop_px)
    small_shape = (len(plan), 1, glimpse_px, glimpse_px)
    wrong = [crop.shape for crop in crops if crop.shape != crop_shape]
    if wrong or small.shape != small_shape:
        raise VerificationError(
            f"crops must be {crop_shape} and glimpses {small_shape}; "
            f"got {wrong or crop_shape} and {small.shape} in {where}. Rebuild the shard."
        )
