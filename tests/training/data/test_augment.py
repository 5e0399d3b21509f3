from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import cutting
from pipeline.format.crops import place_crops
from pipeline.pixels import Pixels
from pipeline.pixels.resize import resize
from training.data import augment
from training.data.shards import Batch

PLAN = place_crops("full+five", canvas_px=48, crop_px=32)
ALL = tuple(range(len(PLAN)))


def views_of(canvas: Pixels) -> augment.Views:
    """Cut one canvas as the pipeline does."""
    originals = cutting.original_crops(canvas, cutting.resized_crops(canvas, PLAN), PLAN, ALL)
    return augment.Views(
        torch.from_numpy(np.stack(originals).transpose(0, 2, 3, 1).copy())[None],
        torch.from_numpy(cutting.glimpses(originals, 16)[:, 0])[None],
    )


def smooth_canvas(seed: int, side_px: int = 48) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return resize(coarse, side_px)


def draws_of(flips: list[bool], vflips: list[bool], *, shift: int = 0) -> augment.Draws:
    shifts = torch.full((len(flips), 2), shift, dtype=torch.int64)
    return augment.Draws(torch.tensor(flips), torch.tensor(vflips), shifts)


def test_left_and_right_crops_change_places_and_so_do_those_above_and_below() -> None:
    mirrored = augment.mirrored_candidates(PLAN, ALL)
    across, down, both = (
        {PLAN.names[k]: PLAN.names[image] for k, image in enumerate(places)} for places in mirrored
    )
    assert both == {name: across[down[name]] for name in PLAN.names}
    assert down == {
        "full": "full",
        "top-left": "bottom-left",
        "top-right": "bottom-right",
        "bottom-left": "top-left",
        "bottom-right": "top-right",
        "centre": "centre",
    }
    assert across == {
        "full": "full",
        "top-left": "top-right",
        "top-right": "top-left",
        "bottom-left": "bottom-right",
        "bottom-right": "bottom-left",
        "centre": "centre",
    }


def test_a_crop_whose_counterpart_is_not_chosen_stays_where_it_is() -> None:
    chosen = PLAN.indices("bottom-left,top-left,top-right")
    assert augment.mirrored_candidates(PLAN, chosen) == ((0, 2, 1), (1, 0, 2), (2, 1, 0))


@pytest.mark.parametrize("way", range(4))
@pytest.mark.parametrize("canvas_px", [48, 49])  # the centre of an odd canvas is not its middle
@pytest.mark.parametrize(
    "names", ["five", "top-left,centre", "bottom-left,top-left,top-right", "top-right,bottom-left"]
)
def test_a_mirrored_crop_shows_what_lies_in_its_box_of_the_mirrored_canvas(
    names: str, canvas_px: int, way: int
) -> None:
    plan = place_crops("five", canvas_px=canvas_px, crop_px=32)
    canvas, chosen = smooth_canvas(1, canvas_px), plan.indices(names)
    cut = [torch.tensor(cutting.cut(canvas, plan.boxes[k]))[None] for k in chosen]
    counterparts = augment.mirrored_candidates(plan, chosen)
    draws = draws_of([bool(way & 1)], [bool(way & 2)])
    shown = augment.augment(tuple(cut), None, draws, counterparts, counterparts).crops_BKHWC[0]
    turned = canvas[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1]
    lies = augment.mirrored_boxes(plan, chosen)[way]
    for position, k in enumerate(chosen):
        x0, y0, x1, y1 = (round(edge * canvas_px) for edge in lies[position])
        assert np.array_equal(shown[position].numpy(), turned[y0:y1, x0:x1])
        # A prior of a place is about what lies there, wherever another candidate can show that.
        x0, y0, x1, y1 = plan.boxes[k]
        place = turned[y0:y1, x0:x1]
        if any(np.array_equal(place, crop.numpy()) for crop in shown):
            assert np.array_equal(shown[position].numpy(), place)


@pytest.mark.parametrize("chosen", ["full+five", "five", "centre,full", "bottom-right"])
def test_crops_are_cut_from_canvases_as_views_with_the_pixels_of_the_materialised(
    chosen: str,
) -> None:
    canvases = [smooth_canvas(seed) for seed in range(3)]
    resized = [cutting.resized_crops(canvas, PLAN).transpose(0, 2, 3, 1) for canvas in canvases]
    wanted = PLAN.indices(chosen)
    expected = torch.cat([views_of(canvas).crops_BKHWC for canvas in canvases])[:, list(wanted)]
    numbers = torch.zeros(3)
    carried = Batch(
        None, torch.tensor(np.stack(canvases)), torch.tensor(np.stack(resized)),
        None, numbers, numbers,
    )  # fmt: skip
    for batch in (carried, Batch(expected, None, None, None, numbers, numbers)):
        cut = augment.cut(batch, PLAN, wanted)
        assert torch.equal(torch.stack(cut, 1), expected)
        memory = {t.untyped_storage().data_ptr() for t in batch if t is not None}
        assert {crop.untyped_storage().data_ptr() for crop in cut} <= memory


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_mirrored_batch_equals_what_is_cut_from_the_mirrored_canvas(
    seed: int, flip: bool, vflip: bool
) -> None:
    canvas = smooth_canvas(seed)
    shown, counterparts = views_of(canvas), augment.mirrored_candidates(PLAN, ALL)
    draws = draws_of([flip], [vflip])
    mirrored = augment.augment(
        shown.crops_BKHWC.unbind(1), shown.glimpses_BLSS, draws, counterparts, counterparts
    )
    turned = canvas[:: -1 if vflip else 1, :: -1 if flip else 1]
    expected = views_of(np.ascontiguousarray(turned))
    assert torch.equal(mirrored.crops_BKHWC, expected.crops_BKHWC)
    assert mirrored.glimpses_BLSS is not None
    assert expected.glimpses_BLSS is not None
    assert torch.equal(mirrored.glimpses_BLSS, expected.glimpses_BLSS)


def test_mirroring_twice_changes_nothing_and_once_the_chosen_images_alone(
    make_batch: Callable[..., Batch],
) -> None:
    images = make_batch(4).crops_BKHWC
    draws = draws_of([True, False, True, False], [False, False, True, True])
    counterparts = augment.mirrored_candidates(PLAN, ALL)
    once = augment.mirror(images.clone(), draws, counterparts)
    assert torch.equal(augment.mirror(once.clone(), draws, counterparts), images)
    assert [torch.equal(*pair) for pair in zip(once, images, strict=True)] == [0, 1, 0, 0]


def test_a_number_of_each_crop_goes_where_its_crop_goes(make_batch: Callable[..., Batch]) -> None:
    images = make_batch(4).crops_BKHWC
    draws = draws_of([True, False, True, False], [False, False, True, True])
    counterparts = augment.mirrored_candidates(PLAN, ALL)
    brightest = images.float().mean((2, 3, 4))
    moved = augment.mirror(brightest.clone(), draws, counterparts)
    mirrored = augment.mirror(images.clone(), draws, counterparts)
    torch.testing.assert_close(moved, mirrored.float().mean((2, 3, 4)))


def test_augmenting_leaves_the_batch_as_it_is(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(3)
    before = [None if tensor is None else tensor.clone() for tensor in batch]
    draws = draws_of([True, True, False], [False, True, False], shift=1)
    shown = augment.augment(
        augment.cut(batch, PLAN, ALL),
        batch.glimpses_BLSS,
        draws,
        *2 * [augment.mirrored_candidates(PLAN, ALL)],
    )
    assert not torch.equal(shown.crops_BKHWC, batch.crops_BKHWC)
    assert not torch.equal(shown.glimpses_BLSS, batch.glimpses_BLSS)
    for tensor, copy in zip(batch, before, strict=True):
        assert tensor is copy or torch.equal(tensor, copy)


def test_a_batch_without_glimpses_is_mirrored_too(make_batch: Callable[..., Batch]) -> None:
    crops_BKHWC = make_batch(2).crops_BKHWC
    draws, stay = draws_of([True, True], [False, False]), augment.Mirrored(ALL, ALL, ALL)
    mirrored = augment.augment(crops_BKHWC.unbind(1), None, draws, stay, stay)
    assert mirrored.glimpses_BLSS is None
    assert torch.equal(mirrored.crops_BKHWC, crops_BKHWC.flip(3))


def test_a_crop_that_is_chosen_ahead_is_the_one_that_would_be_taken_of_all(
    make_batch: Callable[..., Batch],
) -> None:
    batch, counterparts = make_batch(8), augment.mirrored_candidates(PLAN, ALL)
    generator = torch.Generator().manual_seed(1)
    draws = augment.draw(8, hflip=0.5, vflip=0.5, shift=3, generator=generator)
    assert 0 < draws.flips_B.sum() < 8
    assert 0 < (draws.flips_B & draws.vflips_B).sum() < draws.vflips_B.sum()
    chosen = torch.tensor([0, 1, 2, 3, 4, 5, 1, 2])
    crops = augment.cut(batch, PLAN, ALL)
    rest = (batch.glimpses_BLSS, draws, counterparts, counterparts)
    every = augment.augment(crops, *rest)
    one = augment.augment(crops, *rest, chosen)
    assert one.crops_BKHWC.shape == (8, 1, 32, 32, 3)
    assert torch.equal(one.crops_BKHWC[:, 0], every.crops_BKHWC[torch.arange(8), chosen])
    assert one.glimpses_BLSS is not None
    assert every.glimpses_BLSS is not None
    assert torch.equal(one.glimpses_BLSS, every.glimpses_BLSS)


@given(
    seed=st.integers(0, 99),
    shifts=st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=4),
)
def test_shifting_equals_a_loop_over_pixels(seed: int, shifts: list[tuple[int, int]]) -> None:
    height, width = 6, 7
    shape = (len(shifts), 2, height, width, 3)
    crops = np.random.default_rng(seed).integers(0, 256, shape, "u1")
    shifted = augment.shift(torch.from_numpy(crops), torch.tensor(shifts))
    expected = crops.copy()
    for image, (down, right) in enumerate(shifts):
        for y in range(height):
            for x in range(width):
                if 0 <= y - down < height and 0 <= x - right < width:
                    expected[image, :, y, x] = crops[image, :, y - down, x - right]
    assert np.array_equal(shifted.numpy(), expected)


def test_draws_come_from_the_generator_and_keep_to_their_ranges() -> None:
    def draw(seed: int, **options: float) -> augment.Draws:
        generator = torch.Generator().manual_seed(seed)
        chances = {"hflip": 0.25, "vflip": 0.5, "shift": 3, **options}
        return augment.draw(4000, generator=generator, **chances)  # type: ignore[arg-type]

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first.flips_B, again.flips_B)
    assert torch.equal(first.shifts_B2, again.shifts_B2)
    assert not torch.equal(first.flips_B, other.flips_B)
    assert set(first.shifts_B2.unique().tolist()) == set(range(-3, 4))
    assert first.flips_B.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert first.vflips_B.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not draw(1, hflip=0).flips_B.any()
    assert not draw(1, vflip=0).vflips_B.any()
    assert draw(1, hflip=1).flips_B.all()
    assert draw(1, vflip=1).vflips_B.all()
    assert not draw(1, shift=0).shifts_B2.any()


def test_normalised_images_are_the_formulas_and_lie_channels_last(
    make_batch: Callable[..., Batch],
) -> None:
    mean, std = (0.5, 0.25, 0.125), (0.5, 0.25, 2.0)
    images = make_batch(3).crops_BKHWC[:, 1]
    inputs = augment.normalise(images, mean, std)
    assert inputs.shape == (3, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    by_hand = (images.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(inputs.double(), by_hand.permute(0, 3, 1, 2), atol=1e-6, rtol=1e-5)
