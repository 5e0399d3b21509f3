"""From shards to batches of tensors, in an order that can resume at any sample.

Axes: B samples, K candidates, L that the proposer sees, R resized candidates, C canvas px, H and W
crop px, S glimpse px.
"""

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import (
    ArrayBatch,
    BatchLoader,
    BatchSpec,
    Indices,
    Pixels,
    ShardReader,
    steps_per_epoch,
    training_batches,
)
from pipeline.common.errors import ConfigError

READ_AHEAD = 3  # batches for each reading thread: as many as may lie ready before a step


class Batch(NamedTuple):
    """B samples, valid until the next batch is asked for; clone what is to be kept.

    Pixels are uint8, RGB, channels last as on disk, so that one crop is already in the memory
    format in which convolutions are fastest. There are either `crops_BKHWC`, or `canvases_BCC3`
    and `resized_BRHWC`, from which `training.data.augment.cut` makes the crops. `glimpses_BLSS` are
    gray without padding, or None where no proposer looks. `indices_B` are positions in the split;
    they stay on the CPU, so that a step looks up what is known of its samples without waiting.
    """

    crops_BKHWC: Tensor | None
    canvases_BCC3: Tensor | None
    resized_BRHWC: Tensor | None
    glimpses_BLSS: Tensor | None
    labels_B: Tensor
    indices_B: Tensor

    def of(self, rows: slice) -> "Batch":
        """View some of the samples; nothing is copied."""
        return Batch(*(None if tensor is None else tensor[rows] for tensor in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        """Copy all but `indices_B` to a device."""
        carried = {name: tensor for name, tensor in self._asdict().items() if tensor is not None}
        del carried["indices_B"]
        return self._replace(**{name: send(tensor, device) for name, tensor in carried.items()})


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device, and wait for nothing.

    To a GPU it is copied from pinned memory: a copy from other memory waits until the GPU has
    done all that it was told before.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class BatchReader:
    """Reads batches of one split onto a device."""

    def __init__(
        self, reader: ShardReader, content: BatchSpec, *, workers: int, device: torch.device
    ) -> None:
        """Open a split.

        Args:
            reader: Reads the split.
            content: What batches carry.
            workers: Threads.
            device: That batches are copied to.

        Raises:
            ConfigError: If the shards do not hold what batches should carry.
        """
        self.reader = reader
        self._device = device
        is_gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]
        allocate = _pinned if is_gpu else None
        self._loader = BatchLoader(reader, content, workers=workers, allocate=allocate)

    def num_bytes(self, num_samples: int) -> int:
        """Count the bytes of the pixels of so many samples."""
        return self._loader.num_bytes(num_samples)

    def batches(self, index_batches: Collection[Indices]) -> Iterator[Batch]:
        """Read batches of the given samples, in the given order, some ahead of their use."""
        for arrays in self._loader.batches(index_batches):
            batch = _to_tensors(arrays)
            if self._copies is None:
                yield batch.to(self._device)
            else:
                yield _copied(batch, self._device, self._copies)
                self._copies.synchronize()  # the next batch may be written to the same memory


def _copied(batch: Batch, device: torch.device, copies: torch.cuda.Stream) -> Batch:
    """Copy a batch to a GPU on a stream of its own, while the step before computes there."""
    with torch.cuda.stream(copies):
        there = batch.to(device)
    computes = torch.cuda.current_stream(device)
    computes.wait_stream(copies)
    for tensor in there:
        if tensor is not None and tensor.is_cuda:
            tensor.record_stream(computes)  # its memory is free when this stream has used it
    return there


def _pinned(shape: tuple[int, ...]) -> Pixels:
    pixels: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return pixels


def _to_tensors(batch: ArrayBatch) -> Batch:
    """View a batch's arrays as tensors; nothing is copied."""
    pixels = [None if array is None else torch.from_numpy(array) for array in batch.arrays]
    numbers = [torch.from_numpy(batch.labels_B), torch.from_numpy(batch.indices_B)]
    return Batch(*pixels, *numbers)  # type: ignore[arg-type]


class Position(TypedDict):
    """Where a training stands among its samples: what is saved of `TrainingBatches`.

    `num_seen` counts the samples of the epoch that all ranks have been handed.
    """

    epoch: int
    num_seen: int


class Batches(Protocol):
    """What reads the samples of one split: `BatchReader`, or `training.data.kept.KeptSamples`."""

    reader: ShardReader

    def batches(self, index_batches: Collection[Indices]) -> Iterator[Batch]:
        """Give batches of the given samples, in the given order."""


class TrainingBatches:
    """One rank's batches; each pass is one epoch, or the rest of one that was broken off.

    The shuffle is global and depends on the seed and the epoch alone, unless a cache cannot hold
    all shards: see `pipeline.read.sampler`. Ranks share no sample and take the same number of
    steps. After `load_state_dict` exactly the rest follows, with any number of reading threads and,
    where whole steps were seen, of ranks.

    Lightning takes it as `train_dataloaders`, and saves and restores its position.
    """

    def __init__(
        self,
        reader: Batches,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        rows: Indices | None = None,
    ) -> None:
        """Begin with the first epoch.

        Args:
            reader: Reads the training split.
            batch_size: Samples a step and rank.
            seed: Seed of the order.
            rank: This one.
            world_size: Ranks.
            rows: Samples to train on, as indices; None takes all.

        Raises:
            ConfigError: If there are too few samples for one step.
        """
        self._reader = reader
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._rows = np.arange(len(reader.reader)) if rows is None else rows
        self._windows = reader.reader.windows(self._rows)
        self._epoch = self._num_seen = 0
        self._steps = steps_per_epoch(len(self._rows), batch_size=batch_size, world_size=world_size)

    def __len__(self) -> int:
        """Count the steps of a whole epoch."""
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        rest = self._rest()
        if not len(rest):  # what was left fills no step of as many ranks as there are now
            self._epoch, self._num_seen = self._epoch + 1, 0
            rest = self._rest()
        for number, batch in enumerate(self._reader.batches(rest), start=1):
            # Counted before the yield: the caller may not come back after the last batch.
            self._num_seen += self._batch_size * self._world_size
            if number == len(rest):
                self._epoch, self._num_seen = self._epoch + 1, 0
            yield batch

    def _rest(self) -> Indices:
        return self._rows[self._places()]

    def _places(self) -> Indices:
        return training_batches(
            len(self._rows),
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=self._epoch,
            rank=self._rank,
            world_size=self._world_size,
            start=self._num_seen,
            windows=self._windows,
        )

    def keys(self, rows: Iterable[int]) -> tuple[str, ...]:
        """Name samples by their rows."""
        keys = self._reader.reader.keys
        return tuple(keys[row] for row in rows)

    def state_dict(self) -> Position:
        """Say where the next batch begins."""
        return {"epoch": self._epoch, "num_seen": self._num_seen}

    def load_state_dict(self, state: Position) -> None:
        """Continue from there with the next pass.

        Raises:
            ConfigError: If the position is not among the samples.
        """
        epoch, num_seen = state["epoch"], state["num_seen"]
        if epoch < 0 or not 0 <= num_seen <= len(self._rows):
            raise ConfigError(
                f"a position must lie within the training samples; got epoch {epoch} and "
                f"{num_seen} samples of {len(self._rows)}. Use the state with its own shards."
            )
        self._epoch, self._num_seen = epoch, num_seen


class Example(NamedTuple):
    """One sample; `row` is its position in the split. Pixels are uint8, as in a `Batch`."""

    crops_KHWC: Tensor
    glimpses_KSS: Tensor
    label: int
    row: int


class ShardDataset(Dataset[Example]):
    """One split for PyTorch's own `DataLoader`, whose processes each map the shards.

    Every sample is checked each time it is read. `TrainingBatches` is several times as fast.
    """

    def __init__(self, reader: ShardReader, *, candidates: tuple[int, ...] | None = None) -> None:
        """Open a split.

        Args:
            reader: Reads the split.
            candidates: Indices on axis K to read; all by default.
        """
        self._reader = reader
        self._candidates = candidates

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Example:
        sample = self._reader.read(index, candidates=self._candidates)
        crops_KHWC = np.stack([crop.transpose(1, 2, 0) for crop in sample.crops])
        glimpses_KSS = np.ascontiguousarray(sample.small_glimpses[:, 0])
        return Example(
            torch.from_numpy(crops_KHWC), torch.from_numpy(glimpses_KSS), sample.label, index
        )
