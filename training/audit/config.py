"""What an estimate of the headroom is asked to do; see `training/config.py`."""

from dataclasses import dataclass

from pipeline.command.settings import check_settings, like, setting
from training.config import FOLDS, MOST_SEED, TrainConfig


@dataclass(frozen=True, kw_only=True)
class HeadroomConfig:
    """One `srp-train headroom SHARDS` command: what an estimate is made with."""

    candidates: str | None = like(TrainConfig, "candidates")
    model: str = like(
        TrainConfig, "model", default="test_resnet", text="Small classifier, by its name in timm."
    )
    epochs: int = like(
        TrainConfig, "epochs", default=8, text="Passes of each classifier over its images."
    )
    batch_size: int = like(TrainConfig, "batch_size", text="Images per step.")
    lr: float = like(TrainConfig, "lr")
    limit: int = setting(10_000, "Largest number of images of each split.", low=1, high=10**9)
    seed: int = like(
        TrainConfig,
        "seed",
        text="Seed of weights, order, augmentation and resamples.",
        high=MOST_SEED - FOLDS + 1,  # each classifier has its own
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        check_settings(self)
