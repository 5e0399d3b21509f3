"""Who is measured by `srp-data bench load`, and in which variants; plain data.

Kept apart from the peers' files, since those cannot be imported where their package is missing,
and a peer that is missing is named all the same.
"""

from dataclasses import dataclass

CROPS = "crops"
CANVASES = "canvases"
LIMIT = "limit"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        name: Known to the peer's file.
        mode: What is handed over: `crops`, `canvases`, or `limit`, which is no loader.
        layout: Known to the peer's file; variants with the same one share what is built.
        text: Says what is done, for the table; no other variant of the peer has it.
    """

    name: str
    mode: str
    layout: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package, and how to get it.

    Attributes:
        name: Of the file in this folder, and for `--peer` and `--python`.
        package: Whose version is told; empty for what is srp's own.
        install: The command that brings it.
        variants: In the order of the table.
        needs_files: Whether it reads the original images.
    """

    name: str
    package: str
    install: str
    variants: tuple[Variant, ...]
    needs_files: bool = False


def _crops(name: str, layout: str, text: str) -> Variant:
    return Variant(name=name, mode=CROPS, layout=layout, text=text)


def _canvases(name: str, layout: str, text: str) -> Variant:
    return Variant(name=name, mode=CANVASES, layout=layout, text=text)


def _limit(name: str) -> Variant:
    return Variant(name=name, mode=LIMIT, layout="raw", text=name)


_RAW = (_crops("crops", "canvas", "raw canvas"), _canvases("canvases", "canvas", "canvases"))

PEERS = (
    Peer(
        name="ours",
        package="",
        install="pip install .",
        variants=(
            _crops("numpy", "raw", "raw shards"),
            _crops("compiled", "raw", "raw shards, compiled copies"),
            _crops("compiled", "zstd", "zstd shards, compiled copies"),
            _crops("stream", "raw", "streamed raw shards, one process"),
            _canvases("numpy", "raw", "raw shards, canvases"),
            _canvases("compiled", "raw", "raw shards, canvases, compiled copies"),
            _canvases("numpy", "zstd", "zstd shards, canvases"),
        ),
    ),
    Peer(
        name="ffcv",
        package="ffcv",
        install="make bench-envs",
        variants=(
            _crops("as installed", "crops", "as installed, all crops"),
            _crops("patched", "crops", "patched, all crops"),
            _crops("fused", "canvas", "with our fused crops, raw canvas"),
            _canvases("as installed", "canvas", "as installed, canvases"),
            _canvases("patched", "canvas", "patched, canvases"),
        ),
    ),
    Peer(
        name="dali",
        package="nvidia-dali-cuda130",
        install="pip install 'srp[dali]'",
        variants=(
            _crops("crops", "crops", "all crops"),
            _canvases("canvases", "canvas", "canvases"),
        ),
    ),
    Peer(name="spdl", package="spdl", install="pip install 'srp[bench]'", variants=_RAW),
    Peer(name="litdata", package="litdata", install="make bench-envs", variants=_RAW),
    Peer(name="grain", package="grain", install="pip install 'srp[bench]'", variants=_RAW),
    Peer(name="wids", package="wids", install="pip install 'srp[train,bench]'", variants=_RAW),
    Peer(name="mosaicml", package="mosaicml-streaming", install="make bench-envs", variants=_RAW),
    Peer(
        name="webdataset",
        package="webdataset",
        install="pip install 'srp[train]'",  # it has webdataset; its loader is torch's
        variants=(
            _crops("stock", "crops", "stock, all crops"),
            _crops("tuned", "canvas", "tuned, raw canvas"),
            _canvases("tuned", "canvas", "tuned, canvases"),
        ),
    ),
    Peer(
        name="torchvision",
        package="torchvision",
        install="pip install 'srp[train]'",
        variants=(
            _crops("once", "files", "on the fly, resized once"),
            _crops("twice", "files", "on the fly, as the predecessor"),
        ),
        needs_files=True,
    ),
    Peer(
        name="limits",
        package="",
        install="",
        variants=(_limit("memcpy of crops"), _limit("memcpy of canvases"), _limit("cat")),
    ),
)
NAMES = tuple(peer.name for peer in PEERS)
REFERENCE = ("ffcv", "as installed")
"""Peer and variant that the others of the same mode are compared with."""
