import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.checksum import NO_DIGEST, embed_sha256, verify_sha256


def sealed(rest: str) -> bytes:
    return embed_sha256(json.dumps({"digest": NO_DIGEST, "rest": rest}).encode(), "digest")


@given(rest=st.text(), data=st.data())
def test_a_sealed_file_passes_and_no_flipped_bit_does(rest: str, data: st.DataObject) -> None:
    whole = sealed(rest)
    verify_sha256(whole, "digest", within=len(whole))
    position = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    flipped = whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :]
    if b"digest" in flipped[:20]:  # else it is a file that never had one
        with pytest.raises(ValueError, match="SHA-256"):
            verify_sha256(flipped, "digest", within=len(flipped))


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place() -> None:
    whole = sealed(NO_DIGEST)  # which stands there once more
    digest = json.loads(whole)["digest"]
    with_zeros = whole.replace(digest.encode(), NO_DIGEST.encode())
    assert hashlib.sha256(with_zeros).hexdigest() == digest
    assert json.loads(whole)["rest"] == NO_DIGEST


def test_a_file_without_a_digest_where_it_should_lie_passes() -> None:
    verify_sha256(b'{"rest": 1}', "digest", within=100)
    damaged = sealed("x").replace(b"x", b"y")
    verify_sha256(b"{}" + damaged, "digest", within=2)
    with pytest.raises(ValueError, match="a SHA-256 of"):
        verify_sha256(damaged, "digest", within=len(damaged))
