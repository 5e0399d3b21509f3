"""What fitting a proposer to a finished run is asked to do; see `training/config.py`."""

import re
from dataclasses import dataclass

from pipeline.command.settings import check_settings, like
from training.config import NAMES, TrainConfig
from training.model.policies import DISTILLED


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One `srp-train distill RUN` command: what a proposer is fitted with."""

    candidates: str | None = like(
        TrainConfig,
        "candidates",
        text=f"Crops to choose among, some of the run's. {NAMES}",
        shown="those of the run",
    )
    proposer: str = like(TrainConfig, "proposer", default="map", shown=None)
    position_prior: bool = like(TrainConfig, "position_prior")
    glimpse_size: int | None = like(TrainConfig, "glimpse_size")
    proposer_channels: tuple[int, ...] | None = like(TrainConfig, "proposer_channels")
    proposer_lr: float = like(
        TrainConfig, "proposer_lr", default=0.02, text="Highest learning rate of AdamW.", shown=None
    )
    epochs: int = like(TrainConfig, "fit_epochs", text="Passes over the loss matrix.")
    batch_size: int = like(TrainConfig, "batch_size", text="Images per step.")
    balance: float = like(
        TrainConfig,
        "balance",
        text="Weight of the entropy of the batch's mean choice, falling to 0 over the epochs.",
    )
    weight_decay: float = like(
        TrainConfig, "weight_decay", default=0.01, text="Weight decay of AdamW."
    )
    vflip: float = like(TrainConfig, "vflip", default=0.5)  # it keeps a map from overfitting
    seed: int | None = like(
        TrainConfig,
        "seed",
        default=None,
        text="Seed of weights, order and mirroring.",
        shown="that of the run",
    )

    def __post_init__(self) -> None:
        """Check ranges and choices."""
        check_settings(self)

    @property
    def arm(self) -> str:
        """Name the arm by its proposer and by all that is not the default, the seed aside.

        So two fits to one run go to folders of different names.
        """
        shorts = {
            "candidates": "", "glimpse_size": "g", "proposer_channels": "c", "proposer_lr": "lr",
            "epochs": "e", "batch_size": "b", "balance": "balance", "weight_decay": "wd",
            "vflip": "vflip",
        }  # fmt: skip
        parts = [DISTILLED, self.proposer, *(["prior"] if self.position_prior else [])]
        for name, short in shorts.items():
            value = getattr(self, name)
            if value != getattr(type(self), name):
                joined = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
                parts.append(short + re.sub(r"[^\w.+-]+", "-", joined))
        return "-".join(parts)
