from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.format import cutting
from pipeline.format.crops import CropLayout, place_crops
from pipeline.pixels import Pixels
from pipeline.pixels.resize import resize
from training.data import augment
from training.data.shards import Batch

PLAN = place_crops("full+five", canvas_px=48, crop_px=32)
ALL = tuple(range(len(PLAN)))
Sides = tuple[int, int]


def batch_of(
    crops_BKHWC: Tensor | None = None,
    *,
    canvases_BCC3: Tensor | None = None,
    resized_BRHWC: Tensor | None = None,
) -> Batch:
    (num_samples, *_), *_ = (t.shape for t in (crops_BKHWC, canvases_BCC3) if t is not None)
    numbers_B = torch.arange(num_samples)
    return Batch(crops_BKHWC, canvases_BCC3, resized_BRHWC, None, numbers_B, numbers_B)


def views_of(canvas: Pixels) -> tuple[Tensor, Tensor]:
    """Cut one canvas as the pipeline does: crops and glimpses."""
    originals = cutting.original_crops(canvas, cutting.resized_crops(canvas, PLAN), PLAN, ALL)
    return (
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
    crops = np.stack([cutting.cut(canvas, plan.boxes[k]) for k in chosen])
    draws = draws_of([bool(way & 1)], [bool(way & 2)])
    shown = augment.cut(batch_of(torch.tensor(crops)[None]), plan, chosen, draws=draws)[0]
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
def test_crops_that_are_cut_from_canvases_have_the_pixels_of_the_materialised(chosen: str) -> None:
    canvases = [smooth_canvas(seed) for seed in range(3)]
    resized = [cutting.resized_crops(canvas, PLAN).transpose(0, 2, 3, 1) for canvas in canvases]
    wanted = PLAN.indices(chosen)
    expected = torch.cat([views_of(canvas)[0] for canvas in canvases])[:, list(wanted)]
    carried = batch_of(
        canvases_BCC3=torch.tensor(np.stack(canvases)),
        resized_BRHWC=torch.tensor(np.stack(resized)),
    )
    for batch in (carried, batch_of(expected)):
        assert torch.equal(augment.cut(batch, PLAN, wanted), expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_mirrored_batch_equals_what_is_cut_from_the_mirrored_canvas(
    seed: int, flip: bool, vflip: bool
) -> None:
    canvas = smooth_canvas(seed)
    crops, glimpses = views_of(canvas)
    draws, counterparts = draws_of([flip], [vflip]), augment.mirrored_candidates(PLAN, ALL)
    turned = canvas[:: -1 if vflip else 1, :: -1 if flip else 1]
    expected_crops, expected_glimpses = views_of(np.ascontiguousarray(turned))
    assert torch.equal(augment.cut(batch_of(crops), PLAN, ALL, draws=draws), expected_crops)
    assert torch.equal(augment.mirror(glimpses, draws, counterparts), expected_glimpses)


def by_slices(pixels: Pixels, corner: Sides, *, way: int, shift: Sides, side: int) -> Pixels:
    """Mirror one picture as a whole, repeat its edges and cut a window that the shift moves."""
    turned = pixels[:: -1 if way & 2 else 1, :: -1 if way & 1 else 1]
    margin = max(map(abs, shift))
    padded = np.pad(turned, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    y, x = (margin + at - move for at, move in zip(corner, shift, strict=True))
    return padded[y : y + side, x : x + side]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[CropLayout, tuple[int, ...], int]:
    """A layout, some of its candidates in any order, and how many images."""
    names = draw(st.sampled_from(["five", "full+grid3", "full+strips"]))
    crop_px = draw(st.integers(2, 7))
    plan = place_crops(names, canvas_px=crop_px + draw(st.integers(1, 6)), crop_px=crop_px)
    chosen = draw(st.lists(st.sampled_from(range(len(plan))), min_size=1, unique=True))
    return plan, tuple(chosen), draw(st.integers(1, 4))


@given(cut=cuts(), carries_crops=st.booleans(), data=st.data())
def test_a_cut_equals_slices_of_the_mirrored_picture_whose_edges_are_repeated(
    cut: tuple[CropLayout, tuple[int, ...], int], carries_crops: bool, data: st.DataObject
) -> None:
    (plan, chosen, num_samples), side = cut, cut[0].crop_px
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def noise(*shape: int) -> Pixels:
        return rng.integers(0, 256, (num_samples, *shape, 3), dtype=np.uint8)

    def several(values: st.SearchStrategy[int]) -> list[int]:
        return data.draw(st.lists(values, min_size=num_samples, max_size=num_samples))

    crops = noise(len(chosen), side, side)
    canvases = noise(plan.canvas_px, plan.canvas_px)
    resized = noise(len(plan.resized), side, side)
    batch = (
        batch_of(torch.tensor(crops))
        if carries_crops
        else batch_of(canvases_BCC3=torch.tensor(canvases), resized_BRHWC=torch.tensor(resized))
    )
    ways, shift = several(st.integers(0, 3)), st.integers(1 - side, side - 1)
    shifts = list(zip(several(shift), several(shift), strict=True))
    draws = augment.Draws(
        torch.tensor(ways).bitwise_and(1).bool(), torch.tensor(ways).bitwise_and(2).bool(),
        torch.tensor(shifts),
    )  # fmt: skip
    counterparts = ((*range(len(chosen)),), *augment.mirrored_candidates(plan, chosen))
    lies = augment.mirrored_boxes(plan, chosen)
    expected = np.empty_like(crops)
    for image, (way, moved) in enumerate(zip(ways, shifts, strict=True)):
        for place, taker in enumerate(counterparts[way]):
            x0, y0, *_ = (round(edge * plan.canvas_px) for edge in lies[way][place])
            pixels, corner = canvases[image], (y0, x0)
            if carries_crops:
                pixels, corner = crops[image, taker], (0, 0)
            elif not plan.is_cut(chosen[taker]):
                pixels, corner = resized[image, plan.resized.index(chosen[taker])], (0, 0)
            expected[image, place] = by_slices(pixels, corner, way=way, shift=moved, side=side)
    before = [None if tensor is None else tensor.clone() for tensor in batch]
    shown = augment.cut(batch, plan, chosen, draws=draws)
    assert np.array_equal(shown.numpy(), expected)
    wanted = data.draw(st.lists(st.sampled_from(range(len(chosen))), min_size=1, max_size=3))
    wanted_BM = torch.tensor([np.roll(wanted, image).tolist() for image in range(num_samples)])
    some = augment.cut(batch, plan, chosen, draws=draws, wanted_BM=wanted_BM)
    assert torch.equal(some, shown[torch.arange(num_samples)[:, None], wanted_BM])
    for tensor, copy in zip(batch, before, strict=True):
        assert tensor is copy or torch.equal(tensor, copy)


def test_a_shift_shows_the_pixels_of_the_canvas_around_a_crop() -> None:
    canvas, centre = smooth_canvas(3), PLAN.indices("centre")
    batch = batch_of(
        canvases_BCC3=torch.tensor(canvas)[None], resized_BRHWC=torch.empty(1, 0, 32, 32, 3)
    )
    shown = augment.cut(batch, PLAN, centre, draws=draws_of([False], [False], shift=3))
    x0, y0, x1, y1 = (edge - 3 for edge in PLAN.boxes[centre[0]])
    assert np.array_equal(shown[0, 0].numpy(), canvas[y0:y1, x0:x1])


def test_a_batch_without_pixels_is_our_own_mistake() -> None:
    numbers_B = torch.arange(1)
    with pytest.raises(RuntimeError, match="a batch without pixels"):
        augment.cut(Batch(None, None, None, None, numbers_B, numbers_B), PLAN, ALL)


def test_mirroring_twice_changes_nothing_and_once_the_chosen_images_alone(
    make_batch: Callable[..., Batch],
) -> None:
    glimpses_BLSS = make_batch(4).glimpses_BLSS
    assert glimpses_BLSS is not None
    draws = draws_of([True, False, True, False], [False, False, True, True])
    counterparts = augment.mirrored_candidates(PLAN, ALL)
    once = augment.mirror(glimpses_BLSS, draws, counterparts)
    assert torch.equal(augment.mirror(once, draws, counterparts), glimpses_BLSS)
    same = [torch.equal(*pair) for pair in zip(once, glimpses_BLSS, strict=True)]
    assert same == [False, True, False, False]


def test_a_number_of_each_crop_goes_where_its_crop_goes(make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(4)
    draws = draws_of([True, False, True, False], [False, False, True, True])
    assert batch.crops_BKHWC is not None
    brightest = batch.crops_BKHWC.float().mean((2, 3, 4))
    moved = augment.mirror(brightest, draws, augment.mirrored_candidates(PLAN, ALL))
    mirrored = augment.cut(batch, PLAN, ALL, draws=draws)
    torch.testing.assert_close(moved, mirrored.float().mean((2, 3, 4)))


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
    inputs = augment.normalise(images, 255 * torch.tensor(mean), 255 * torch.tensor(std))
    assert inputs.shape == (3, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    by_hand = (images.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(inputs.double(), by_hand.permute(0, 3, 1, 2), atol=1e-6, rtol=1e-5)
