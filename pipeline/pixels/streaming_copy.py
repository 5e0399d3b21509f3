"""Gather many small pieces of memory into one, past the caches, compiled by numba.

A batch is larger than the caches, and this core does not read it again. Ordinary stores first fetch
each line that they overwrite; streaming stores do not, which saves a third of the traffic. Numba
does not offer them, so they are written as LLVM instructions.

Importing numba takes a second, so the loader imports this only for `BatchSpec.compiled`.

Source: LLVM Language Reference, `nontemporal` metadata of `store`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.pixels.kernels import compiled

_WIDE, _NARROW = 32, 16  # bytes of one store
_UNROLLED = 4 * _WIDE


def _streaming_store(width: int) -> Any:
    """Make an operation that copies `width` bytes to an address that is a multiple of it."""

    @intrinsic
    def store(_typing, target, source):  # type: ignore[no-untyped-def]
        def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
            vector = ir.VectorType(ir.IntType(8), width).as_pointer()
            target, source = (builder.inttoptr(address, vector) for address in arguments)
            stored = builder.store(builder.load(source, align=1), target, align=width)
            one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            stored.set_metadata("nontemporal", one)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


_store_wide = _streaming_store(_WIDE)
_store_narrow = _streaming_store(_NARROW)


@intrinsic
def _store_plainly(_typing, target, source, size):  # type: ignore[no-untyped-def]
    """Copy bytes between addresses as C's memcpy does."""

    def generate(context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        pointer = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(address, pointer) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _wait_for_stores(_typing):  # type: ignore[no-untyped-def]
    """Complete the streaming stores before later ones, which another thread may read first."""

    def generate(context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled("void(int64, int64, int64)")
def _stream(target, source, size):  # type: ignore[no-untyped-def]
    """Copy bytes with streaming stores; `target` and `size` are multiples of 16."""
    end = target + size
    if target % _WIDE and target < end:
        _store_narrow(target, source)
        target += _NARROW
        source += _NARROW
    while target + _UNROLLED <= end:
        _store_wide(target, source)
        _store_wide(target + _WIDE, source + _WIDE)
        _store_wide(target + 2 * _WIDE, source + 2 * _WIDE)
        _store_wide(target + 3 * _WIDE, source + 3 * _WIDE)
        target += _UNROLLED
        source += _UNROLLED
    while target + _WIDE <= end:
        _store_wide(target, source)
        target += _WIDE
        source += _WIDE
    if target < end:
        _store_narrow(target, source)


@compiled("void(int64, int64[:,:], int64[::1], int64, int64)")
def gather(target, sources, strides, num_rows, row_bytes):  # type: ignore[no-untyped-def]
    """Copy pieces of equal size one behind the other; every address must be valid.

    Args:
        target: Address of the first piece's first byte.
        sources: Address of each piece's first byte, `(B, K)`.
        strides: Bytes from one row of a piece to the next, `(K,)`.
        num_rows: Rows of each piece.
        row_bytes: Bytes of each row; rows are written without gaps.
    """
    streams = target % _NARROW == 0 and row_bytes % _NARROW == 0
    for sample in range(sources.shape[0]):
        for piece in range(sources.shape[1]):
            source = sources[sample, piece]
            for _ in range(num_rows):
                if streams:
                    _stream(target, source, row_bytes)
                else:
                    _store_plainly(target, source, row_bytes)
                target += row_bytes
                source += strides[piece]
    _wait_for_stores()
