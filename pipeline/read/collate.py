"""Fill the arrays of one batch from mapped shards.

Axes: B samples, K candidates whose crops are read, L candidates whose glimpses are read, R resized
candidates, C canvas px, H and W crop px, S glimpse px.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.codecs import Codec, codec_of
from pipeline.format.crops import CropLayout
from pipeline.format.cutting import glimpses, original_crops
from pipeline.format.npy import NPY_START
from pipeline.format.sample import GLIMPSES, ORIGINALS, SMALL_GLIMPSES
from pipeline.pixels import Pixels
from pipeline.read.reader import ShardReader
from pipeline.read.sampler import Indices

Addresses = NDArray[np.int64]
Shape = tuple[int, ...]

_NO_PIXELS: Pixels = np.empty((0, 0, 3), np.uint8)
_ONE_ROW = np.zeros(1, np.int64)  # stride of a piece that has a single row


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """What a batch carries of each sample.

    Attributes:
        candidates: Candidates whose crops are read; indices on axis K.
        glimpse_px: Side of the glimpses; another size than the stored one is made from the crops.
            None reads no glimpses.
        looked_at: Candidates whose glimpses are read; None takes `candidates`.
        crops: Whether crops are cut on reading. Otherwise the batch carries canvases and resized
            candidates, from which crops can be cut as views.
        compiled: Whether compiled code copies the pixels, past the caches. Loading it takes a
            second.
    """

    candidates: tuple[int, ...]
    glimpse_px: int | None
    looked_at: tuple[int, ...] | None = None
    crops: bool = True
    compiled: bool = False


class Arrays(NamedTuple):
    """The pixels of B samples, uint8, RGB; None for what the `BatchSpec` leaves out.

    There are either `crops_BKHWC`, or `canvases_BCC3` and `resized_BRHWC`. Glimpses are not
    padded.
    """

    crops_BKHWC: Pixels | None
    canvases_BCC3: Pixels | None
    resized_BRHWC: Pixels | None
    glimpses_BLSS: Pixels | None


class _Members:
    """The members of B samples, in the mapped shards."""

    def __init__(
        self,
        reader: ShardReader,
        indices_B: Indices,
        *,
        rows: Mapping[str, int],
        shapes: Mapping[str, Shape],
    ) -> None:
        self._rows, self._shapes = rows, shapes
        self._located = reader.locate(indices_B)
        shards = set(self._located.shards_B.tolist())
        # Kept, so that their addresses stay valid even if the reader lets a shard go meanwhile.
        self._shards = {number: reader.mapped.bytes_of(number) for number in shards}

    def bytes_of(self, name: str, sample: int) -> Pixels:
        """View the bytes of a sample's member."""
        start = int(self._located.offsets_MB[self._rows[name], sample])
        stop = start + int(self._located.sizes_MB[self._rows[name], sample])
        return self._shards[int(self._located.shards_B[sample])][start:stop]

    def array(self, name: str, sample: int) -> Pixels:
        """View a sample's member that is `.npy`."""
        return self.bytes_of(name, sample)[NPY_START:].reshape(self._shapes[name])

    def addresses(self, name: str) -> Addresses:
        """Return the address of each sample's array in this process's memory."""
        starts = {number: shard.ctypes.data for number, shard in self._shards.items()}
        bases = [starts[number] for number in self._located.shards_B.tolist()]
        offsets_B = self._located.offsets_MB[self._rows[name]]
        return np.asarray(np.array(bases, np.int64) + offsets_B + NPY_START)


class RawPixels:
    """Images that are stored as they are: views of the mapped shards."""

    def next_sample(self) -> None:
        """Nothing is kept."""

    def view(self, members: _Members, name: str, sample: int) -> Pixels:
        """View an image where it lies."""
        return members.array(name, sample)

    def copy(self, members: _Members, name: str, sample: int, out: Pixels) -> None:
        """Copy an image."""
        out[...] = members.array(name, sample)


class CodedPixels:
    """Images that are decoded, each once; a thread decodes into its own memory."""

    def __init__(self, codec: Codec, shapes: Mapping[str, Shape]) -> None:
        self._codec, self._shapes = codec, shapes
        self._own = threading.local()

    def next_sample(self) -> None:
        """Forget the images of the last sample."""
        self._own.decoded = {}

    def view(self, members: _Members, name: str, sample: int) -> Pixels:
        """View a decoded image; this thread's next sample overwrites it."""
        if name not in self._own.decoded:
            if not hasattr(self._own, name):
                setattr(self._own, name, np.empty(self._shapes[name], np.uint8))
            self.copy(members, name, sample, getattr(self._own, name))
        decoded: Pixels = self._own.decoded[name]
        return decoded

    def copy(self, members: _Members, name: str, sample: int, out: Pixels) -> None:
        """Decode an image into memory of the caller's."""
        self._codec.decode_into(members.bytes_of(name, sample).data, out)
        self._own.decoded[name] = out


class Collator:
    """Fills arrays with samples of one reader. Safe to share among threads."""

    def __init__(self, reader: ShardReader, wanted: BatchSpec) -> None:
        """Prepare to read a split.

        Raises:
            ConfigError: If canvases are wanted and the shards hold none.
            IndexError: If a candidate does not exist.
        """
        self.reader, self.wanted = reader, wanted
        self._spec = spec = reader.manifest.spec
        self._layout = layout = spec.crop_layout
        if not wanted.crops and spec.layout != "canvas":
            raise ConfigError(
                "canvases can be read only from shards that hold them; got --layout "
                f"{spec.layout}. Read crops, or build shards with --layout canvas."
            )
        self._looks = wanted.candidates if wanted.looked_at is None else wanted.looked_at
        for candidate in (*wanted.candidates, *self._looks):
            if not 0 <= candidate < len(layout):
                raise IndexError(
                    f"a candidate's index must be at least 0 and below {len(layout)}; got "
                    f"{candidate}."
                )
        looks_at_all = self._looks == tuple(range(len(layout)))
        self._looked = slice(None) if looks_at_all else list(self._looks)
        self._rows = {name: row for row, name in enumerate(reader.manifest.suffixes())}
        self._shapes = reader.manifest.npy_shapes()
        self._codec = codec = codec_of(spec)
        self._pixels = RawPixels() if codec.is_raw else CodedPixels(codec, self._image_shapes())
        self._cuts = _cuts(layout, wanted.candidates)
        self._is_gathered = wanted.compiled and spec.layout == "canvas"

    def _image_shapes(self) -> dict[str, Shape]:
        canvas, crop, num_resized = (
            self._spec.canvas_size, self._spec.crop_size, len(self._layout.resized)
        )  # fmt: skip
        return {
            self._codec.canvas_suffix: (canvas, canvas, 3),
            self._codec.resized_suffix: (num_resized, crop, crop, 3),
        }

    def shapes(self, num_samples: int) -> tuple[Shape | None, ...]:
        """Return the shapes of the `Arrays` of some samples, None for what is not read."""
        side, crop = self.wanted.glimpse_px, self._spec.crop_size
        looked = None if side is None else (num_samples, len(self._looks), side, side)
        if self.wanted.crops:
            crops = (num_samples, len(self.wanted.candidates), crop, crop, 3)
            return crops, None, None, looked
        images = self._image_shapes().values()
        return None, *((num_samples, *shape) for shape in images), looked

    def fill(self, indices_B: Indices, out: Arrays) -> None:
        """Read samples into arrays of their number.

        Raises:
            VerificationError: If a sample's bytes are not those that were written.
        """
        members = _Members(self.reader, indices_B, rows=self._rows, shapes=self._shapes)
        glimpses_BLSS = out.glimpses_BLSS
        has_all_pixels = self._is_gathered and self._codec.is_raw
        if has_all_pixels:
            self._gather_pixels(members, out)
        if glimpses_BLSS is not None and self._is_gathered and self._looks_at_stored:
            self._gather_glimpses(members, glimpses_BLSS)
            glimpses_BLSS = None
        for sample, index in enumerate(indices_B.tolist()):
            self._pixels.next_sample()
            try:
                if not has_all_pixels:
                    self._copy_pixels(members, sample, out)
                if glimpses_BLSS is not None:
                    glimpses_BLSS[sample] = self._glimpses(members, sample)
            except ValueError as error:
                raise VerificationError(
                    f"a canvas must be one of {self._codec.name}; got {error} in "
                    f"{self.reader.place_of(index)}. Rebuild the shard."
                ) from error

    @property
    def _looks_at_stored(self) -> bool:
        return self.wanted.glimpse_px == self._spec.glimpse_size

    def _copy_pixels(self, members: _Members, sample: int, out: Arrays) -> None:
        """Copy one sample's crops, or its canvas and resized candidates."""
        wanted, codec = self.wanted.candidates, self._codec
        if out.crops_BKHWC is not None:
            if self._is_gathered:
                canvas_HWC, resized_RHWC = self._images(members, sample, wanted)
                bases = np.array([canvas_HWC.ctypes.data]), np.array([resized_RHWC.ctypes.data])
                self._gather_crops(*bases, out.crops_BKHWC[sample : sample + 1])
            else:
                for column, crop_CHW in enumerate(self._crops(members, sample, wanted)):
                    out.crops_BKHWC[sample, column] = crop_CHW.transpose(1, 2, 0)
        if out.canvases_BCC3 is not None:
            self._pixels.copy(members, codec.canvas_suffix, sample, out.canvases_BCC3[sample])
        if out.resized_BRHWC is not None and self._layout.resized:
            self._pixels.copy(members, codec.resized_suffix, sample, out.resized_BRHWC[sample])

    def _crops(self, members: _Members, sample: int, wanted: tuple[int, ...]) -> list[Pixels]:
        """View one sample's crops, each `(3, H, W)`, until this thread reads the next sample."""
        if self._spec.layout == "tensors":
            originals_KCHW = members.array(ORIGINALS, sample)
            return [originals_KCHW[k] for k in wanted]
        canvas_HWC, resized_RHWC = self._images(members, sample, wanted)
        return original_crops(canvas_HWC, resized_RHWC.transpose(0, 3, 1, 2), self._layout, wanted)

    def _images(
        self, members: _Members, sample: int, wanted: tuple[int, ...]
    ) -> tuple[Pixels, Pixels]:
        """View the canvas and the resized candidates; an image that is not needed is empty."""
        canvas_HWC, resized_RHWC = _NO_PIXELS, _NO_PIXELS[None]
        num_cut = sum(map(self._layout.is_cut, wanted))
        if num_cut:
            canvas_HWC = self._pixels.view(members, self._codec.canvas_suffix, sample)
        if num_cut < len(wanted):
            resized_RHWC = self._pixels.view(members, self._codec.resized_suffix, sample)
        return canvas_HWC, resized_RHWC

    def _glimpses(self, members: _Members, sample: int) -> Pixels:
        """Return one sample's glimpses, `(L, S, S)`."""
        side = self.wanted.glimpse_px or self._spec.glimpse_size
        if not self._looks_at_stored:
            return glimpses(self._crops(members, sample, self._looks), side)[:, 0]
        stored = GLIMPSES if self._spec.layout == "tensors" else SMALL_GLIMPSES
        return members.array(stored, sample)[self._looked, 0, :side, :side]

    def _gather_pixels(self, members: _Members, out: Arrays) -> None:
        """Copy the raw pixels of all samples at once, past the caches."""
        codec, num_resized = self._codec, len(self._layout.resized)
        canvases_B = members.addresses(codec.canvas_suffix)
        resized_B = members.addresses(codec.resized_suffix) if num_resized else canvases_B
        if out.crops_BKHWC is not None:
            self._gather_crops(canvases_B, resized_B, out.crops_BKHWC)
        if out.canvases_BCC3 is not None:
            size = 3 * self._spec.canvas_size**2
            _gather(out.canvases_BCC3, canvases_B[:, None], _ONE_ROW, row_bytes=size)
        if out.resized_BRHWC is not None and num_resized:
            size = 3 * self._spec.crop_size**2 * num_resized
            _gather(out.resized_BRHWC, resized_B[:, None], _ONE_ROW, row_bytes=size)

    def _gather_crops(self, canvases_B: Addresses, resized_B: Addresses, out_BKHWC: Pixels) -> None:
        """Cut crops from images at these addresses, past the caches."""
        side, cuts = self._spec.crop_size, self._cuts
        bases_BK = np.where(cuts.is_cut_K, canvases_B[:, None], resized_B[:, None])
        pieces_BK = bases_BK + cuts.offsets_K
        _gather(out_BKHWC, pieces_BK, cuts.strides_K, num_rows=side, row_bytes=3 * side)

    def _gather_glimpses(self, members: _Members, out_BLSS: Pixels) -> None:
        """Copy the stored glimpses of all samples at once."""
        size = self._spec.glimpse_size**2
        pieces_BL = members.addresses(SMALL_GLIMPSES)[:, None] + size * np.array(self._looks)
        _gather(out_BLSS, pieces_BL, np.zeros(len(self._looks), np.int64), row_bytes=size)


class _Cuts(NamedTuple):
    """Where each candidate's pixels lie.

    `is_cut_K`: in the canvas; otherwise in the resized array. `offsets_K`: bytes from the start of
    that array. `strides_K`: bytes from one row to the next.
    """

    is_cut_K: NDArray[np.bool_]
    offsets_K: Addresses
    strides_K: Addresses


def _cuts(layout: CropLayout, candidates: tuple[int, ...]) -> _Cuts:
    offsets, strides = [], []
    for candidate in candidates:
        if layout.is_cut(candidate):
            box, stride = layout.boxes[candidate], 3 * layout.canvas_px
            offsets.append(box.y0 * stride + 3 * box.x0)
        else:
            stride = 3 * layout.crop_px
            offsets.append(layout.resized.index(candidate) * layout.crop_px * stride)
        strides.append(stride)
    is_cut_K = np.array([layout.is_cut(k) for k in candidates])
    return _Cuts(is_cut_K, np.array(offsets, np.int64), np.array(strides, np.int64))


def _gather(
    out: Pixels,
    pieces_BK: Addresses,
    strides_K: Addresses,
    *,
    row_bytes: int,
    num_rows: int = 1,
) -> None:
    from pipeline.pixels.streaming_copy import gather  # numba takes a second to load

    if not out.flags.c_contiguous or out.nbytes != pieces_BK.size * num_rows * row_bytes:
        raise RuntimeError(f"an array of {out.shape} for pieces of another size")
    gather(out.ctypes.data, pieces_BK, strides_K, num_rows, row_bytes)
