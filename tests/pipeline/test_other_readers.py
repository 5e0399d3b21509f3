"""What the field's own readers make of our shards; webdataset itself is in test_reader.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import manifest as manifests
from pipeline.arrays import NPY_START
from pipeline.reader import IndexedReader


@pytest.fixture(scope="module", params=["png", "webp", "jpg"])
def image_shards(
    request: pytest.FixtureRequest,
    image_tree: Path,
    make_shards: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out: Path = tmp_path_factory.mktemp("shards") / request.param
    make_shards(
        image_tree, out, codec=request.param.replace("jpg", "jpeg"), candidates="five", shard_mib=1
    )
    return out


def reader_of(folder: Path, split: str) -> IndexedReader:
    manifest = manifests.load(folder)
    return IndexedReader(folder, manifest, manifest.of_split(split))


def canvas_corner(reader: IndexedReader, index: int) -> Any:
    """Give the top left crop of the canvas, `(H, W, 3)`."""
    return reader.read(index).crops[0].transpose(1, 2, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_timm_reads_coded_canvases_as_on_any_webdataset(image_shards: Path) -> None:
    data = pytest.importorskip("timm.data", reason="timm is not in here")
    keys = "canvas.png;canvas.webp;canvas.jpg;jpg"  # timm looks what it has decoded up as jpg
    dataset = data.create_dataset(
        "wds/", root=str(image_shards), split="val", input_key=keys, num_samples=9
    )
    reader = reader_of(image_shards, "val")
    expected = {
        (canvas_corner(reader, index).tobytes(), reader.labels[index]) for index in range(9)
    }
    side = reader.manifest.spec.crop_size
    found = {(np.asarray(image)[:side, :side].tobytes(), int(label)) for image, label in dataset}
    assert found == expected


def test_dali_reads_canvases_by_the_index_beside_the_shards(five_shards: Path) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not in here")
    reader = reader_of(five_shards, "train")
    paths = [five_shards / shard.name for shard in reader.manifest.of_split("train")]
    side, crop = reader.manifest.spec.canvas_size, reader.manifest.spec.crop_size

    @dali.pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph() -> Any:
        return tuple(
            dali.fn.readers.webdataset(
                paths=[str(path) for path in paths],
                index_paths=[str(path.with_suffix(".idx")) for path in paths],
                ext=["canvas.npy", "cls"],
            )
        )

    pipe = graph()
    pipe.build()
    for index in range(len(reader)):
        canvas, label = (np.asarray(part.as_tensor())[0] for part in pipe.run())
        canvas_HWC = canvas[NPY_START:].reshape(side, side, 3)
        assert np.array_equal(canvas_HWC[:crop, :crop], canvas_corner(reader, index))
        assert int(label.tobytes()) == reader.labels[index]
