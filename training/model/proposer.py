"""From glimpses to one score per crop.

Axes: B samples, K candidates, L glimpses that it sees, S glimpse px, F features, M and N rows
and columns of a map; 4 ways to mirror an image, see `training.data.augment.Draws`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import FULL, CropLayout
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.data.augment import mirrored_boxes

CONTEXT = 32  # features of a glimpse that is compared with the others
CROP_CHANNELS = (8, 16, 32)  # the predecessor's
MAP_CHANNELS = ((112, (8, 16, 32, 48, 64)), (56, (8, 16, 32, 32)), (0, (8, 16, 32)))
"""A map's channels, by the least glimpse size, px; its neurons see 63, 31 and 15 px."""


class Proposal(NamedTuple):
    """What a proposer thinks of K crops.

    `scores_BK` are logits, `probabilities_BK` their softmax, `chosen_B` the index of the best.
    """

    scores_BK: Tensor
    probabilities_BK: Tensor
    chosen_B: Tensor

    @classmethod
    def of(cls, scores_BK: Tensor) -> "Proposal":
        """Choose by these scores."""
        return cls(scores_BK, scores_BK.softmax(1), scores_BK.argmax(1))


class Proposer(nn.Module):
    """Scores the candidates of a sample by its glimpses."""

    candidates_K: Tensor

    def __init__(self, *, num_held: int, candidates: tuple[int, ...], has_prior: bool) -> None:
        """Begin without a preference for any place.

        Args:
            num_held: Candidates in the shards.
            candidates: Indices of those to score.
            has_prior: Whether each candidate has a learnt score of its own, whatever it shows.
        """
        super().__init__()
        self.register_buffer("candidates_K", torch.tensor(candidates), persistent=False)
        self.prior = nn.Parameter(torch.zeros(num_held)) if has_prior else None

    def forward(self, glimpses_BLSS: Tensor, ways_B: Tensor | None = None) -> Proposal:
        """Score K candidates by L glimpses a sample.

        Args:
            glimpses_BLSS: Uint8 gray.
            ways_B: How each image has been mirrored; None where none has. A prior belongs to a
                position on axis K: to a place, and where a crop has no counterpart to take it, to
                that crop, as at evaluation.
        """
        scores_BK = self.score_glimpses(glimpses_BLSS.float() / 255, ways_B)
        if self.prior is not None:
            scores_BK = scores_BK + self.prior[self.candidates_K]
        return Proposal.of(scores_BK)

    def score_glimpses(self, gray_BLSS: Tensor, ways_B: Tensor | None) -> Tensor:
        """Score gray glimpses in 0 to 1, float32 `(B, K)`, without a preference for places.

        Arguments are those of `forward`; a glimpse of a crop has been mirrored with its crop.
        """
        raise NotImplementedError


class CropProposer(Proposer):
    """Convolutions of stride 2 over one gray glimpse, then one linear score.

    All crops share the weights, so the score of a crop depends on its glimpse alone.

    Source: the predecessor's network: conv 3x3 stride 2 without padding, BatchNorm, ReLU6,
    three times, channels 1-8-16-32, flatten, one linear score per crop.
    """

    def __init__(
        self, *, channels: tuple[int, ...], glimpse_px: int, padded_px: int, **places: object
    ) -> None:
        """Build it for one size of glimpses.

        Args:
            channels: Output channels of each convolution.
            glimpse_px: Side S of the glimpses that `forward` gets, px.
            padded_px: Side that they are padded to with zeros before the first convolution;
                `glimpse_px` pads nothing.
            places: For `Proposer`.

        Raises:
            ConfigError: If a convolution would have no room.
        """
        super().__init__(**places)  # type: ignore[arg-type]
        self._padding = padded_px - glimpse_px
        side = padded_px
        for _ in channels:
            side = (side - 3) // 2 + 1
        if side < 1:
            raise ConfigError(
                f"a glimpse must be large enough for the proposer; got --glimpse-size "
                f"{glimpse_px} px for {len(channels)} convolutions of stride 2. "
                f"Use at least {2 ** (len(channels) + 1) - 1} px, or fewer --proposer-channels."
            )
        self.features = _convolutions(channels, strides=(2,) * len(channels), padding=0)
        self.score = self.make_score(channels[-1] * side * side)

    def make_score(self, num_features: int) -> nn.Module:
        """Make what turns features `(B, K, F)` to scores `(B, K, 1)`."""
        return nn.Linear(num_features, 1)

    def score_glimpses(self, gray_BLSS: Tensor, ways_B: Tensor | None) -> Tensor:
        """Score each glimpse by itself."""
        gray = gray_BLSS.flatten(0, 1)[:, None]
        gray = F.pad(gray, (0, self._padding, 0, self._padding))
        features_BKF = self.features(gray).flatten(1).unflatten(0, gray_BLSS.shape[:2])
        # In bfloat16 near scores become equal ones, and argmax would favour the first crop.
        with torch.autocast(gray.device.type, enabled=False):
            scores_BK: Tensor = self.score(features_BKF.float())[..., 0]
        return scores_BK


class JointProposer(CropProposer):
    """The same convolutions, but each glimpse is compared with the mean of all.

    So a crop can win by differing from the others. The order of the crops does not matter.

    Source: Zaheer et al. 2017, Deep Sets, eq. 4.
    """

    def make_score(self, num_features: int) -> nn.Module:
        """Compare with the mean before scoring."""
        return _Compare(num_features)


class _Compare(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.own = nn.Linear(num_features, CONTEXT)
        self.mean = nn.Linear(num_features, CONTEXT, bias=False)
        self.score = nn.Linear(CONTEXT, 1)

    def forward(self, features_BKF: Tensor) -> Tensor:
        compared = self.own(features_BKF) + self.mean(features_BKF.mean(1, keepdim=True))
        scores: Tensor = self.score(compared.relu())
        return scores


class MapProposer(Proposer):
    """A saliency map of the whole canvas, averaged over each candidate's box.

    It reads one glimpse, that of the whole canvas, and knows no candidate: one map serves any.
    A candidate that others tile, as four corners may tile the whole canvas, is never above the best
    of them: only a prior can make it the choice.

    Source: the map is after Yohanandan et al. 2018, Saliency Preservation in Low-Resolution
    Grayscale Images, though learnt from labels alone.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...],
        boxes: tuple[tuple[tuple[float, ...], ...], ...],
        **places: object,
    ) -> None:
        """Build it for some candidates.

        Args:
            channels: Output channels of each convolution; all but the last halve the map.
            boxes: Boxes of the K candidates, from `training.data.augment.mirrored_boxes`.
            places: For `Proposer`.
        """
        super().__init__(**places)  # type: ignore[arg-type]
        strides = (*[2] * (len(channels) - 1), 1)
        self.features = _convolutions(channels, strides=strides, padding=1)
        self.score = nn.Conv2d(channels[-1], 1, 1)
        self.register_buffer("boxes_4K4", torch.tensor(boxes), persistent=False)

    def saliency(self, gray_BSS: Tensor) -> Tensor:
        """Map how much each place is worth looking at, float32 `(B, M, N)`, in logits."""
        # oneDNN computes the gradient of a convolution of one channel three times as fast so.
        gray = gray_BSS[:, None].to(memory_format=torch.channels_last)
        features = self.features(gray)
        with torch.autocast(gray_BSS.device.type, enabled=False):
            saliency: Tensor = self.score(features.float())[:, 0]
        return saliency

    def score_glimpses(self, gray_BLSS: Tensor, ways_B: Tensor | None) -> Tensor:
        """Average the map of the one glimpse over the boxes in which the crops lie."""
        saliency_BMN = self.saliency(gray_BLSS[:, 0])
        boxes: Tensor = self.boxes_4K4[0 if ways_B is None else ways_B]  # type: ignore[index]
        with torch.autocast(gray_BLSS.device.type, enabled=False):
            return mean_over_boxes(saliency_BMN, boxes)


def mean_over_boxes(map_BMN: Tensor, boxes: Tensor) -> Tensor:
    """Average a map over boxes, cells that a box covers in part by the part, `(B, K)`.

    It is what an integral image gives, whose corners are interpolated.

    Args:
        map_BMN: Float32.
        boxes: As fractions of the map, x0, y0, x1, y1, not empty; `(K, 4)`, or `(B, K, 4)` where
            each sample has its own.
    """
    rows = _covered(boxes[..., 1], boxes[..., 3], map_BMN.shape[1])
    columns = _covered(boxes[..., 0], boxes[..., 2], map_BMN.shape[2])
    own = "b" if boxes.ndim == 3 else ""
    return torch.einsum(f"bmn,{own}km,{own}kn->bk", map_BMN, rows, columns)


def _covered(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Give the share that each of `count` cells has of stretches `(..., K)`, rows that sum to 1."""
    edges = torch.arange(count + 1, device=first.device) / count
    ends = torch.minimum(last[..., None], edges[1:])
    starts = torch.maximum(first[..., None], edges[:-1])
    return (ends - starts).clamp_min(0) / (last - first)[..., None]


def _convolutions(
    channels: tuple[int, ...], *, strides: tuple[int, ...], padding: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    previous = 1
    for width, stride in zip(channels, strides, strict=True):
        convolution = nn.Conv2d(previous, width, 3, stride=stride, padding=padding)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU6()]
        previous = width
    return nn.Sequential(*layers)


def looked_at(
    config: TrainConfig, plan: CropLayout, candidates: tuple[int, ...]
) -> tuple[int, ...]:
    """List the candidates whose glimpses a run's proposer reads; none without a proposer.

    Raises:
        ConfigError: If the map's glimpse is not in the shards.
    """
    if not config.selects:
        return ()
    if config.proposer_kind != "map":
        return candidates
    if FULL not in plan.names:
        raise ConfigError(
            f"--proposer map looks at the glimpse of the whole canvas, {FULL!r}; got shards with "
            f"{', '.join(plan.names)}. Build shards with --candidates full+five."
        )
    return (plan.names.index(FULL),)


def suited_channels(kind: str, glimpse_px: int) -> tuple[int, ...]:
    """Give the channels of a proposer that are taken where none are asked for.

    A map is as deep as leaves it 7 x 7 cells at 112 px and 8 x 8 at 64 and 32, since its neurons
    must see more than an object: on scattered Imagenette, whose objects have 28 to 45 px of a
    glimpse of 112, seeing 63 px in place of 31 gains 0.8 points on training images held out. Such
    a map costs 0.8 % of a ResNet18 on a crop as large as its glimpse.
    """
    if kind != "map":
        return CROP_CHANNELS
    return next(channels for least, channels in MAP_CHANNELS if glimpse_px >= least)


def _check_cells(channels: tuple[int, ...], glimpse_px: int) -> None:
    halvings = len(channels) - 1
    if glimpse_px <= 2**halvings:
        raise ConfigError(
            "a map must have at least 2 x 2 cells, or every crop has the same score; got one cell, "
            f"from --glimpse-size {glimpse_px} px and {len(channels)} convolutions, all but one of "
            f"stride 2. Use at least {2**halvings + 1} px, or fewer --proposer-channels."
        )


def make_proposer(
    config: TrainConfig, plan: CropLayout, candidates: tuple[int, ...], *, glimpse_px: int
) -> Proposer:
    """Build the proposer that `--proposer` names.

    Raises:
        ConfigError: If glimpses are too small for it.
    """
    places = {
        "num_held": len(plan),
        "candidates": candidates,
        "has_prior": config.position_prior,
    }
    channels = config.proposer_channels or suited_channels(config.proposer_kind, glimpse_px)
    if config.proposer_kind == "map":
        _check_cells(channels, glimpse_px)
        boxes = mirrored_boxes(plan, candidates)
        return MapProposer(channels=channels, boxes=boxes, **places)
    kind = {"crops": CropProposer, "joint": JointProposer}[config.proposer_kind]
    return kind(
        channels=channels,
        glimpse_px=glimpse_px,
        padded_px=plan.crop_px if config.pad_glimpses else glimpse_px,
        **places,
    )
