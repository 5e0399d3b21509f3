"""Training samples that are read once and kept, in RAM or on the device; see `--preload`.

Axes: N samples that are kept, B of a batch.
"""

from collections.abc import Collection, Iterator

import numpy as np
import torch

from pipeline import Indices, ShardReader
from pipeline.common.errors import ConfigError
from pipeline.common.memory import free_bytes
from training.data.processes import CPU, Process, local_processes
from training.data.shards import Batch, BatchReader, send

READ_AT_ONCE = 256  # samples
MOST_OF_FREE = 0.5  # of a GPU's free memory, that `auto` takes: networks need the rest


class KeptSamples:
    """Gives batches of samples that are read with the first of them.

    A batch is gathered where the samples lie, and its tensors are its own. They equal those that
    `BatchReader` gives, bit for bit.
    """

    def __init__(self, source: BatchReader, rows_N: Indices, *, device: torch.device) -> None:
        """Read nothing yet.

        Args:
            source: Reads them, onto the CPU or the device: there they stay.
            rows_N: Samples to keep; no others can be asked for.
            device: That batches are wanted on.
        """
        self.reader: ShardReader = source.reader
        self._source, self._rows_N, self._device = source, rows_N, device
        self._kept: Batch | None = None
        self._place_of = np.full(len(source.reader), -1, np.int64)
        self._place_of[rows_N] = np.arange(len(rows_N))

    def batches(self, index_batches: Collection[Indices]) -> Iterator[Batch]:
        """Gather batches of the given samples, in the given order."""
        if self._kept is None:
            self._kept = self._read()
        for indices_B in index_batches:
            yield self._gathered(self._kept, indices_B)

    def _read(self) -> Batch:
        """Read all samples, one after the other."""
        num_samples = len(self._rows_N)
        pieces = np.split(self._rows_N, np.arange(READ_AT_ONCE, num_samples, READ_AT_ONCE))
        kept: Batch | None = None
        start = 0
        for batch in self._source.batches(pieces):
            stop = start + len(batch.indices_B)
            kept = _like(batch, num_samples) if kept is None else kept
            for whole, part in zip(kept, batch, strict=True):
                if whole is not None and part is not None:
                    whole[start:stop] = part
            start = stop
        if kept is None:
            raise RuntimeError("no samples to keep")
        return kept

    def _gathered(self, kept: Batch, indices_B: Indices) -> Batch:
        """Copy samples to a batch, and that to the device; nothing is waited for."""
        places_B = torch.from_numpy(self._place_of[indices_B])
        there_B = send(places_B, kept.labels_B.device)
        carried = {
            name: tensor.index_select(0, there_B)
            for name, tensor in kept._asdict().items()
            if tensor is not None and name != "indices_B"
        }
        batch = kept._replace(**{**carried, "indices_B": torch.from_numpy(indices_B)})
        return batch if batch.labels_B.device == self._device else batch.to(self._device)


def _like(batch: Batch, num_samples: int) -> Batch:
    """Allocate room for samples like those of a batch, where they lie."""
    rooms = (
        None if tensor is None else tensor.new_empty(num_samples, *tensor.shape[1:])
        for tensor in batch
    )
    return Batch(*rooms)  # type: ignore[arg-type]


def place_of_samples(preload: str, num_bytes: int, process: Process) -> torch.device | None:
    """Decide where the samples of a run are kept; None reads them from the shards in each epoch.

    Args:
        preload: As in `TrainConfig`. `auto` keeps them on a GPU with plenty of free memory. On a
            CPU, shards that are mapped lie in RAM once they were read.
        num_bytes: Size of the samples.
        process: This one; each process of a machine keeps all samples.

    Raises:
        ConfigError: If they do not fit where they are asked for.
    """
    device = process.device if preload != "ram" else CPU
    if preload == "none" or (preload == "auto" and device.type != "cuda"):
        return None
    needed, free = num_bytes, _free_on(device) if device.type == "cuda" else free_bytes()
    if device.type == "cpu":
        needed *= local_processes()
    if preload == "auto":
        return device if free is not None and needed <= MOST_OF_FREE * free else None
    if free is not None and needed > free:
        raise ConfigError(
            f"--preload {preload} needs memory for all training pixels; got {free / 2**30:.1f} GiB "
            f"free on {device.type} for {needed / 2**30:.1f} GiB. Use --preload none."
        )
    return device


def _free_on(device: torch.device) -> int:
    """Count the free memory of a GPU, with what torch has set aside and not used."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)
