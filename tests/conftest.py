"""What the tests share: drawn images, shards made of them, and the reference they must equal."""

import io
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import settings
from PIL import Image, features

from pipeline.build.build import BuildResult, build_shards
from pipeline.build.config import BuildConfig
from pipeline.cli.main import main
from pipeline.engines import local
from pipeline.format.spec import CODECS
from pipeline.pixels import Pixels

REPO = Path(__file__).resolve().parents[1]
REAL_ARCHIVE = REPO.parent / "shared/data/imagenette2-224.tgz"

SIZES = {"canvas_size": 168, "crop_size": 112, "glimpse_size": 32}
CLASSES = ("cat", "dog", "emu")
PER_CLASS = {"train": 6, "val": 3}

# A test has no stopwatch, and the same examples run everywhere.
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=20)
settings.register_profile("all", settings.get_profile("quick"), max_examples=100)
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as a sweep each case that the mark `quick` of its test does not keep."""
    num_seen: Counter[str] = Counter()
    for item in items:
        quick = item.get_closest_marker("quick")
        if quick is None:
            continue
        test = item.nodeid.partition("[")[0]
        is_kept = (
            num_seen[test] % quick.kwargs["every"] == 0
            if "every" in quick.kwargs
            else item.callspec.id in quick.args
        )
        num_seen[test] += 1
        if not is_kept:
            item.add_marker("sweep")


@pytest.fixture(scope="session", autouse=True)
def _workers_know_pytest() -> Iterator[None]:
    """Let builds' workers, some of which run a test's function, be forked from where pytest is."""
    start = local.start_server
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "start_server", lambda modules: start((*modules, "pytest")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_disk() -> Iterator[None]:
    """Let fsync return at once in this process: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let Ctrl-C reach the tests where a shell runs them in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


Encode = Callable[..., bytes]
MakeShards = Callable[..., BuildResult]
Reference = Callable[..., tuple[Pixels, Pixels]]
SrpData = Callable[..., Result]


def draw(seed: int, *, width: int, height: int) -> Image.Image:
    """Smooth colours with some noise: a picture that JPEG, resizing and gray all change."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype("u1"))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Give an image file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_tree(root: Path) -> Path:
    """Write a small data set: real JPEGs of many sizes, shapes, qualities and colour modes."""
    seed = 0
    for split, count in PER_CLASS.items():
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed += 1
                image = draw(seed, width=40 + seed * 37 % 300, height=30 + seed * 53 % 300)
                mode = ("RGB", "RGB", "L", "CMYK")[seed % 4]
                options = {"quality": 60 + seed % 40, "progressive": seed % 3 == 0}
                data = encode(image.convert(mode), **options)
                (folder / f"{name}_{index:03d}.JPEG").write_bytes(data)
    return root


@pytest.fixture(scope="session")
def jpeg() -> Encode:
    """Give the bytes of a drawn image: `jpeg(seed, width=..., height=..., kind="PNG")`."""

    def make(
        seed: int, *, width: int = 60, height: int = 40, kind: str = "JPEG", **options: Any
    ) -> bytes:
        return encode(draw(seed, width=width, height=height), kind, **options)

    return make


@pytest.fixture(scope="session")
def image_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 27 images: 18 in train/ and 9 in val/, in three classes. Leave it as it is."""
    return write_tree(tmp_path_factory.mktemp("source") / "images")


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """The same, for a test that changes it."""
    return write_tree(tmp_path / "images")


@pytest.fixture(scope="session")
def image_archive(image_tree: Path) -> Path:
    """The same as a .tgz, with a root folder and a stray file in it."""
    archive = image_tree.with_name("images.tgz")
    with tarfile.open(archive, "w:gz") as tar:
        note = tarfile.TarInfo("images/README.csv")
        note.size = 5
        tar.addfile(note, io.BytesIO(b"a,b,c"))
        tar.add(image_tree, "images")
    return archive


@pytest.fixture(scope="session")
def make_shards() -> MakeShards:
    """Build shards with small defaults: `make_shards(source, out, layout="tensors")`."""

    def make(source: Path, out: Path, **options: Any) -> BuildResult:
        config = BuildConfig(source=source, out=out, **{"workers": 1, **SIZES, **options})
        return build_shards(config)

    return make


@pytest.fixture(scope="session")
def canvas_shards(
    image_tree: Path, make_shards: MakeShards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Shards in the canvas layout with the whole image among the candidates. Only read them."""
    out = tmp_path_factory.mktemp("shards") / "canvas"
    make_shards(image_tree, out, layout="canvas", candidates="full+five", shard_mib=1)
    return out


@pytest.fixture(scope="session")
def tensor_shards(
    image_tree: Path, make_shards: MakeShards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same samples in the tensors layout. Only read them."""
    out = tmp_path_factory.mktemp("shards") / "tensors"
    make_shards(image_tree, out, layout="tensors", candidates="full+five", shard_mib=1)
    return out


@pytest.fixture(scope="session")
def zstd_shards(
    image_tree: Path, make_shards: MakeShards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same samples with compressed canvases. Only read them."""
    out = tmp_path_factory.mktemp("shards") / "zstd"
    make_shards(image_tree, out, codec="zstd", candidates="full+five", shard_mib=1)
    return out


@pytest.fixture(scope="session")
def five_shards(
    image_tree: Path, make_shards: MakeShards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Shards in the canvas layout with the five crops alone. Only read them."""
    out = tmp_path_factory.mktemp("shards") / "five"
    make_shards(image_tree, out, layout="canvas", candidates="five", shard_mib=1)
    return out


@pytest.fixture(params=["canvas_shards", "tensor_shards", "zstd_shards"])
def shards(request: pytest.FixtureRequest) -> Path:
    """Each layout in turn, and one that is decoded. Only read them."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session", params=[codec for codec in CODECS if codec != "raw"])
def codec_shards(
    request: pytest.FixtureRequest,
    image_tree: Path,
    make_shards: MakeShards,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Each codec but raw in turn, all candidates. Only read them."""
    if request.param == "zstd":
        folder: Path = request.getfixturevalue("zstd_shards")
        return folder
    if request.param == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    out = tmp_path_factory.mktemp("shards") / str(request.param)
    make_shards(image_tree, out, codec=request.param, candidates="full+five", shard_mib=1)
    return out


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """The real Imagenette."""
    if not REAL_ARCHIVE.exists():
        pytest.skip("needs real photos: ../shared/data/imagenette2-224.tgz is not there")
    return REAL_ARCHIVE


@pytest.fixture(scope="session")
def real_jpegs(real_archive: Path) -> list[bytes]:
    """A few photos of Imagenette, not yet decoded."""
    return list(_read_some(real_archive, every=40, count=12))


def _read_some(archive: Path, *, every: int, count: int) -> Iterator[bytes]:
    with tarfile.open(archive, "r|gz") as tar:
        seen = 0
        for member in tar:
            if not member.name.endswith(".JPEG"):
                continue
            seen += 1
            file = tar.extractfile(member) if seen % every == 0 else None
            if file:
                yield file.read()
            if seen == every * count:
                return


@pytest.fixture(scope="session")
def torchvision_views() -> Reference:
    """Cut crops and glimpses as torchvision does on a PIL image.

    Returns originals `(5, 3, c, c)` and padded glimpses `(5, 1, c, c)`.
    """
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="the reference is torchvision, which is not in here"
    )
    FiveCrop, Grayscale = transforms.FiveCrop, transforms.Grayscale
    Pad, Resize = transforms.Pad, transforms.Resize

    def make(
        image: Image.Image, *, canvas_size: int, crop_size: int, glimpse_size: int
    ) -> tuple[Pixels, Pixels]:
        crops = FiveCrop(crop_size)(Resize((canvas_size, canvas_size))(image))
        missing = crop_size - glimpse_size
        glimpses = [
            Pad((0, 0, missing, missing))(Grayscale()(Resize((glimpse_size, glimpse_size))(crop)))
            for crop in crops
        ]
        return (
            np.stack([np.asarray(crop).transpose(2, 0, 1) for crop in crops]),
            np.stack([np.asarray(glimpse)[None] for glimpse in glimpses]),
        )

    return make


@pytest.fixture(scope="session")
def srp_data() -> SrpData:
    """Run `srp-data` with these arguments; whatever it ends in, it is not a traceback."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        assert "Traceback" not in result.output
        return result

    return run
