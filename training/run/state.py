"""Everything that one run holds in memory, built from its config and its shards."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline import CropLayout, Indices, ShardFolder
from pipeline.common.errors import ConfigError
from training.config import FOLDS, TrainConfig
from training.data.augment import Draws, Mirrored, mirrored_candidates
from training.data.kept import KeptSamples, place_of_samples
from training.data.processes import Process, parallel
from training.data.shards import Batch, Batches, TrainingBatches
from training.model.classifier import SelectiveClassifier, uses_bfloat16
from training.model.compiled import check_compiler
from training.model.policies import POLICIES
from training.model.proposer import suited_channels
from training.model.sync_norm import synchronise
from training.optim.average import begin_average
from training.optim.optimizer import make_optimizer, trained_weights
from training.optim.schedule import make_scheduler
from training.score.choices import mirrored_choices

FLIPS = 2**32  # beside a seed, so that no other chance is drawn from the same


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run in memory.

    Attributes:
        config: As asked for.
        process: This process among its peers.
        model: With its own weights.
        average: A moving average of the model's weights; None where the run keeps none.
        wrapped: The same model, with gradients averaged over the processes.
        optimizer: Changes the weights.
        trained: The weights that it changes: those of networks whose rate is not 0.
        scheduler: Changes the learning rate after every step.
        batches: The training split on the process's device.
        crop_layout: The candidates that the shards hold.
        glimpse_counterparts: Which glimpse takes each one's place in a mirrored image.
        steps: A rank's steps an epoch.
        autocast: Whether to compute in bfloat16.
        first_flips_N: Whether each training image is mirrored in even epochs, counted from 0, bool,
            on the CPU; None where chance decides anew in each step.
        choices_NWK: Log-probability of each crop of each training image in each of the ways to
            mirror it, float32, on the CPU; None where the proposer chooses in the step.
    """

    config: TrainConfig
    process: Process
    model: SelectiveClassifier
    average: SelectiveClassifier | None
    wrapped: nn.Module
    optimizer: Optimizer
    trained: tuple[nn.Parameter, ...]
    scheduler: LRScheduler
    batches: TrainingBatches
    crop_layout: CropLayout
    glimpse_counterparts: Mirrored
    steps: int
    autocast: bool
    first_flips_N: Tensor | None = None
    choices_NWK: Tensor | None = None

    @property
    def scored(self) -> SelectiveClassifier:
        """Give the networks that are validated, saved and used: the average, if there is one."""
        return self.model if self.average is None else self.average

    @property
    def images_per_step(self) -> int:
        """Count the images of one step, over all ranks."""
        return self.config.images_per_rank * self.process.world_size

    def chosen_ahead(
        self, batch: Batch, draws: Draws, noise_BK: Tensor, *, chooses: bool
    ) -> Tensor | None:
        """Choose the crop of each image that is cut, on the CPU; None where the step chooses."""
        if not (self.config.chooses_ahead and chooses):
            return self.model.chosen_ahead(noise_BK, chooses=chooses)
        if self.choices_NWK is None:
            raise RuntimeError("a held proposer whose choices are not known")
        choices_BK = self.choices_NWK[batch.indices_B, draws.ways_B]
        return (choices_BK + noise_BK).argmax(1)  # Gumbel-max: a draw from the proposer's softmax


def build_state(config: TrainConfig, shards: ShardFolder, process: Process) -> RunState:
    """Build a run that has not taken a step.

    Raises:
        ConfigError: If the config does not fit the shards.
    """
    _check_fits(config, shards)
    check_compiler(config.torchcompile, process.device)
    model = build_model(config, shards, process)
    if config.sync_bn:
        synchronise(model, process)
    optimizer = make_optimizer(model, config)
    rows = training_rows(shards, config.fold)
    if len(rows) < config.images_per_rank * process.world_size:
        raise ConfigError(
            f"a step must not need more images than there are; got "
            f"{division(config, process.world_size)} for {len(rows)} images. Lower --batch-size."
        )
    batches = TrainingBatches(
        _reader(model, shards, process, rows),
        batch_size=config.images_per_rank,
        seed=config.seed,
        rank=process.rank,
        world_size=process.world_size,
        rows=rows,
    )
    return RunState(
        config=config,
        process=process,
        model=model,
        average=begin_average(model, config),
        wrapped=parallel(model, process),
        optimizer=optimizer,
        trained=trained_weights(model, config),
        scheduler=make_scheduler(optimizer, config, len(batches)),
        batches=batches,
        crop_layout=shards.crop_layout,
        glimpse_counterparts=mirrored_candidates(shards.crop_layout, model.looked_at),
        steps=len(batches),
        autocast=uses_bfloat16(config, process.device),
        first_flips_N=_first_flips(config, shards),
    )


def division(config: TrainConfig, num_processes: int) -> str:
    """Say in a message how the images of a step are divided."""
    parts = config.grad_accum_steps
    times = "" if parts == 1 else f" x --grad-accum-steps {parts}"
    return f"--batch-size {config.batch_size}{times} on {num_processes} processes"


def _check_fits(config: TrainConfig, shards: ShardFolder) -> None:
    crop_px = shards.manifest.spec.crop_size
    if config.shift >= crop_px:
        raise ConfigError(
            f"--shift must be below the crop's side; got {config.shift} px for crops of {crop_px} "
            f"px in {shards.place}. Lower --shift."
        )
    if config.scale is not None and shards.manifest.spec.layout != "canvas":
        raise ConfigError(
            "--scale takes windows of canvases; got --layout "
            f"{shards.manifest.spec.layout} in {shards.place}. Build shards with --layout canvas, "
            "or drop --scale."
        )
    if config.start_size is not None and config.start_size >= crop_px:
        raise ConfigError(
            f"--start-size must be below the crop's side; got {config.start_size} px for crops of "
            f"{crop_px} px in {shards.place}. Lower it, or drop it."
        )
    is_fitted = POLICIES[config.policy].is_fitted
    if config.holds_proposer and not is_fitted and not config.initial_checkpoint:
        raise ConfigError(
            "--proposer-lr 0 keeps the proposer's weights, which must be trained before; got no "
            "--initial-checkpoint. Give a run with a trained proposer, or raise --proposer-lr."
        )


def _first_flips(config: TrainConfig, shards: ShardFolder) -> Tensor | None:
    if not config.alternating_flip:
        return None
    chance = np.random.default_rng((config.seed, FLIPS))
    return torch.from_numpy(chance.random(shards.manifest.num_samples("train")) < 0.5)


def _reader(
    model: SelectiveClassifier, shards: ShardFolder, process: Process, rows: Indices
) -> Batches:
    """Open what a run reads: the shards, or samples that are kept."""
    config = model.config
    open_split = partial(model.reader, shards, "train", with_glimpses=not config.chooses_ahead)
    reader = open_split(process)
    kept_on = place_of_samples(config.preload, reader.num_bytes(len(rows)), process)
    if kept_on is None:
        return reader
    return KeptSamples(open_split(replace(process, device=kept_on)), rows, device=process.device)


def with_choices(state: RunState, shards: ShardFolder) -> RunState:
    """Let a held proposer choose ahead, in all ways in which the run mirrors an image."""
    num_ways = 4 if state.config.vflip else 2
    choices_NWK = mirrored_choices(state.model, shards, state.process, num_ways=num_ways)
    return replace(state, choices_NWK=choices_NWK)


def broken_weights(model: nn.Module) -> str | None:
    """Name one of a model's tensors that are not all numbers, if there is one."""
    state = model.state_dict().items()
    return next((name for name, tensor in state if not torch.isfinite(tensor).all()), None)


def training_rows(shards: ShardFolder, fold: int | None) -> Indices:
    """List the training samples of a run: all, or those outside of a fold."""
    if fold is None:
        return np.arange(shards.manifest.num_samples("train"))
    return np.flatnonzero(shards.fold_of("train", FOLDS) != fold)


def smallest_half(shards: ShardFolder) -> int:
    """Count the samples of the classifier that has the fewest, because its fold has the most."""
    folds_N = shards.fold_of("train", FOLDS)
    return len(folds_N) - int(np.bincount(folds_N, minlength=FOLDS).max())


def fold_rows(shards: ShardFolder, fold: int) -> Indices:
    """List the training samples of one fold: those that its classifier has not seen."""
    return np.flatnonzero(shards.fold_of("train", FOLDS) == fold)


def build_model(config: TrainConfig, shards: ShardFolder, process: Process) -> SelectiveClassifier:
    """Build the networks with the seed's weights, on the process's device."""
    torch.manual_seed(config.seed)
    model = SelectiveClassifier(
        config,
        plan=shards.crop_layout,
        num_classes=len(shards.manifest.classes),
        glimpse_px=glimpse_side(config, shards),
    )
    return model.to(process.device)


def settled(config: TrainConfig, shards: ShardFolder) -> TrainConfig:
    """Fill in the proposer and its channels if none are given: the record says what was run."""
    if not config.selects:
        return config
    channels = config.proposer_channels
    if channels is None:
        channels = suited_channels(config.proposer_kind, glimpse_side(config, shards))
    return replace(config, proposer=config.proposer_kind, proposer_channels=channels)


def glimpse_side(config: TrainConfig, shards: ShardFolder) -> int:
    """Give the side of a run's glimpses, px.

    Raises:
        ConfigError: If it exceeds the crop.
    """
    spec = shards.manifest.spec
    side = config.glimpse_size or spec.glimpse_size
    if side > spec.crop_size:
        raise ConfigError(
            f"glimpse size must fit the crop; got --glimpse-size {side} px for crops of "
            f"{spec.crop_size} px in {shards.place}. Lower --glimpse-size."
        )
    return side
