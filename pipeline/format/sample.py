"""Encode a sample as members of a tar shard, and decode it.

This file is the format; `shards/README.md` describes it in words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import VerificationError
from pipeline.format.codecs import codec_of
from pipeline.format.cutting import original_crops, pad_glimpses
from pipeline.format.npy import Member, decode_array, encode_array
from pipeline.format.spec import DataSpec
from pipeline.pixels import Pixels

ORIGINALS = "originals.npy"
GLIMPSES = "glimpses.npy"
SMALL_GLIMPSES = "small-glimpses.npy"
LABEL = "cls"
META = "json"

Members = Mapping[str, bytes | memoryview]
"""A sample's members, by suffix."""

_NO_PIXELS: Pixels = np.empty((0, 0, 3), np.uint8)


def member_suffixes(spec: DataSpec) -> tuple[str, ...]:
    """List a sample's members in tar order."""
    if spec.layout == "tensors":
        return (ORIGINALS, GLIMPSES, LABEL, META)
    codec = codec_of(spec)
    resized = (codec.resized_suffix,) if spec.crop_layout.resized else ()
    return (codec.canvas_suffix, *resized, SMALL_GLIMPSES, LABEL, META)


def npy_shapes(spec: DataSpec) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the members that are `.npy`, by suffix."""
    layout, codec = spec.crop_layout, codec_of(spec)
    crop, canvas, glimpse = spec.crop_size, spec.canvas_size, spec.glimpse_size
    shapes: dict[str, tuple[int, ...]] = {
        ORIGINALS: (len(layout), 3, crop, crop),
        GLIMPSES: (len(layout), 1, crop, crop),
        SMALL_GLIMPSES: (len(layout), 1, glimpse, glimpse),
    }
    if codec.is_raw:
        shapes[codec.canvas_suffix] = (canvas, canvas, 3)
        shapes[codec.resized_suffix] = (len(layout.resized), crop, crop, 3)
    return {name: shapes[name] for name in member_suffixes(spec) if name in shapes}


@dataclass(frozen=True, kw_only=True)
class SampleMeta:
    """A sample's source image.

    Attributes:
        path: Path relative to the source's root, with `/`.
        class_name: Folder name of its class.
        sha256: SHA-256 of the file.
        width: Width of the upright image, px.
        height: Height of the upright image, px.
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
        crops: K views, each uint8 `(3, H, W)`, RGB. They may share memory.
        small_glimpses: Uint8 `(K, 1, s, s)`, before padding.
        meta: The source image.
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
        """Return the predecessor's tensor, uint8 `(K, 4, H, W)`: RGB, then the glimpse."""
        return np.concatenate([self.originals, self.glimpses], axis=1)


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard to be written.

    Attributes:
        split: `train` or `val`.
        index: Position among the split's shards.
        keys: Keys of its samples, in order.
    """

    split: str
    index: int
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """File name, such as `train-000000.tar`."""
        return f"{self.split}-{self.index:06d}.tar"


def encode_sample(
    spec: DataSpec,
    *,
    canvas: Pixels,
    resized: Pixels,
    glimpses: Pixels,
    label: int,
    meta: SampleMeta,
) -> dict[str, Member]:
    """Turn one image into its members, by suffix, in tar order.

    Args:
        spec: Sizes, candidates, layout and codec.
        canvas: Uint8 `(C, C, 3)`, RGB.
        resized: Uint8 `(R, 3, H, W)`, from `cutting.resized_crops`.
        glimpses: Uint8 `(K, 1, s, s)`, not padded.
        label: Index of the class.
        meta: The sample's source.
    """
    layout, codec = spec.crop_layout, codec_of(spec)
    members: dict[str, Member] = {}
    if spec.layout == "tensors":
        crops = original_crops(canvas, resized, layout, range(len(layout)))
        members[ORIGINALS] = encode_array(np.stack(crops))
        members[GLIMPSES] = encode_array(pad_glimpses(glimpses, spec.crop_size))
    else:
        members[codec.canvas_suffix] = codec.encode(canvas)
        if layout.resized:
            members[codec.resized_suffix] = codec.encode(resized.transpose(0, 2, 3, 1))
        members[SMALL_GLIMPSES] = encode_array(glimpses)
    members[LABEL] = (str(label).encode(),)
    members[META] = (json.dumps(vars(meta), sort_keys=True, ensure_ascii=True).encode(),)
    return members


def decode_sample(
    spec: DataSpec,
    key: str,
    members: Members,
    *,
    where: str,
    candidates: tuple[int, ...] | None = None,
) -> Sample:
    """Turn members back into a sample; raw pixels stay views of the members.

    Args:
        spec: Sizes, candidates, layout and codec of the shard.
        key: The sample's key.
        members: Bytes by suffix. Members that only other candidates need may be absent.
        where: Shard and key, for errors.
        candidates: Indices on axis K to decode; all by default.

    Raises:
        VerificationError: If a member is missing or is not what its suffix says.
    """
    size = spec.glimpse_size
    chosen = tuple(range(len(spec.crop_layout))) if candidates is None else candidates
    try:
        if spec.layout == "tensors":
            originals = decode_array(members[ORIGINALS], where)
            crops = [originals[k] for k in chosen]
            small = decode_array(members[GLIMPSES], where)[:, :, :size, :size]
        else:
            crops = _decode_crops(spec, members, chosen, where)
            small = decode_array(members[SMALL_GLIMPSES], where)
        label = int(bytes(members[LABEL]))
        meta = SampleMeta(**json.loads(bytes(members[META])))
    except (LookupError, ValueError, TypeError) as error:
        raise VerificationError(
            f"a sample must hold {', '.join(member_suffixes(spec))}; got {error!r} in {where}. "
            "Rebuild the shard."
        ) from error
    _check_shapes(spec, crops, small, where)
    return Sample(
        key=key, label=label, crops=tuple(crops), small_glimpses=small[list(chosen)], meta=meta
    )


def _decode_crops(
    spec: DataSpec, members: Members, chosen: tuple[int, ...], where: str
) -> list[Pixels]:
    """Decode the images that the chosen candidates are cut from, and cut them."""
    layout, codec = spec.crop_layout, codec_of(spec)
    canvas_HWC, resized_RHWC = _NO_PIXELS, _NO_PIXELS[None]
    is_cut = [layout.is_cut(k) for k in chosen]
    if any(is_cut):
        shape: tuple[int, ...] = (spec.canvas_size, spec.canvas_size, 3)
        canvas_HWC = codec.decode(members[codec.canvas_suffix], shape, where)
    if not all(is_cut):
        shape = (len(layout.resized), spec.crop_size, spec.crop_size, 3)
        resized_RHWC = codec.decode(members[codec.resized_suffix], shape, where)
    return original_crops(canvas_HWC, resized_RHWC.transpose(0, 3, 1, 2), layout, chosen)


def _check_shapes(spec: DataSpec, crops: list[Pixels], small: Pixels, where: str) -> None:
    crop_shape = (3, spec.crop_size, spec.crop_size)
    small_shape = (len(spec.crop_layout), 1, spec.glimpse_size, spec.glimpse_size)
    wrong = [crop.shape for crop in crops if crop.shape != crop_shape]
    if wrong or small.shape != small_shape:
        raise VerificationError(
            f"crops must be {crop_shape} and glimpses {small_shape}; "
            f"got {wrong or crop_shape} and {small.shape} in {where}. Rebuild the shard."
        )
