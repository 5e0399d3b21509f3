"""From shards to batches: which samples, in which order, on which rank, and how they are read.

Axes: B samples, K candidates, H and W crop px, S glimpse px.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import manifest as manifests
from pipeline.crops import CropPlan, glimpses
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest
from pipeline.reader import IndexedReader
from pipeline.schema import Sample
from training.distributed import Process

PREFETCH = 2  # batches in flight for each reading thread


class Batch(NamedTuple):
    """B samples.

    `crops_BKHWC` is uint8 RGB, channels last as in the canvas, so that one crop is already in
    the memory format in which convolutions are fastest. `glimpses_BKSS` is uint8 gray without
    padding, or None where no proposer looks. `indices_B` are positions in the split.
    """

    crops_BKHWC: Tensor
    glimpses_BKSS: Tensor | None
    labels_B: Tensor
    indices_B: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        looked = self.glimpses_BKSS
        return Batch(
            self.crops_BKHWC.to(device, non_blocking=True),
            None if looked is None else looked.to(device, non_blocking=True),
            self.labels_B.to(device, non_blocking=True),
            self.indices_B.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A folder of shards, opened."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "Shards":
        """Open the shards that a user means; see `pipeline.manifest.find`."""
        folder = manifests.find(path)
        return cls(folder=folder, manifest=manifests.load(folder))

    @property
    def plan(self) -> CropPlan:
        """The candidates that the shards hold."""
        return self.manifest.spec.plan()

    def reader(self, split: str) -> IndexedReader:
        """Open one split.

        Raises:
            ConfigError: If it holds no sample.
        """
        reader = IndexedReader(self.folder, self.manifest, self.manifest.of_split(split))
        if not len(reader):
            raise ConfigError(
                f"a split must hold samples; got 0 in {split} of {self.folder}. "
                "Build shards from a source with images in both splits."
            )
        return reader


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Reads batches of one split with threads, which is enough since reading is copying.

    Attributes:
        reader: Of the split.
        candidates: Indices on axis K to read.
        glimpse_px: Side of the glimpses; None reads none.
        workers: Threads.
        pin: Whether batches lie in pinned memory, for a GPU.
    """

    reader: IndexedReader
    candidates: tuple[int, ...]
    glimpse_px: int | None
    workers: int
    pin: bool

    def batches(self, index_batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Read batches of the given samples, in the given order, some ahead of their use."""
        pending: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="srp-read") as pool:
            try:
                for indices in index_batches:
                    pending.append(pool.submit(self._read, indices))
                    if len(pending) > PREFETCH * self.workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _read(self, indices: Sequence[int]) -> Batch:
        side = self.reader.manifest.spec.crop_size
        num_crops = len(self.candidates)
        crops = torch.empty(
            (len(indices), num_crops, side, side, 3), dtype=torch.uint8, pin_memory=self.pin
        )
        out = crops.numpy()
        looked, labels = [], []
        for row, index in enumerate(indices):
            sample = self.reader.read(index, candidates=self.candidates)
            for column, crop_CHW in enumerate(sample.crops):
                out[row, column] = crop_CHW.transpose(1, 2, 0)
            if self.glimpse_px is not None:
                looked.append(self._glimpses(sample, self.glimpse_px))
            labels.append(sample.label)
        return Batch(
            crops,
            torch.from_numpy(np.stack(looked)) if looked else None,
            torch.tensor(labels),
            torch.tensor(indices),
        )

    def _glimpses(
        self, sample: Sample, glimpse_px: int
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        if glimpse_px == self.reader.manifest.spec.glimpse_size:
            return sample.small_glimpses[:, 0]
        return glimpses(sample.crops, glimpse_px)[:, 0]


def steps_per_epoch(num_samples: int, *, batch_size: int, world_size: int) -> int:
    """Count the steps that every rank takes; samples that fill no whole step are left out.

    Raises:
        ConfigError: If there is not one step.
    """
    steps = num_samples // (batch_size * world_size)
    if not steps:
        raise ConfigError(
            f"a step must not need more images than there are; got --batch-size {batch_size} "
            f"on {world_size} processes for {num_samples} images. Lower --batch-size."
        )
    return steps


def training_batches(
    num_samples: int, *, batch_size: int, seed: int, epoch: int, process: Process
) -> list[list[int]]:
    """List one rank's batches of one epoch.

    The shuffle is global and depends on the seed and the epoch only. Ranks take turns, so they
    share no sample, and all take the same number of steps.
    """
    steps = steps_per_epoch(num_samples, batch_size=batch_size, world_size=process.world_size)
    order = np.random.default_rng((seed, epoch)).permutation(num_samples)
    used = order[: steps * batch_size * process.world_size]
    mine = used.reshape(steps, process.world_size, batch_size)[:, process.rank]
    batches: list[list[int]] = mine.tolist()
    return batches


def evaluation_batches(num_samples: int, *, batch_size: int, process: Process) -> list[list[int]]:
    """List one rank's share of a split, in order; together the ranks see each sample once."""
    mine = range(process.rank, num_samples, process.world_size)
    return [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
