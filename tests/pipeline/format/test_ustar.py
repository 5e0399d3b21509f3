import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import ustar


@given(st.integers(0, 2**33 - 1))
def test_tar_headers_have_fixed_metadata_and_one_block(size: int) -> None:
    header = ustar.tar_header("c/key.small-glimpses.npy", size)
    assert len(header) == ustar.TAR_BLOCK
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (info.name, info.size) == ("c/key.small-glimpses.npy", size)
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
    assert (info.mode, info.type) == (0o644, tarfile.REGTYPE)
    assert (size + ustar.tar_padding(size)) % ustar.TAR_BLOCK == 0


@given(
    name=st.text("abc/-_.XYZ0123456789", min_size=1, max_size=100).filter(
        lambda name: not name.endswith("/")
    ),
    size=st.integers(0, 8**11 - 1),
)
def test_a_tar_header_is_the_one_that_tarfile_makes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert ustar.tar_header(name, size) == info.tobuf(format=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 1), ("a", 8**11)])
def test_what_does_not_fit_a_tar_header_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="does not fit a ustar header"):
        ustar.tar_header(name, size)


@given(st.lists(st.integers(0, 2**40), max_size=20))
def test_an_array_of_sizes_is_padded_as_each_of_them(sizes: list[int]) -> None:
    padded = ustar.tar_padding(np.array(sizes, np.int64))
    assert padded.tolist() == [ustar.tar_padding(size) for size in sizes]
