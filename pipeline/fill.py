"""Fill the arrays of one batch from mapped shards.

Axes: B samples, K candidates that are read, R resized candidates, C canvas px, H and W crop px,
S glimpse px.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import NPY_START
from pipeline.crops import glimpses, original_crops
from pipeline.errors import ConfigError, VerificationError
from pipeline.order import Indices
from pipeline.reader import IndexedReader, Located
from pipeline.resample import Pixels
from pipeline.schema import CANVAS, GLIMPSES, ORIGINALS, RESIZED, SMALL_GLIMPSES

Addresses = NDArray[np.int64]

_NONE: Pixels = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a batch carries of each sample.

    Attributes:
        candidates: Indices on axis K, whose crops and glimpses are read.
        glimpse_px: Side of the glimpses; those of another size than the stored ones are made
            from the crops. None reads none.
        crops: Whether crops are cut on reading. Otherwise the batch carries canvases, and the
            resized candidates, from which they can be cut as views.
        compiled: Whether pixels are copied by compiled code, past the caches. Loading it takes
            a second.
    """

    candidates: tuple[int, ...]
    glimpse_px: int | None
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
    glimpses_BKSS: Pixels | None


class Filler:
    """Fills arrays with samples of one reader. Safe to share among threads."""

    def __init__(self, reader: IndexedReader, content: Content) -> None:
        """Look at what the shards hold.

        Raises:
            ConfigError: If canvases are asked for that the shards do not hold.
        """
        self.reader = reader
        self.content = content
        spec = reader.manifest.spec
        self._plan, self._stored_px = spec.plan(), spec.glimpse_size
        self._has_canvas = spec.layout == "canvas"
        if not content.crops and not self._has_canvas:
            raise ConfigError(
                "canvases can be read only from shards that hold them; got --layout "
                f"{spec.layout}. Read crops, or build shards with --layout canvas."
            )
        self._codec = spec.pixel_codec()
        self._canvas, self._resized = self._codec.suffix(CANVAS), self._codec.suffix(RESIZED)
        self._is_raw = self._codec.name == "raw"
        self._own = threading.local()  # what a thread decodes into
        num_held, wanted = len(self._plan), content.candidates
        self._chosen = slice(None) if wanted == tuple(range(num_held)) else list(wanted)
        self._row_of = {name: row for row, name in enumerate(reader.manifest.suffixes())}
        self._shape_of = reader.manifest.npy_shapes()

    def shapes(self, num_samples: int) -> tuple[tuple[int, ...] | None, ...]:
        """Give the shapes of the `Arrays` of some samples, None for what is not read."""
        plan, side = self._plan, self.content.glimpse_px
        num_read, crop, canvas = len(self.content.candidates), plan.crop_px, plan.canvas_px
        crops = (num_samples, num_read, crop, crop, 3)
        canvases = (num_samples, canvas, canvas, 3)
        resized = (num_samples, len(plan.resized), crop, crop, 3)
        looked = None if side is None else (num_samples, num_read, side, side)
        if self.content.crops:
            return crops, None, None, looked
        return None, canvases, resized, looked

    def fill(self, indices_B: Indices, out: Arrays) -> None:
        """Read samples into arrays of their number.

        Raises:
            VerificationError: If a sample's bytes are not those that were written.
        """
        located = self.reader.locate(indices_B)
        is_gathered = self.content.compiled and self._has_canvas and self._is_raw
        if is_gathered:
            self._gather_pixels(located, out)
        for row, index in enumerate(indices_B.tolist()):
            try:
                if not is_gathered:
                    self._copy_pixels(located, row, out)
                if out.glimpses_BKSS is not None and not (is_gathered and self._looks_at_stored):
                    out.glimpses_BKSS[row] = self._glimpses(located, row)
            except ValueError as error:
                raise VerificationError(
                    f"a canvas must be one of {self._codec.name}; got {error} in "
                    f"{self.reader.place_of(index)}. Rebuild the shard."
                ) from error

    @property
    def _looks_at_stored(self) -> bool:
        return self.content.glimpse_px == self._stored_px

    def _copy_pixels(self, located: Located, row: int, out: Arrays) -> None:
        """Copy one sample's crops or canvas, decoded where that is needed."""
        if out.crops_BKHWC is not None:
            if self.content.compiled and self._has_canvas:
                self._gather_decoded(located, row, out.crops_BKHWC[row : row + 1])
            else:
                for column, crop_CHW in enumerate(self._crops(located, row)):
                    out.crops_BKHWC[row, column] = crop_CHW.transpose(1, 2, 0)
        if out.canvases_BCC3 is not None:
            self._copy_image(located, self._canvas, row, out.canvases_BCC3[row])
        if out.resized_BRHWC is not None and self._plan.resized:
            self._copy_image(located, self._resized, row, out.resized_BRHWC[row])

    def _copy_image(self, located: Located, name: str, row: int, out: Pixels) -> None:
        """Copy or decode pixels `(H, W, 3)`, or `(R, H, W, 3)` one below the other."""
        if self._is_raw:
            out[...] = self._array(located, name, row)
        else:
            column_HWC = out.reshape(-1, *out.shape[-2:])
            self._codec.decode_into(self._bytes(located, name, row).data, column_HWC)

    def _crops(self, located: Located, row: int) -> list[Pixels]:
        """View one sample's crops, each `(3, H, W)`, until this thread asks for the next ones."""
        wanted = self.content.candidates
        if not self._has_canvas:
            originals_KCHW = self._array(located, ORIGINALS, row)
            return [originals_KCHW[k] for k in wanted]
        canvas_HWC, resized_RHWC = self._pictures(located, row)
        return original_crops(canvas_HWC, resized_RHWC.transpose(0, 3, 1, 2), self._plan, wanted)

    def _gather_decoded(self, located: Located, row: int, out_1KHWC: Pixels) -> None:
        """Cut one sample's crops past the caches, from the thread's own memory."""
        canvas_HWC, resized_RHWC = self._pictures(located, row)
        canvas_1, resized_1 = np.array([[canvas_HWC.ctypes.data], [resized_RHWC.ctypes.data]])
        self._gather_crops(canvas_1, resized_1, out_1KHWC)

    def _pictures(self, located: Located, row: int) -> tuple[Pixels, Pixels]:
        """View what one sample's crops are cut from; what is not needed has no pixels."""
        plan, wanted = self._plan, self.content.candidates
        canvas_HWC, resized_RHWC = _NONE, _NONE[None]
        if any(plan.is_cut(k) for k in wanted):
            side = plan.canvas_px
            canvas_HWC = self._image(located, self._canvas, row, (side, side, 3))
        if not all(plan.is_cut(k) for k in wanted):
            side, count = plan.crop_px, len(plan.resized)
            resized_RHWC = self._image(located, self._resized, row, (count, side, side, 3))
        return canvas_HWC, resized_RHWC

    def _image(self, located: Located, name: str, row: int, shape: tuple[int, ...]) -> Pixels:
        """View raw pixels where they lie, or decode them into this thread's own memory."""
        if self._is_raw:
            return self._array(located, name, row)
        own: Pixels | None = getattr(self._own, name, None)
        if own is None:
            own = np.empty(shape, np.uint8)
            setattr(self._own, name, own)
        self._copy_image(located, name, row, own)
        return own

    def _glimpses(self, located: Located, row: int) -> Pixels:
        """Give one sample's glimpses, `(K, S, S)`."""
        side = self.content.glimpse_px or self._stored_px
        if not self._looks_at_stored:
            return glimpses(self._crops(located, row), side)[:, 0]
        stored = SMALL_GLIMPSES if self._has_canvas else GLIMPSES
        return self._array(located, stored, row)[self._chosen, 0, :side, :side]

    def _array(self, located: Located, name: str, row: int) -> Pixels:
        """View one sample's array in its shard."""
        return self._bytes(located, name, row)[NPY_START:].reshape(self._shape_of[name])

    def _bytes(self, located: Located, name: str, row: int) -> Pixels:
        """View the bytes of one sample's member."""
        member = self._row_of[name]
        start = int(located.offsets_MB[member, row])
        stop = start + int(located.sizes_MB[member, row])
        return self.reader.shard_bytes(int(located.shards_B[row]))[start:stop]

    def _gather_pixels(self, located: Located, out: Arrays) -> None:
        """Copy the raw pixels of all samples at once, past the caches."""
        plan = self._plan
        canvases_B = self._addresses(located, self._canvas)
        resized_B = self._addresses(located, self._resized) if plan.resized else canvases_B
        if out.crops_BKHWC is not None:
            self._gather_crops(canvases_B, resized_B, out.crops_BKHWC)
        if out.canvases_BCC3 is not None:
            _gather(out.canvases_BCC3, canvases_B[:, None], [0], row_bytes=3 * plan.canvas_px**2)
        if out.resized_BRHWC is not None and plan.resized:
            size = 3 * plan.crop_px**2 * len(plan.resized)
            _gather(out.resized_BRHWC, resized_B[:, None], [0], row_bytes=size)
        if out.glimpses_BKSS is not None and self._looks_at_stored:
            size = self._stored_px**2
            first_B = self._addresses(located, SMALL_GLIMPSES)
            pieces_BK = first_B[:, None] + size * np.array(self.content.candidates)
            _gather(out.glimpses_BKSS, pieces_BK, [0] * pieces_BK.shape[1], row_bytes=size)

    def _gather_crops(self, canvases_B: Addresses, resized_B: Addresses, out_BKHWC: Pixels) -> None:
        """Cut crops from pixels at these addresses, past the caches."""
        plan, side = self._plan, self._plan.crop_px
        pieces, strides = [], []
        for candidate in self.content.candidates:
            if plan.is_cut(candidate):
                box, stride = plan.boxes[candidate], 3 * plan.canvas_px
                pieces.append(canvases_B + box.y0 * stride + 3 * box.x0)
            else:
                stride = 3 * side
                pieces.append(resized_B + plan.resized.index(candidate) * side * stride)
            strides.append(stride)
        pieces_BK = np.stack(pieces, 1)
        _gather(out_BKHWC, pieces_BK, strides, num_rows=side, row_bytes=3 * side)

    def _addresses(self, located: Located, name: str) -> Addresses:
        """Give the addresses of one array of each sample in this process's memory."""
        member = self._row_of[name]
        bases = [self.reader.shard_address(number) for number in located.shards_B.tolist()]
        addresses_B: Addresses = np.array(bases, np.int64) + located.offsets_MB[member]
        return addresses_B + NPY_START


def _gather(
    out: Pixels,
    pieces_BK: Addresses,
    strides_K: Sequence[int],
    *,
    row_bytes: int,
    num_rows: int = 1,
) -> None:
    from pipeline.copies import gather  # numba takes a second to load

    if not out.flags.c_contiguous or out.nbytes != pieces_BK.size * num_rows * row_bytes:
        raise RuntimeError(f"an array of {out.shape} for pieces of another size")
    strides = np.tile(np.array(strides_K, np.int64), len(pieces_BK))
    gather(out.ctypes.data, pieces_BK.reshape(-1), strides, num_rows, row_bytes)
