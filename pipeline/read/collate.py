"""Fill the arrays of one batch from mapped shards.

Axes: B samples, K candidates that are read, L glimpses that are looked at, R resized candidates, C
canvas px, H and W crop px, S glimpse px.
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import ConfigError, VerificationError
from pipeline.format.codecs import codec_of
from pipeline.format.crops import CropLayout
from pipeline.format.cutting import glimpses, original_crops
from pipeline.format.npy import NPY_START
from pipeline.format.sample import GLIMPSES, ORIGINALS, SMALL_GLIMPSES
from pipeline.pixels import Pixels
from pipeline.read.reader import Located, ShardReader
from pipeline.read.sampler import Indices

Addresses = NDArray[np.int64]
Decoded = dict[str, Pixels]
"""What has been decoded of one sample so far, by member."""

_NONE: Pixels = np.empty((0, 0, 3), np.uint8)
_ONE_ROW = np.zeros(1, np.int64)  # a piece of one row has no next one


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """What a batch carries of each sample.

    Attributes:
        candidates: Indices on axis K, whose crops are read.
        glimpse_px: Side of the glimpses; those of another size than the stored ones are made
            from the crops. None reads none.
        looked_at: Indices on axis K, whose glimpses are read; None reads those of `candidates`.
        crops: Whether crops are cut on reading. Otherwise the batch carries canvases, and the
            resized candidates, from which they can be cut as views.
        compiled: Whether pixels are copied by compiled code, past the caches. Loading it takes
            a second.
    """

    candidates: tuple[int, ...]
    glimpse_px: int | None
    looked_at: tuple[int, ...] | None = None
    crops: bool = True
    compiled: bool = False


class Arrays(NamedTuple):
    """The pixels of B samples, uint8, RGB; None where nobody asked for them.

    There are either `crops_BKHWC`, or `canvases_BCC3` and `resized_BRHWC`. Glimpses are not
    padded.
    """

    crops_BKHWC: Pixels | None
    canvases_BCC3: Pixels | None
    resized_BRHWC: Pixels | None
    glimpses_BLSS: Pixels | None


class Collator:
    """Fills arrays with samples of one reader. Safe to share among threads."""

    def __init__(self, reader: ShardReader, content: BatchSpec) -> None:
        """Look at what the shards hold.

        Raises:
            ConfigError: If canvases are asked for that the shards do not hold.
            IndexError: If there is no such candidate.
        """
        self.reader = reader
        self.content = content
        spec = reader.manifest.spec
        self._plan, self._stored_px = spec.crop_layout, spec.glimpse_size
        self._has_canvas = spec.layout == "canvas"
        if not content.crops and not self._has_canvas:
            raise ConfigError(
                "canvases can be read only from shards that hold them; got --layout "
                f"{spec.layout}. Read crops, or build shards with --layout canvas."
            )
        self._codec = codec_of(spec)
        self._canvas, self._resized = self._codec.canvas_suffix, self._codec.resized_suffix
        self._is_raw = self._codec.name == "raw"
        self._own = threading.local()  # what a thread decodes into
        self._looks = content.candidates if content.looked_at is None else content.looked_at
        for candidate in (*content.candidates, *self._looks):
            if not 0 <= candidate < len(self._plan):
                raise IndexError(
                    f"a candidate's index must be at least 0 and below {len(self._plan)}; got "
                    f"{candidate}."
                )
        self._cuts = _cuts(self._plan, content.candidates)
        looks_at_all = self._looks == tuple(range(len(self._plan)))
        self._looked = slice(None) if looks_at_all else list(self._looks)
        self._row_of = {name: row for row, name in enumerate(reader.manifest.suffixes())}
        self._shape_of = reader.manifest.npy_shapes()

    def shapes(self, num_samples: int) -> tuple[tuple[int, ...] | None, ...]:
        """Give the shapes of the `Arrays` of some samples, None for what is not read."""
        plan, side = self._plan, self.content.glimpse_px
        num_read, crop, canvas = len(self.content.candidates), plan.crop_px, plan.canvas_px
        crops = (num_samples, num_read, crop, crop, 3)
        canvases = (num_samples, canvas, canvas, 3)
        resized = (num_samples, len(plan.resized), crop, crop, 3)
        looked = None if side is None else (num_samples, len(self._looks), side, side)
        if self.content.crops:
            return crops, None, None, looked
        return None, canvases, resized, looked

    def fill(self, indices_B: Indices, out: Arrays) -> None:
        """Read samples into arrays of their number.

        Raises:
            VerificationError: If a sample's bytes are not those that were written.
        """
        located = self.reader.locate(indices_B)
        gathers = self.content.compiled and self._has_canvas
        if gathers and self._is_raw:
            self._gather_pixels(located, out)
        looked_BLSS = out.glimpses_BLSS
        if looked_BLSS is not None and gathers and self._looks_at_stored:
            self._gather_glimpses(located, looked_BLSS)
            looked_BLSS = None
        for row, index in enumerate(indices_B.tolist()):
            decoded: Decoded = {}
            try:
                if not (gathers and self._is_raw):
                    self._copy_pixels(located, row, out, decoded)
                if looked_BLSS is not None:
                    looked_BLSS[row] = self._glimpses(located, row, decoded)
            except ValueError as error:
                raise VerificationError(
                    f"a canvas must be one of {self._codec.name}; got {error} in "
                    f"{self.reader.place_of(index)}. Rebuild the shard."
                ) from error

    @property
    def _looks_at_stored(self) -> bool:
        return self.content.glimpse_px == self._stored_px

    def _copy_pixels(self, located: Located, row: int, out: Arrays, decoded: Decoded) -> None:
        """Copy one sample's crops or canvas, decoded where that is needed."""
        if out.crops_BKHWC is not None:
            if self.content.compiled and self._has_canvas:
                self._gather_decoded(located, row, out.crops_BKHWC[row : row + 1], decoded)
            else:
                crops = self._crops(located, row, self.content.candidates, decoded)
                for column, crop_CHW in enumerate(crops):
                    out.crops_BKHWC[row, column] = crop_CHW.transpose(1, 2, 0)
        if out.canvases_BCC3 is not None:
            self._copy_image(located, self._canvas, row, out.canvases_BCC3[row])
            decoded[self._canvas] = out.canvases_BCC3[row]
        if out.resized_BRHWC is not None and self._plan.resized:
            self._copy_image(located, self._resized, row, out.resized_BRHWC[row])
            decoded[self._resized] = out.resized_BRHWC[row]

    def _copy_image(self, located: Located, name: str, row: int, out: Pixels) -> None:
        """Copy or decode pixels `(H, W, 3)`, or `(R, H, W, 3)` one below the other."""
        if self._is_raw:
            out[...] = self._array(located, name, row)
        else:
            column_HWC = out.reshape(-1, *out.shape[-2:])
            self._codec.decode_into(self._bytes(located, name, row).data, column_HWC)

    def _crops(
        self, located: Located, row: int, wanted: tuple[int, ...], decoded: Decoded
    ) -> list[Pixels]:
        """View one sample's crops, each `(3, H, W)`, until this thread asks for the next ones."""
        if not self._has_canvas:
            originals_KCHW = self._array(located, ORIGINALS, row)
            return [originals_KCHW[k] for k in wanted]
        canvas_HWC, resized_RHWC = self._pictures(located, row, wanted, decoded)
        return original_crops(canvas_HWC, resized_RHWC.transpose(0, 3, 1, 2), self._plan, wanted)

    def _gather_decoded(
        self, located: Located, row: int, out_1KHWC: Pixels, decoded: Decoded
    ) -> None:
        """Cut one sample's crops past the caches, from the thread's own memory."""
        canvas_HWC, resized_RHWC = self._pictures(located, row, self.content.candidates, decoded)
        sources_1K: Addresses | None = getattr(self._own, "sources_1K", None)
        if sources_1K is None:
            sources_1K = self._sources(
                np.array([canvas_HWC.ctypes.data]), np.array([resized_RHWC.ctypes.data])
            )
            self._own.sources_1K = sources_1K
        self._gather_crops(sources_1K, out_1KHWC)

    def _pictures(
        self, located: Located, row: int, wanted: tuple[int, ...], decoded: Decoded
    ) -> tuple[Pixels, Pixels]:
        """View what one sample's crops are cut from; what is not needed has no pixels."""
        plan = self._plan
        canvas_HWC, resized_RHWC = _NONE, _NONE[None]
        num_cut = sum(map(plan.is_cut, wanted))
        if num_cut:
            side = plan.canvas_px
            canvas_HWC = self._image(located, self._canvas, row, (side, side, 3), decoded)
        if num_cut < len(wanted):
            side, count = plan.crop_px, len(plan.resized)
            shape = (count, side, side, 3)
            resized_RHWC = self._image(located, self._resized, row, shape, decoded)
        return canvas_HWC, resized_RHWC

    def _image(
        self, located: Located, name: str, row: int, shape: tuple[int, ...], decoded: Decoded
    ) -> Pixels:
        """View raw pixels where they lie, or decode them into this thread's own memory, once."""
        if self._is_raw:
            return self._array(located, name, row)
        if name in decoded:
            return decoded[name]
        own: Pixels | None = getattr(self._own, name, None)
        if own is None:
            own = np.empty(shape, np.uint8)
            setattr(self._own, name, own)
        self._copy_image(located, name, row, own)
        decoded[name] = own
        return own

    def _glimpses(self, located: Located, row: int, decoded: Decoded) -> Pixels:
        """Give one sample's glimpses, `(L, S, S)`."""
        side = self.content.glimpse_px or self._stored_px
        if not self._looks_at_stored:
            return glimpses(self._crops(located, row, self._looks, decoded), side)[:, 0]
        stored = SMALL_GLIMPSES if self._has_canvas else GLIMPSES
        return self._array(located, stored, row)[self._looked, 0, :side, :side]

    def _array(self, located: Located, name: str, row: int) -> Pixels:
        """View one sample's array in its shard."""
        return self._bytes(located, name, row)[NPY_START:].reshape(self._shape_of[name])

    def _bytes(self, located: Located, name: str, row: int) -> Pixels:
        """View the bytes of one sample's member."""
        member = self._row_of[name]
        start = int(located.offsets_MB[member, row])
        stop = start + int(located.sizes_MB[member, row])
        return self.reader.mapped.bytes_of(int(located.shards_B[row]))[start:stop]

    def _gather_pixels(self, located: Located, out: Arrays) -> None:
        """Copy the raw pixels of all samples at once, past the caches."""
        plan = self._plan
        canvases_B = self._addresses(located, self._canvas)
        resized_B = self._addresses(located, self._resized) if plan.resized else canvases_B
        if out.crops_BKHWC is not None:
            self._gather_crops(self._sources(canvases_B, resized_B), out.crops_BKHWC)
        if out.canvases_BCC3 is not None:
            size = 3 * plan.canvas_px**2
            _gather(out.canvases_BCC3, canvases_B[:, None], _ONE_ROW, row_bytes=size)
        if out.resized_BRHWC is not None and plan.resized:
            size = 3 * plan.crop_px**2 * len(plan.resized)
            _gather(out.resized_BRHWC, resized_B[:, None], _ONE_ROW, row_bytes=size)

    def _gather_glimpses(self, located: Located, out_BLSS: Pixels) -> None:
        """Copy the stored glimpses of all samples at once."""
        size = self._stored_px**2
        first_B = self._addresses(located, SMALL_GLIMPSES)
        pieces_BL = first_B[:, None] + size * np.array(self._looks)
        _gather(out_BLSS, pieces_BL, np.zeros(len(self._looks), np.int64), row_bytes=size)

    def _gather_crops(self, sources_BK: Addresses, out_BKHWC: Pixels) -> None:
        side = self._plan.crop_px
        _gather(out_BKHWC, sources_BK, self._cuts.strides_K, num_rows=side, row_bytes=3 * side)

    def _sources(self, canvases_B: Addresses, resized_B: Addresses) -> Addresses:
        """Give the addresses of the crops' first pixels, `(B, K)`."""
        bases_BK = np.where(self._cuts.is_cut_K, canvases_B[:, None], resized_B[:, None])
        return bases_BK + self._cuts.offsets_K

    def _addresses(self, located: Located, name: str) -> Addresses:
        """Give the addresses of one array of each sample in this process's memory."""
        member = self._row_of[name]
        bases = [self.reader.mapped.address_of(number) for number in located.shards_B.tolist()]
        addresses_B: Addresses = np.array(bases, np.int64) + located.offsets_MB[member]
        return addresses_B + NPY_START


class _Cuts(NamedTuple):
    """Where each candidate's pixels lie.

    `is_cut_K` says whether in the canvas, otherwise in the resized array. `offsets_K` are bytes
    from the start of that array, `strides_K` bytes from one row to the next.
    """

    is_cut_K: NDArray[np.bool_]
    offsets_K: Addresses
    strides_K: Addresses


def _cuts(plan: CropLayout, candidates: tuple[int, ...]) -> _Cuts:
    offsets, strides = [], []
    for candidate in candidates:
        if plan.is_cut(candidate):
            box, stride = plan.boxes[candidate], 3 * plan.canvas_px
            offsets.append(box.y0 * stride + 3 * box.x0)
        else:
            stride = 3 * plan.crop_px
            offsets.append(plan.resized.index(candidate) * plan.crop_px * stride)
        strides.append(stride)
    is_cut_K = np.array([plan.is_cut(k) for k in candidates])
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
