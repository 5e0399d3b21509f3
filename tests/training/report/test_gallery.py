"""The images of a page are picked by a rule, and show what the logits say."""

import base64
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline import ShardFolder
from training.report.gallery import (
    JPEG_QUALITY,
    NUM_DRAWN,
    NUM_REGRETTED,
    PICTURE_PX,
    Gallery,
    Place,
    make_gallery,
    pick_rows,
)
from training.report.html import data_uri
from training.score.crop_logits import CropLogits
from training.study.finished import FinishedRun

MakeRun = Callable[..., FinishedRun]


def logits_of(run: FinishedRun) -> CropLogits:
    assert run.logits is not None
    return run.logits


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> FinishedRun:
    return make_run("expected-s0", policy="expected", seed=0, accuracy=0.5)


def gallery_of(run: FinishedRun, opened: ShardFolder, **numbers: int) -> Gallery:
    logits = logits_of(run)
    rows = pick_rows(opened.reader("val").keys, logits, **numbers)
    return make_gallery(run, logits, opened, rows=rows, maps_BMN=None)


def test_the_images_are_the_first_by_the_hash_of_their_keys_then_the_largest_regrets(
    run: FinishedRun, opened: ShardFolder
) -> None:
    keys, logits = opened.reader("val").keys, logits_of(run)
    rows = pick_rows(keys, logits, num_drawn=5, num_regretted=4)
    by_hash = sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    assert [keys[row] for row in rows.drawn] == by_hash[:5]
    confidence_NK = logits.logits_NKC.softmax(2)[range(len(keys)), :, logits.labels_N]
    regret_N = confidence_NK.amax(1) - confidence_NK[range(len(keys)), logits.chosen_N]
    assert sorted(rows.regretted) == sorted(regret_N.argsort(descending=True)[:4].tolist())
    assert rows.all[:5] == rows.drawn
    assert set(rows.all) == {*rows.drawn, *rows.regretted}
    assert len(set(rows.all)) == len(rows.all)


def test_other_logits_and_another_order_draw_the_same_images(
    run: FinishedRun, make_run: MakeRun, opened: ShardFolder
) -> None:
    keys, other = opened.reader("val").keys, make_run("blend-s1", policy="blend", seed=1)
    drawn = {keys[row] for row in pick_rows(keys, logits_of(run), num_drawn=7).drawn}
    turned = keys[::-1]
    assert {turned[row] for row in pick_rows(turned, logits_of(other), num_drawn=7).drawn} == drawn


def test_without_any_regret_no_image_is_said_to_have_one(
    run: FinishedRun, opened: ShardFolder
) -> None:
    logits = logits_of(run)
    best_NK = logits.losses_NK.argmin(1, True)
    choice_NK = logits.probabilities_NK.new_zeros(best_NK.shape[0], 6).scatter(1, best_NK, 1)
    perfect = replace(logits, probabilities_NK=choice_NK)
    assert pick_rows(opened.reader("val").keys, perfect).regretted == ()


def test_each_image_shows_what_the_logits_say_of_each_crop(
    run: FinishedRun, opened: ShardFolder
) -> None:
    keys, logits = opened.reader("val").keys, logits_of(run)
    gallery = gallery_of(run, opened)
    assert len(gallery.images) == 29
    for image in gallery.images:
        row = keys.index(image.key)
        label = int(logits.labels_N[row])
        confidences = logits.logits_NKC[row].softmax(1)[:, image.label]
        assert [crop.probability for crop in image.crops] == logits.probabilities_NK[row].tolist()
        assert [crop.confidence for crop in image.crops] == confidences.tolist()
        assert image.chosen == int(logits.chosen_N[row])
        assert image.best == int(confidences.argmax())
        assert image.regret >= 0
        assert (image.regret == 0) == (image.best == image.chosen)
        names = opened.manifest.class_names
        seen = [names.index(crop.predicted_name) for crop in image.crops]
        assert seen == logits.predicted_NK[row].tolist()
        assert image.true_name == names[image.label]
        assert label in range(len(names))
    assert sum(count for *_, count in gallery.classes) == 29
    assert gallery.num_right == sum(image.choice.is_right for image in gallery.images)


def test_a_gallery_shows_the_crops_that_its_run_had(make_run: MakeRun, opened: ShardFolder) -> None:
    run = make_run("blend-s0", policy="blend", seed=0, candidates="centre,top-left")
    logits = logits_of(run)
    few = replace(
        logits,
        probabilities_NK=logits.probabilities_NK[:, :2],
        logits_NKC=logits.logits_NKC[:, :2],
    )
    gallery = gallery_of(replace(run, logits=few), opened, num_drawn=1, num_regretted=0)
    (image,) = gallery.images
    assert [crop.name for crop in image.crops] == ["centre", "top-left"]
    layout = opened.crop_layout
    boxes = [layout.normalised()[layout.names.index(name)] for name in ("centre", "top-left")]
    assert gallery.places == tuple(Place.of(box) for box in boxes)


def test_a_crop_is_cut_from_the_picture_by_its_background() -> None:
    assert Place.of((0, 0, 1, 1)).background == (
        "background-size: 100% 100%; background-position: 0% 0%"
    )
    assert Place.of((0.25, 0, 0.75, 0.5)).background == (
        "background-size: 200% 200%; background-position: 50% 0%"
    )
    assert Place.of((2 / 3, 0, 1, 1)).background == (
        "background-size: 300% 100%; background-position: 100% 0%"
    )


def test_the_pictures_are_whole_jpegs_of_the_canvases(
    run: FinishedRun, opened: ShardFolder
) -> None:
    for image in gallery_of(run, opened).images:
        assert re.match(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+$", image.picture)
        picture = Image.open(io.BytesIO(base64.b64decode(image.picture.partition(",")[2])))
        assert np.asarray(picture).shape == (48, 48, 3)


def test_even_pictures_of_noise_keep_a_page_below_three_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8)
    largest = len(data_uri(Image.fromarray(noise), "JPEG", quality=JPEG_QUALITY))
    assert (NUM_DRAWN + NUM_REGRETTED) * largest < 2.3e6
