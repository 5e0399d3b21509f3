import asyncio

import pytest

pytest.importorskip("aiohttp", reason="needs the extra remote, which is not installed")

from yarl import URL

from pipeline.redirects import _is_inner


@pytest.mark.parametrize(
    ("host", "is_inner"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),  # noqa: S104 - asked about, not listened on
        ("[::1]", True),
        ("[fe80::1]", True),
        ("[fd00::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("2130706433", True),
        ("8.8.8.8", False),
        ("[2606:4700::1111]", False),
    ],
)
def test_this_machine_and_private_networks_are_told_from_the_rest(
    host: str, is_inner: bool
) -> None:
    assert asyncio.run(_is_inner(URL(f"http://{host}:80/a"))) == is_inner
