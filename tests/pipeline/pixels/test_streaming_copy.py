import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pixels.streaming_copy import gather


@given(
    num_pieces=st.integers(0, 5),
    num_rows=st.integers(1, 6),
    row_bytes=st.one_of(st.integers(1, 700), st.integers(1, 40).map(lambda n: 16 * n)),
    gap=st.integers(0, 50),
    shift=st.sampled_from([0, 16, 32, 48, 1, 7]),
    seed=st.integers(0, 99),
)
def test_pieces_lie_one_behind_the_other_and_nothing_else_is_touched(
    num_pieces: int, num_rows: int, row_bytes: int, gap: int, shift: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    strides = row_bytes + gap + np.arange(num_pieces)
    memory = rng.integers(0, 256, num_rows * (strides[-1] if num_pieces else 0) + 1000, np.uint8)
    starts = rng.integers(0, 1000 - gap - num_pieces, (2, num_pieces))
    size = starts.size * num_rows * row_bytes
    block = np.full(size + 256, 99, np.uint8)
    first = -block.ctypes.data % 64 + shift
    gather(
        block.ctypes.data + first,
        memory.ctypes.data + starts,
        strides,
        num_rows,
        row_bytes,
    )
    expected = [
        memory[start + row * stride :][:row_bytes]
        for starts_K in starts
        for start, stride in zip(starts_K, strides, strict=True)
        for row in range(num_rows)
    ]
    found = block[first : first + size]
    assert found.tobytes() == b"".join(part.tobytes() for part in expected)
    assert (block[:first] == 99).all()
    assert (block[first + size :] == 99).all()
