"""A real web server for what is read over the network; it misbehaves on request."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Web, web_server


@pytest.fixture
def web(canvas_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The canvas shards on a web server of this machine; waits between tries take no time."""
    with web_server(canvas_shards, monkeypatch) as served:
        yield served
