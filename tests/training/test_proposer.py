import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from training.proposer import Proposer


def glimpses(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_the_shape_is_the_predecessors() -> None:
    proposer = Proposer(channels=(8, 16, 32), glimpse_px=64, padded_px=224)
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
    proposal = Proposer(channels=(4,), glimpse_px=8, padded_px=8)(glimpses(3, 5, 8, 8))
    assert proposal.scores_BK.shape == (3, 5)
    assert torch.equal(proposal.probabilities_BK, proposal.scores_BK.softmax(1))
    assert torch.equal(proposal.chosen_B, proposal.scores_BK.argmax(1))


def test_the_score_of_a_crop_depends_on_its_own_glimpse_alone() -> None:
    proposer = Proposer(channels=(4, 8), glimpse_px=16, padded_px=16).eval()
    looked = glimpses(4, 5, 16, 16)
    scores = proposer(looked).scores_BK
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(proposer(looked[:, order]).scores_BK, scores[:, order])
    others = looked.clone()
    others[:, 1:] = 0
    torch.testing.assert_close(proposer(others).scores_BK[:, 0], scores[:, 0])


def test_padding_is_zeros_right_of_and_below_the_glimpse() -> None:
    padded = Proposer(channels=(4, 8), glimpse_px=16, padded_px=32).eval()
    outer = Proposer(channels=(4, 8), glimpse_px=32, padded_px=32).eval()
    outer.load_state_dict(padded.state_dict())
    looked = glimpses(2, 3, 16, 16)
    framed = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    framed[:, :, :16, :16] = looked
    assert torch.equal(padded(looked).scores_BK, outer(framed).scores_BK)


def test_without_padding_the_score_has_fewer_weights() -> None:
    padded = Proposer(channels=(4, 8), glimpse_px=16, padded_px=32)
    bare = Proposer(channels=(4, 8), glimpse_px=16, padded_px=16)
    assert bare.score.in_features < padded.score.in_features


@pytest.mark.parametrize("num_convolutions", [1, 2, 3, 4])
def test_the_smallest_glimpse_named_in_the_error_is_the_smallest_that_works(
    num_convolutions: int,
) -> None:
    channels, least = (2,) * num_convolutions, 2 ** (num_convolutions + 1) - 1
    Proposer(channels=channels, glimpse_px=least, padded_px=least)
    with pytest.raises(ConfigError) as caught:
        Proposer(channels=channels, glimpse_px=least - 1, padded_px=least - 1)
    assert str(caught.value) == (
        f"a glimpse must be large enough for the proposer; got --glimpse-size {least - 1} px for "
        f"{num_convolutions} convolutions of stride 2. Use at least {least} px, or fewer "
        "--proposer-channels."
    )
