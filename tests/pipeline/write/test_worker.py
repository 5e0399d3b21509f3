from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.decode.pillow import PillowDecoder
from pipeline.format.sample import PlannedShard
from pipeline.sources.image import SourceImage
from pipeline.write.place import FolderPlace
from pipeline.write.worker import Task, build_shard


@pytest.fixture
def task(jpeg: Any, canvas_shards: Path, tmp_path: Path) -> Task:
    """A shard of five images: the second is text, the fourth cannot be read."""
    from pipeline.format import manifest

    images = []
    for number in range(5):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(b"text" if number == 1 else jpeg(number))
        images.append(
            SourceImage(
                path=f"train/cat/{number}.jpg", split="train", class_name="cat",
                size=file.stat().st_size, file=str(file), offset=0,
            )
        )  # fmt: skip
    (tmp_path / "3.jpg").unlink()
    spec = manifest.load(canvas_shards).spec
    keys = tuple(f"cat/{number}" for number in range(5))
    return Task(
        FolderPlace(tmp_path, tmp_path), spec, 1,
        PlannedShard(split="train", index=0, keys=keys), tuple(images), ("cat",), 0,
    )  # fmt: skip


def read_all_first(self: PillowDecoder, files: Iterable[bytes]) -> Iterator[Any]:
    """Decode as a decoder that holds many images in flight."""
    yield from [result for data in list(files) for result in decode(self, [data])]


decode = PillowDecoder.decode


@pytest.mark.parametrize("how", [decode, read_all_first])
def test_every_image_is_a_sample_or_a_reject_in_order(
    how: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PillowDecoder, "decode", how)
    finished = build_shard(task)
    assert [sample.key for sample in finished.shard.samples] == ["cat/0", "cat/2", "cat/4"]
    assert [(reject.path, reject.reason) for reject in finished.rejects] == [
        ("train/cat/1.jpg", "not an image of a known format"),
        ("train/cat/3.jpg", "No such file or directory"),
    ]


def test_a_decoder_that_leaves_an_image_out_is_a_bug_and_no_smaller_data_set(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_but_the_last(self: PillowDecoder, files: Iterable[bytes]) -> Iterator[Any]:
        yield from [result for data in list(files) for result in decode(self, [data])][:-1]

    monkeypatch.setattr(PillowDecoder, "decode", all_but_the_last)
    with pytest.raises(RuntimeError, match=r"train-000000\.tar was neither written nor rejected"):
        build_shard(task)
