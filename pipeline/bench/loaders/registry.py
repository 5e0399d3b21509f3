"""The loaders that `srp-data bench load` measures, and their variants; plain data.

Kept apart from the loaders' files, which cannot be imported where their package is missing; a
missing loader is listed all the same.
"""

from dataclasses import dataclass

CROPS = "crops"
CANVASES = "canvases"
LIMIT = "limit"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table.

    Attributes:
        name: What the loader's file calls it.
        mode: What is handed over: `crops`, `canvases`, or `limit`, which is no loader.
        layout: What the loader's file writes; variants with the same layout share it.
        text: Description for the table; unique among the loader's variants.
    """

    name: str
    mode: str
    layout: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A package that loads, and how to get it.

    Attributes:
        name: Name of the file in `contenders/`, and in `--loader` and `--python`.
        package: The package whose version is reported; empty for srp's own.
        install: The command that installs it.
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


def memcpy_of(mode: str) -> str:
    """Name the limit of a mode: a copy of the same number of bytes."""
    return f"memcpy of {mode}"


_RAW = (_crops("crops", "canvas", "raw canvas"), _canvases("canvases", "canvas", "canvases"))

LOADERS = (
    Loader(
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
    Loader(
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
    Loader(
        name="dali",
        package="nvidia-dali-cuda130",
        install="pip install 'srp[dali]'",
        variants=(
            _crops("crops", "crops", "all crops"),
            _canvases("canvases", "canvas", "canvases"),
        ),
    ),
    Loader(name="spdl", package="spdl", install="pip install 'srp[bench]'", variants=_RAW),
    Loader(name="litdata", package="litdata", install="make bench-envs", variants=_RAW),
    Loader(name="grain", package="grain", install="pip install 'srp[bench]'", variants=_RAW),
    Loader(name="wids", package="wids", install="pip install 'srp[train,bench]'", variants=_RAW),
    Loader(name="mosaicml", package="mosaicml-streaming", install="make bench-envs", variants=_RAW),
    Loader(
        name="webdataset",
        package="webdataset",
        install="pip install 'srp[train]'",  # it has webdataset; its loader is torch's
        variants=(
            _crops("stock", "crops", "stock, all crops"),
            _crops("tuned", "canvas", "tuned, raw canvas"),
            _canvases("tuned", "canvas", "tuned, canvases"),
        ),
    ),
    Loader(
        name="torchvision",
        package="torchvision",
        install="pip install 'srp[train]'",
        variants=(
            _crops("once", "files", "on the fly, resized once"),
            _crops("twice", "files", "on the fly, as the predecessor"),
        ),
        needs_files=True,
    ),
    Loader(
        name="limits",
        package="",
        install="",
        variants=(_limit(memcpy_of(CROPS)), _limit(memcpy_of(CANVASES)), _limit("cat")),
    ),
)
NAMES = tuple(loader.name for loader in LOADERS)
REFERENCE = ("ffcv", "as installed")
"""The loader and its variant that the others of the same mode are compared with."""
