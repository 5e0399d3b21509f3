import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bench.loaders.export import copy_files, export_images
from pipeline.bench.loaders.process import run_child
from pipeline.bench.loaders.protocol import Answer, Batch, Images, Task, digests
from pipeline.bench.loaders.registry import CANVASES, CROPS, LOADERS, Loader, Variant
from pipeline.common.progress import SILENT
from pipeline.stream.folder import ShardFolder

REPO = Path(__file__).resolve().parents[4]
NUM_IMAGES = 18
MODULES = {
    "ours": "pipeline",
    "limits": "pipeline",
    "dali": "nvidia.dali",
    "mosaicml": "streaming",
}
VARIANTS = [
    pytest.param(loader, variant, id=f"{loader.name} {variant.name} {variant.mode}")
    for loader in LOADERS
    for variant in loader.variants
]


def is_here(name: str) -> bool:
    parent = name.partition(".")[0]
    return find_spec(parent) is not None and find_spec(name) is not None


@pytest.fixture(scope="module")
def images(five_shards: Path, image_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The images of the shards as loaders are given them."""
    folder = tmp_path_factory.mktemp("loaders") / "images"
    shards = ShardFolder.open(five_shards)
    origins = export_images(shards, folder, num_images=NUM_IMAGES)
    copy_files(image_tree, origins, folder, SILENT)
    return Images(folder, shards.crop_layout.boxes)


def task_for(loader: Loader, variant: Variant, images: Images, out: Path, **options: Any) -> Task:
    fields: dict[str, Any] = {
        "action": "turn",
        "loader": loader.name,
        "package": loader.package,
        "variant": variant.name,
        "mode": variant.mode,
        "layout": variant.layout,
        "images": str(images.folder),
        "out": str(out),
        "workers": 2,
        "batch_size": 4,  # the last batch has two
        "seconds": 0.001,
        "boxes": images.boxes,
    }
    return Task(**{**fields, **options})


# One of each kind of loader; those that import torch take ten seconds to start.
@pytest.mark.quick(
    "ours numpy crops",
    "ours compiled canvases",
    "dali crops crops",
    "spdl canvases canvases",
    "grain crops crops",
    "limits memcpy of crops limit",
    "limits cat limit",
)
@pytest.mark.parametrize(("loader", "variant"), VARIANTS)
def test_each_loader_hands_over_what_it_was_given(
    loader: Loader, variant: Variant, images: Images, tmp_path: Path
) -> None:
    if not is_here(MODULES.get(loader.name, loader.name)):
        pytest.skip(f"{loader.name} is not installed here")
    out = tmp_path / "layout"
    task = task_for(loader, variant, images, out)
    built = run_child(
        Path(sys.executable), task_for(loader, variant, images, out, action="build"),
        scratch=tmp_path,
    )  # fmt: skip
    assert built.problem is None
    assert built.num_bytes
    assert built.build_s
    answer = run_child(Path(sys.executable), task, scratch=tmp_path)
    assert answer.problem is None
    assert answer.rate
    assert answer.first_batch_s
    assert answer.import_s
    assert answer.version or not loader.package


def test_a_loader_that_cannot_be_imported_says_so(images: Images, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    task = task_for(LOADERS[0], LOADERS[0].variants[0], images, tmp_path)
    task = replace(task, loader="none")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.bench.loaders.child"],
        input=task.to_json(), capture_output=True, text=True, env=env, check=True,
    )  # fmt: skip
    answer = Answer(**json.loads(done.stdout))
    assert answer.missing == "pipeline.bench.loaders.contenders.none"
    assert answer.rate is None


@pytest.mark.parametrize("mode", [CROPS, CANVASES])
def test_the_expected_sums_depend_on_each_pixel_and_its_place_but_not_on_the_order(
    mode: str, images: Images
) -> None:
    def batch(order: list[int]) -> Batch:
        pixels = np.stack(
            [images.crops(i) if mode == CROPS else np.array(images.canvases[i]) for i in order]
        )
        return Batch(pixels, np.array(images.glimpses[order]), images.labels[order])

    order = list(range(NUM_IMAGES))
    expected = np.load(images.folder / f"expected-{mode}.npy")
    assert (digests([batch(order[::-1])]) == expected).all()
    turned, swapped, labelled = batch(order), batch(order), batch(order)
    turned.pixels[3] = turned.pixels[3][..., ::-1].copy()
    swapped.glimpses[[0, 1]] = swapped.glimpses[[1, 0]]
    labelled.labels[0] += 1
    for wrong in (turned, swapped, labelled):
        assert (digests([wrong]) != expected).any()


def test_the_registry_names_each_file_and_no_row_twice() -> None:
    names = [(loader.name, variant.text) for loader in LOADERS for variant in loader.variants]
    assert len(set(names)) == len(names)
    for loader in LOADERS:
        assert (REPO / f"pipeline/bench/loaders/contenders/{loader.name}.py").is_file()
        assert loader.install or not loader.package
