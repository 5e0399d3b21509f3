"""From glimpses to one score per crop.

Axes: B samples, K candidates, S glimpse px.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError


class Proposal(NamedTuple):
    """What a proposer thinks of K crops.

    `scores_BK` are logits, `probabilities_BK` their softmax, `chosen_B` the index of the best.
    """

    scores_BK: Tensor
    probabilities_BK: Tensor
    chosen_B: Tensor


class Proposer(nn.Module):
    """Convolutions of stride 2 over one gray glimpse, then one linear score.

    All crops share the weights, so the score of a crop depends on its glimpse alone.

    Source: the predecessor's network: conv 3x3 stride 2 without padding, BatchNorm, ReLU6,
    three times, channels 1-8-16-32, flatten, one linear score per crop.
    """

    def __init__(self, *, channels: tuple[int, ...], glimpse_px: int, padded_px: int) -> None:
        """Build it for one size of glimpses.

        Args:
            channels: Of each convolution's output.
            glimpse_px: Side S of the glimpses that `forward` gets, px.
            padded_px: Side that they are padded to with zeros before the first convolution;
                `glimpse_px` pads nothing.

        Raises:
            ConfigError: If a convolution would have no room.
        """
        super().__init__()
        self._padding = padded_px - glimpse_px
        layers: list[nn.Module] = []
        side, previous = padded_px, 1
        for width in channels:
            layers += [nn.Conv2d(previous, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU6()]
            side, previous = (side - 3) // 2 + 1, width
        if side < 1:
            raise ConfigError(
                f"a glimpse must be large enough for the proposer; got --glimpse-size "
                f"{glimpse_px} px for {len(channels)} convolutions of stride 2. "
                f"Use at least {2 ** (len(channels) + 1) - 1} px, or fewer --proposer-channels."
            )
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(previous * side * side, 1)

    def forward(self, glimpses_BKSS: Tensor) -> Proposal:
        """Score K glimpses a sample, uint8 gray."""
        num_samples, num_crops, side, _ = glimpses_BKSS.shape
        gray = glimpses_BKSS.reshape(-1, 1, side, side).float() / 255
        gray = F.pad(gray, (0, self._padding, 0, self._padding))
        features = self.features(gray).flatten(1)
        # In bfloat16 near scores become equal ones, and argmax would favour the first crop.
        with torch.autocast(gray.device.type, enabled=False):
            scores = self.score(features.float())
        scores_BK = scores.reshape(num_samples, num_crops)
        return Proposal(scores_BK, scores_BK.softmax(1), scores_BK.argmax(1))
