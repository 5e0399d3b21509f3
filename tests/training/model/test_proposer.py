from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.common.errors import ConfigError
from pipeline.format.crops import place_crops
from training.config import TrainConfig
from training.model.proposer import (
    CropProposer,
    JointProposer,
    MapProposer,
    Proposer,
    make_proposer,
    mean_over_boxes,
    suited_channels,
)

PLACES: dict[str, Any] = {"num_held": 5, "candidates": (0, 1, 2, 3, 4), "has_prior": False}
BOXES = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 0.5), (0.2, 0.1, 0.9, 0.35))
MAP = {"num_held": 6, "candidates": (0, 2, 5), "channels": (4, 6, 8), "boxes": 4 * (BOXES,)}


def glimpses(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_the_shape_is_the_predecessors() -> None:
    proposer = CropProposer(channels=(8, 16, 32), glimpse_px=64, padded_px=224, **PLACES)
    convolutions = [layer for layer in proposer.features if isinstance(layer, nn.Conv2d)]
    assert [conv.weight.shape for conv in convolutions] == [
        (8, 1, 3, 3),
        (16, 8, 3, 3),
        (32, 16, 3, 3),
    ]
    assert all(conv.stride == (2, 2) and conv.padding == (0, 0) for conv in convolutions)
    assert [type(layer) for layer in proposer.features] == 3 * [
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU6,
    ]
    assert (proposer.score.in_features, proposer.score.out_features) == (32 * 27 * 27, 1)


def test_a_proposal_holds_scores_their_softmax_and_the_best_crop() -> None:
    proposal = CropProposer(channels=(4,), glimpse_px=8, padded_px=8, **PLACES)(
        glimpses(3, 5, 8, 8)
    )
    assert proposal.scores_BK.shape == (3, 5)
    assert torch.equal(proposal.probabilities_BK, proposal.scores_BK.softmax(1))
    assert torch.equal(proposal.chosen_B, proposal.scores_BK.argmax(1))


def test_the_score_of_a_crop_depends_on_its_own_glimpse_alone() -> None:
    proposer = CropProposer(channels=(4, 8), glimpse_px=16, padded_px=16, **PLACES).eval()
    looked = glimpses(4, 5, 16, 16)
    scores = proposer(looked).scores_BK
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(proposer(looked[:, order]).scores_BK, scores[:, order])
    others = looked.clone()
    others[:, 1:] = 0
    torch.testing.assert_close(proposer(others).scores_BK[:, 0], scores[:, 0])


def test_padding_is_zeros_right_of_and_below_the_glimpse() -> None:
    padded = CropProposer(channels=(4, 8), glimpse_px=16, padded_px=32, **PLACES).eval()
    outer = CropProposer(channels=(4, 8), glimpse_px=32, padded_px=32, **PLACES).eval()
    outer.load_state_dict(padded.state_dict())
    looked = glimpses(2, 3, 16, 16)
    framed = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    framed[:, :, :16, :16] = looked
    assert torch.equal(padded(looked).scores_BK, outer(framed).scores_BK)


def test_without_padding_the_score_has_fewer_weights() -> None:
    padded = CropProposer(channels=(4, 8), glimpse_px=16, padded_px=32, **PLACES)
    bare = CropProposer(channels=(4, 8), glimpse_px=16, padded_px=16, **PLACES)
    assert bare.score.in_features < padded.score.in_features


@pytest.mark.parametrize("num_convolutions", [1, 2, 3, 4])
def test_the_smallest_glimpse_named_in_the_error_is_the_smallest_that_works(
    num_convolutions: int,
) -> None:
    channels, least = (2,) * num_convolutions, 2 ** (num_convolutions + 1) - 1
    CropProposer(channels=channels, glimpse_px=least, padded_px=least, **PLACES)
    with pytest.raises(ConfigError) as caught:
        CropProposer(channels=channels, glimpse_px=least - 1, padded_px=least - 1, **PLACES)
    assert str(caught.value) == (
        f"a glimpse must be large enough for the proposer; got --glimpse-size {least - 1} px for "
        f"{num_convolutions} convolutions of stride 2. Use at least {least} px, or fewer "
        "--proposer-channels."
    )


def test_a_joint_score_depends_on_the_other_glimpses_but_not_on_their_order() -> None:
    torch.manual_seed(0)
    proposer = JointProposer(channels=(4, 8), glimpse_px=16, padded_px=16, **PLACES).eval()
    looked = glimpses(4, 5, 16, 16)
    scores = proposer(looked).scores_BK
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(proposer(looked[:, order]).scores_BK, scores[:, order])
    others = looked.clone()
    others[:, 1:] = 0
    assert not torch.allclose(proposer(others).scores_BK[:, 0], scores[:, 0])


def test_a_map_is_averaged_over_each_box_whatever_the_candidates_are() -> None:
    torch.manual_seed(0)
    proposer = MapProposer(**MAP, has_prior=False).eval()
    looked = glimpses(2, 1, 32, 32)
    saliency = proposer.saliency(looked[:, 0].float() / 255)
    assert saliency.shape == (2, 8, 8)
    scores = proposer(looked).scores_BK
    torch.testing.assert_close(scores[:, 0], saliency.mean((1, 2)))
    torch.testing.assert_close(scores[:, 1], saliency[:, :4, :4].mean((1, 2)))
    other = MapProposer(**(MAP | {"candidates": (1,), "boxes": 4 * (BOXES[1:2],)}), has_prior=False)
    other.load_state_dict(proposer.state_dict())
    torch.testing.assert_close(other.eval()(looked).scores_BK, scores[:, 1:2])


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    edges=st.tuples(*(st.integers(0, 11) for _ in range(4))),
    seed=st.integers(0, 99),
)
def test_the_mean_over_a_box_is_that_of_the_picture_enlarged(
    shape: tuple[int, int], edges: tuple[int, ...], seed: int
) -> None:
    x, y, width, height = edges
    box = (x, y, min(12, x + width + 1), min(12, y + height + 1))
    saliency = torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))
    enlarged = saliency.repeat_interleave(12, 1).repeat_interleave(12, 2)
    rows = slice(box[1] * shape[0], box[3] * shape[0])
    columns = slice(box[0] * shape[1], box[2] * shape[1])
    found = mean_over_boxes(saliency, torch.tensor([box]) / 12)
    torch.testing.assert_close(found[0, 0], enlarged[0, rows, columns].mean())


@pytest.mark.parametrize("kind", [CropProposer, JointProposer])
def test_a_prior_is_added_to_the_scores_of_its_candidates(kind: type[Proposer]) -> None:
    sizes = {"channels": (4,), "glimpse_px": 8, "padded_px": 8, "num_held": 6}
    proposer = kind(**sizes, candidates=(5, 1), has_prior=True).eval()  # type: ignore[arg-type]
    assert proposer.prior is not None
    looked = glimpses(3, 2, 8, 8)
    before = proposer(looked).scores_BK
    with torch.no_grad():
        proposer.prior.copy_(torch.arange(6.0))
    torch.testing.assert_close(proposer(looked).scores_BK, before + torch.tensor([5.0, 1.0]))


def test_the_map_has_a_prior_of_places_as_well() -> None:
    proposer = MapProposer(**MAP, has_prior=True).eval()
    assert proposer.prior is not None
    proposer(glimpses(2, 1, 16, 16)).scores_BK[:, 1].sum().backward()
    assert proposer.prior.grad is not None
    assert proposer.prior.grad.tolist() == [0, 0, 2, 0, 0, 0]


@pytest.mark.parametrize("side", [16, 32, 56, 64, 112, 224])
def test_a_map_is_as_deep_as_leaves_it_cells_enough(side: int) -> None:
    wanted = MAP | {"channels": suited_channels("map", side), "has_prior": False}
    proposer = MapProposer(**wanted).eval()
    cells = proposer.saliency(torch.zeros(1, side, side)).shape[-1]
    assert cells >= (7 if side >= 32 else 4)
    assert side > 112 or cells < 14  # one halving more would leave too few


@pytest.mark.parametrize(
    ("kind", "asked", "made"),
    [
        ("map", None, (8, 16, 32, 48, 64)),
        ("map", (4, 8), (4, 8)),
        ("crops", None, (8, 16, 32)),
        ("joint", None, (8, 16, 32)),
    ],
)
def test_a_proposer_has_the_channels_asked_for_or_those_that_suit_it(
    kind: str, asked: tuple[int, ...] | None, made: tuple[int, ...]
) -> None:
    plan = place_crops("full+five", canvas_px=160, crop_px=112)
    config = TrainConfig(proposer=kind, proposer_channels=asked)
    proposer = make_proposer(config, plan, tuple(range(6)), glimpse_px=112)
    layers = [layer for layer in proposer.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert tuple(layer.num_features for layer in layers) == made


@given(seed=st.integers(0, 2**32), side=st.integers(2, 15))
def test_what_others_tile_is_never_above_the_best_of_them(seed: int, side: int) -> None:
    saliency = torch.randn(1, side, side, generator=torch.Generator().manual_seed(seed))
    plan = place_crops("full+five", canvas_px=224, crop_px=112)
    scores = mean_over_boxes(saliency, torch.tensor(plan.normalised()))[0]
    corners = [k for k, name in enumerate(plan.names) if "-" in name]
    assert len(corners) == 4
    assert scores[plan.names.index("full")] <= scores[corners].max() + 1e-5


@pytest.mark.parametrize("num_convolutions", [2, 3, 5])
def test_a_map_of_one_cell_is_refused_with_the_smallest_glimpse_that_gives_more(
    num_convolutions: int,
) -> None:
    plan = place_crops("full+five", canvas_px=224, crop_px=112)
    config = TrainConfig(proposer="map", proposer_channels=(2,) * num_convolutions)
    least = 2 ** (num_convolutions - 1) + 1
    proposer = make_proposer(config, plan, (0, 1), glimpse_px=least)
    assert isinstance(proposer, MapProposer)
    assert proposer.eval().saliency(glimpses(1, least, least) / 255).shape == (1, 2, 2)
    with pytest.raises(ConfigError, match="a map must have at least 2 x 2 cells") as caught:
        make_proposer(config, plan, (0, 1), glimpse_px=least - 1)
    assert f"--glimpse-size {least - 1} px" in str(caught.value)
    assert f"Use at least {least} px" in str(caught.value)
