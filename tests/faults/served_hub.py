"""The stand-in for the Hub as a test meets it: served, and what a request may meet."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hub import WRITER, Fault, Hub, Refusal, Request
from served import NO_REMOTE, serving, wait_for_half

from pipeline.remote import backends, objects, remote_file


def answer_with(
    status: int, method: str, pattern: str, times: int, message: str = "", **headers: str
) -> Fault:
    """Refuse so many requests whose path has a pattern."""
    left = [times]

    def fault(request: Request) -> bool:
        if not left[0] or request.command != method or not re.search(pattern, request.path):
            return False
        left[0] -= 1
        request.close_connection = True  # its body was not read
        request.refuse(Refusal(status, message, **headers))
        return True

    return fault


def fall_silent(request: Request, pattern: str, hung: threading.Event) -> bool:
    """Read half of what is put, and do nothing more until the client is gone."""
    if request.command != "PUT" or not re.search(pattern, request.path):
        return False
    wait_for_half(request, hung)
    return True


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with an empty dataset `me/mine`, and a token that may write it."""
    constants: Any = pytest.importorskip("huggingface_hub.constants", reason=NO_REMOTE)
    http: Any = pytest.importorskip("huggingface_hub.utils._http", reason=NO_REMOTE)
    hub = Hub()
    use_endpoint(hub.endpoint, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    monkeypatch.setattr(remote_file, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(objects, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(backends, "CONFLICT_WAIT_S", 0.01)
    with serving(hub.server):
        try:
            yield hub
        finally:
            remote_file._filesystem.cache_clear()
            http.close_session()


def use_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, and those that it starts, take an address for the Hub's."""
    constants: Any = pytest.importorskip("huggingface_hub.constants", reason=NO_REMOTE)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)  # read when it was imported
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    remote_file._filesystem.cache_clear()
