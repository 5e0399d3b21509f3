from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import ConfigError
from pipeline.remote.address import RemoteFolder, parse_address, spelled


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("shards", "shards"),
        ("/data/my shards", "/data/my shards"),
        ("./odd:name", "odd:name"),
        ("a/b::c", "a/b::c"),
        ("file:///data/shards", "/data/shards"),
        ("file:///data/my%20shards", "/data/my shards"),
        ("file://localhost/data", "/data"),
    ],
)
def test_paths_and_file_addresses_are_folders_of_this_machine(text: str, path: str) -> None:
    assert parse_address(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "scheme", "located"),
    [
        ("http://host:80/a/b/", "http", "http://host:80/a/b/t.tar"),
        ("https://host", "https", "https://host/t.tar"),
        ("HTTPS://host/a", "https", "https://host/a/t.tar"),
        ("s3://bucket/a b".replace(" ", "-"), "s3", "s3://bucket/a-b/t.tar"),
        ("gs://bucket", "gs", "gs://bucket/t.tar"),
        ("hf://datasets/me/mine/a", "hf", "hf://datasets/me/mine/a/t.tar"),
    ],
)
def test_addresses_of_the_list_are_taken(text: str, scheme: str, located: str) -> None:
    folder = parse_address(text)
    assert isinstance(folder, RemoteFolder)
    assert folder.scheme == scheme
    assert folder.locate("t.tar") == located


def test_a_name_is_quoted_where_an_address_would_read_it_otherwise() -> None:
    folder = parse_address("http://host/a")
    assert isinstance(folder, RemoteFolder)
    assert folder.locate("a#b?c.tar") == "http://host/a/a%23b%3Fc.tar"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("pipe:cat /etc/passwd", "the scheme pipe:"),
        ("pipe://cat", "the scheme pipe:"),
        ("PIPE:cat", "the scheme pipe:"),
        ("simplecache::s3://bucket/a", "a chain of addresses"),
        ("s3://bucket/a::file:///etc", "a chain of addresses"),
        ("zip://a.tar::http://host/a.zip", "a chain of addresses"),
        ("github://org:repo@main/a", "the scheme github:"),
        ("reference://", "the scheme reference:"),
        ("ftp://host/a", "the scheme ftp:"),
        ("gcs://bucket/a", "the scheme gcs:"),
        ("local:///a", "the scheme local:"),
        ("memory://a", "the scheme memory:"),
        ("http:/host/a", "the scheme http:"),
        ("file:a", "the scheme file:"),
        ("file://host/a", "a file address that is not an absolute path"),
        ("file://", "a file address that is not an absolute path"),
        ("http:///a", "no host or bucket"),
        ("http://[::1/a", "a chain of addresses"),
        ("http://[1/a", "no host or bucket"),
        ("s3://", "no host or bucket"),
        ("https://host/a?sig=1", "a query or a fragment"),
        ("https://host/a#b", "a query or a fragment"),
        ("https://host/a b", "a space or a control character"),
        ("https://host/a\nb", "a space or a control character"),
        ("", "no path"),
    ],
)
def test_every_other_address_is_refused_with_the_rule_and_the_fix(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("shards must be in a folder, or at an address of file, http,")
    assert f"got {what}" in message
    assert message.endswith("a path with a colon needs ./ before it.")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"got credentials in 'https://\.\.\.@host'") as caught:
        parse_address("https://me:secret@host/a")
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_whatever_is_typed_is_a_path_or_an_address_of_the_list_or_refused(text: str) -> None:
    try:
        place = parse_address(text)
    except ConfigError:
        return
    if isinstance(place, RemoteFolder):
        assert place.address.startswith(("http://", "https://", "s3://", "gs://", "hf://"))
        assert "::" not in place.address


@pytest.mark.parametrize("path", ["shards", "my:shards", "s3:/a", "/data/a:b", "./a", "a/b::c"])
def test_a_path_is_spelt_so_that_it_is_read_as_one(path: str) -> None:
    assert parse_address(spelled(Path(path))) == Path(path)
