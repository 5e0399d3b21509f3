"""What the field's own readers make of our shards, by their defaults."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pipeline.format import manifest as manifests
from pipeline.format.codecs import Codec, add_up, codec_of
from pipeline.format.npy import NPY_START
from pipeline.format.spec import CODECS
from pipeline.pixels import Pixels
from pipeline.read.reader import ShardReader

IMAGES = ("png", "webp", "jpeg")
SPLIT = "train"

# Of each sample: the bytes of the canvas's top left crop, and the label.
Found = set[tuple[bytes, int]]

# In a process of its own, since Ray leaves threads and handlers behind.
RAY = """
import json, sys
import numpy as np, ray
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
for name, suffix, side, *shards in json.loads(sys.argv[1]):
    for row in ray.data.read_webdataset(shards).iter_rows():
        canvas = row[suffix]
        is_array = isinstance(canvas, np.ndarray)
        data = np.ascontiguousarray(canvas[:side, :side]).tobytes() if is_array else canvas
        print("ROW", json.dumps([name, row["cls"], is_array, data.hex()]))
"""


class Built(NamedTuple):
    """Shards, and our own reader of them."""

    folder: Path
    codec: Codec
    reader: ShardReader

    def shards(self) -> list[Path]:
        return [self.folder / shard.name for shard in self.reader.manifest.of_split(SPLIT)]


@pytest.fixture(scope="module")
def all_built(
    image_tree: Path, make_shards: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Built]:
    """Shards of every codec."""
    every = {}
    for name in CODECS:
        out: Path = tmp_path_factory.mktemp("shards") / name
        make_shards(image_tree, out, codec=name, candidates="full+five", shard_mib=1)
        manifest = manifests.load(out)
        reader = ShardReader(out, manifest, manifest.of_split(SPLIT))
        every[name] = Built(out, codec_of(manifest.spec), reader)
    return every


@pytest.fixture(params=CODECS)
def built(request: pytest.FixtureRequest, all_built: dict[str, Built]) -> Built:
    return all_built[request.param]


def expected(reader: ShardReader) -> Found:
    samples = map(reader.read, range(len(reader)))
    found = {(sample.crops[1].transpose(1, 2, 0).tobytes(), sample.label) for sample in samples}
    assert len(found) == len(reader) == 18
    return found


def found_in(reader: ShardReader, rows: Iterable[tuple[Any, Any]]) -> Found:
    """Take rows of a whole canvas `(H, W, 3)` and a label."""
    side = reader.manifest.spec.crop_size
    return {(np.asarray(canvas)[:side, :side].tobytes(), int(label)) for canvas, label in rows}


def undone(codec: Codec, data: bytes, reader: ShardReader) -> Pixels:
    """Decode what a reader hands over as bytes."""
    side = reader.manifest.spec.canvas_size
    canvas_HWC = np.empty((side, side, 3), np.uint8)
    codec.decode_into(data, canvas_HWC)
    return canvas_HWC


def unfiltered(deltas_3HW: Pixels) -> Pixels:
    canvas_HWC = np.empty((*deltas_3HW.shape[1:], 3), np.uint8)
    add_up(deltas_3HW, canvas_HWC)
    return canvas_HWC


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves shards open
def test_webdataset_reads_every_codec_and_images_as_jpg_and_cls(
    built: Built,
) -> None:
    wds = pytest.importorskip("webdataset")
    _, codec, reader = built
    data = wds.WebDataset([str(path) for path in built.shards()], shardshuffle=False)
    if codec.name in IMAGES:
        rows: Iterator[tuple[Any, Any]] = iter(data.decode("pil").to_tuple("jpg;png;webp", "cls"))
    else:
        rows = iter(data.decode().to_tuple(codec.canvas_suffix, "cls"))
    if codec.name == "zstd":
        rows = ((undone(codec, canvas, reader), label) for canvas, label in rows)
    assert found_in(reader, rows) == expected(reader)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves shards open
def test_timm_reads_image_codecs_without_an_option_and_nothing_of_the_others(
    built: Built,
) -> None:
    data = pytest.importorskip("timm.data", reason="timm is not in here")
    _, codec, reader = built
    dataset = data.create_dataset("wds/", root=str(built.folder), split=SPLIT)
    found = found_in(reader, dataset)
    assert found == (expected(reader) if codec.name in IMAGES else set())


def test_hugging_faces_datasets_read_every_codec(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="needs the extra dev")
    _, codec, reader = built
    files = {SPLIT: [str(path) for path in built.shards()]}
    data = datasets.load_dataset(
        "webdataset", data_files=files, split=SPLIT, streaming=True, cache_dir=str(tmp_path)
    )
    rows = ((row[codec.canvas_suffix], row["cls"]) for row in data)
    if codec.name == "raw":
        rows = ((np.array(canvas, np.uint8), label) for canvas, label in rows)
    if codec.name == "zstd":  # datasets undoes Zstandard, not the filter
        arrays = ((np.load(io.BytesIO(data)), label) for data, label in rows)
        rows = ((unfiltered(deltas), label) for deltas, label in arrays)
    assert found_in(reader, rows) == expected(reader)


README = Path(__file__).resolve().parents[3] / "shards/README.md"
SNIPPETS = {
    name: next(
        snippet
        for snippet in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
        if "shards-png" in snippet and sign in snippet
    )
    for name, sign in {
        "webdataset": "import webdataset",
        "torchvision": "from torchvision",
        "timm": "from timm",
        "datasets": "from datasets",
        "nvidia.dali": "from nvidia",
        "ray": "import ray",
    }.items()
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves shards open
@pytest.mark.quick("webdataset", "datasets")
@pytest.mark.parametrize("name", [name for name in SNIPPETS if name != "ray"])
def test_the_formats_page_has_lines_for_each_reader_that_run(
    name: str, all_built: dict[str, Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name, reason=f"{name} is not in here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    png = all_built["png"]
    Path("shards-png").symlink_to(png.folder)
    names: dict[str, Any] = {}
    exec(compile(SNIPPETS[name], str(README), "exec"), names)  # noqa: S102 - our own page's text
    assert found_in(png.reader, names["rows"]) == expected(png.reader)


@pytest.mark.sweep  # Ray takes half a minute to start
@pytest.mark.timeout(300)
def test_the_formats_page_has_lines_for_ray_that_run(
    all_built: dict[str, Built], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra dev")
    png = all_built["png"]
    (tmp_path / "shards-png").symlink_to(png.folder)
    printing = "for canvas, label in rows: print('ROW', label, canvas.tobytes().hex())"
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run(
        [sys.executable, "-c", SNIPPETS["ray"] + printing],
        env=quiet, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    side = png.reader.manifest.spec.canvas_size
    lines = (line.split() for line in result.stdout.splitlines() if line.startswith("ROW "))
    rows = [
        (np.frombuffer(bytes.fromhex(text), np.uint8).reshape(side, side, 3), label)
        for _, label, text in lines
    ]
    assert found_in(png.reader, rows) == expected(png.reader)


@pytest.mark.sweep  # Ray takes half a minute to start
@pytest.mark.timeout(300)
def test_ray_reads_every_codec(all_built: dict[str, Built]) -> None:
    pytest.importorskip("ray", reason="needs the extra dev")
    asked = [
        [name, built.codec.canvas_suffix, built.reader.manifest.spec.crop_size]
        + [str(path) for path in built.shards()]
        for name, built in all_built.items()
    ]
    command = [sys.executable, "-c", RAY, json.dumps(asked)]
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found: dict[str, Found] = {name: set() for name in CODECS}
    for line in result.stdout.splitlines():
        if not line.startswith("ROW "):  # Ray's own
            continue
        name, label, is_array, text = json.loads(line[4:])
        _, codec, reader = all_built[name]
        data = bytes.fromhex(text)
        # Ray decodes the images whose suffixes it knows, WebP not among them.
        assert is_array == (name in ("raw", "png", "jpeg"))
        if not is_array:
            side = reader.manifest.spec.crop_size
            data = undone(codec, data, reader)[:side, :side].tobytes()
        found[name].add((data, label))
    assert found == {name: expected(built.reader) for name, built in all_built.items()}


def test_dali_reads_every_codec_by_the_index_beside_the_shards(
    built: Built,
) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not in here")
    _, codec, reader = built
    paths = built.shards()
    side = reader.manifest.spec.canvas_size

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph() -> Any:
        canvas, label = dali.fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=[codec.canvas_suffix, "cls"],
        )
        if codec.name in IMAGES:
            canvas = dali.fn.decoders.image(canvas, use_fast_idct=False)
        return canvas, label

    def rows() -> Iterator[tuple[Pixels, int]]:
        pipe = graph()
        pipe.build()
        for _ in range(len(reader)):
            canvas, label = (np.asarray(part.as_tensor())[0] for part in pipe.run())
            if codec.name == "raw":
                canvas = canvas[NPY_START:].reshape(side, side, 3)
            if codec.name == "zstd":
                canvas = undone(codec, canvas.tobytes(), reader)
            yield canvas, int(label.tobytes())

    assert found_in(reader, rows()) == expected(reader)


@pytest.mark.parametrize(("name", "suffix"), [("png", "png"), ("webp", "webp"), ("jpeg", "jpg")])
def test_an_image_codecs_canvas_is_an_image_file_to_any_program(
    name: str, suffix: str, all_built: dict[str, Built]
) -> None:
    built = all_built[name]
    key = built.reader.read(0).key
    with tarfile.open(built.shards()[0]) as tar:
        file = tar.extractfile(f"{key}.{suffix}")
        assert file
        with Image.open(io.BytesIO(file.read())) as image:
            assert image.size == (built.reader.manifest.spec.canvas_size,) * 2
