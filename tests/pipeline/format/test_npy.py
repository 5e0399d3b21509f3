import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import VerificationError
from pipeline.format.npy import decode_array, encode_array


@given(st.lists(st.integers(0, 5), max_size=4), st.integers(0, 255))
def test_arrays_come_back_as_they_were(shape: list[int], value: int) -> None:
    array = np.full(shape, value, np.uint8)
    decoded = decode_array(b"".join(encode_array(array)), "HERE")
    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("write", ["ours", "numpy's"])
def test_a_plain_header_is_read_without_pythons_parser_which_threads_trip_over(
    write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_arguments: Any) -> None:
        raise SystemError("AST constructor recursion depth mismatch (before=48, after=38)")

    for shape in ((), (3,), (0, 2), (5, 3, 224, 224)):
        array = np.full(shape, 7, np.uint8)
        data = b"".join(encode_array(array)) if write == "ours" else npy(array)
        with monkeypatch.context() as patched:
            patched.setattr("ast.literal_eval", trip)
            np.testing.assert_array_equal(decode_array(data, "HERE"), array)


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


class Bomb:
    """Would end the tests if it were unpickled."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        import os

        return os._exit, (99,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"text, and no array",
        npy(np.zeros(3, np.float32)),
        npy(np.zeros((3, 2), np.uint8, order="F")),
        npy(np.zeros(3, np.uint8))[:-1],
        npy(np.zeros(3, np.uint8)) + b"x",
        npy(np.array([Bomb()], dtype=object), allow_pickle=True),
    ],
)
def test_what_is_no_plain_uint8_array_is_refused_and_never_unpickled(data: bytes) -> None:
    with pytest.raises(VerificationError, match=r"C-ordered uint8 \.npy; got .* in HERE\."):
        decode_array(data, "HERE")
