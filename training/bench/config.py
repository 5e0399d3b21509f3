"""What `srp-train bench` is asked to do; its defaults live here or in `TrainConfig` alone."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.command.settings import check_settings, like, setting
from training.config import MOST_EPOCHS, TrainConfig
from training.model.policies import POLICIES

STEP_POLICIES = ("whole", "distilled", "straight-through", "expected")


@dataclass(frozen=True, kw_only=True)
class StepBenchConfig:
    """One `srp-train bench step SHARDS` command."""

    policies: tuple[str, ...] = setting(
        STEP_POLICIES,
        "Policy whose step is measured; may be repeated. distilled is measured in its last stage, "
        "in which the proposer is held.",
        flags="--policy",
        choices=tuple(POLICIES),
        multiple=True,
    )
    candidates: str | None = like(TrainConfig, "candidates")
    model: str = like(TrainConfig, "model")
    batch_size: int = like(TrainConfig, "batch_size")
    images: int = setting(
        4000, "Largest number of training images, each read once before.", low=1, high=10**9
    )
    source: Path | None = setting(
        None,
        "What the shards were built from: a plain training on its JPEGs, decoded in each step, is "
        "measured as well.  [default: none]",
    )
    seconds: float = setting(1.0, "Least time of a turn, s.", low=0.001, high=600)
    rounds: int = setting(3, "Turns of each, after one warm-up turn.", low=1, high=1000)
    amp: bool = like(TrainConfig, "amp")
    torchcompile: str | None = like(TrainConfig, "torchcompile")
    workers: int = like(TrainConfig, "workers", text="Threads, or plain processes, that read.")
    device: str = like(TrainConfig, "device")
    preload: str = like(TrainConfig, "preload")

    def __post_init__(self) -> None:
        """Check ranges and choices."""
        check_settings(self)
        self.training("random")

    def training(self, policy: str) -> TrainConfig:
        """Make the training whose step is measured; its schedule never ends."""
        return TrainConfig(
            policy=policy,
            candidates=self.candidates,
            model=self.model,
            batch_size=self.batch_size,
            epochs=MOST_EPOCHS,
            amp=self.amp,
            torchcompile=self.torchcompile,
            workers=self.workers,
            device=self.device,
            preload=self.preload,
        )


@dataclass(frozen=True, kw_only=True)
class LatencyBenchConfig:
    """One `srp-train bench latency RUN` command."""

    threads: int = setting(1, "Threads of onnxruntime.", low=1, high=1024)
    seconds: float = like(StepBenchConfig, "seconds")
    rounds: int = like(StepBenchConfig, "rounds")

    def __post_init__(self) -> None:
        """Check ranges."""
        check_settings(self)
