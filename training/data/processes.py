"""Several processes that train one model; one process is the normal case."""

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline.common.errors import ConfigError, EveryRankError
from training.data.endings import one_speaks

# Of glibc's malloc.h; it takes no larger threshold than this one.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
CPU_ALLOCATOR = "DefaultCPUAllocator: "  # what torch's error names where a CPU's memory is full
CPU = torch.device("cpu")
ANSWER = timedelta(minutes=10)  # in which every process must join each exchange
PATIENCE = timedelta(days=30)  # in which groups that work apart must have met again


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process among those that train together; by default one alone, on the CPU.

    Attributes:
        rank: `0 <= rank < world_size`; rank 0 prints and writes.
        world_size: Number of processes.
        device: Where this one computes.
        group: Those that it exchanges tensors with; None where they are all that were started.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


@contextmanager
def started(device: str) -> Iterator[Process]:
    """Join the processes that torchrun started, or run alone.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: If this process has no GPU and one was asked for.
        LostRankError: If another process died, or did not answer within `ANSWER`.
        ToldError: If another process has said why they all end.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available() if device == "auto" else device == "cuda"
    place = _gpu(local_rank) if on_gpu else torch.device("cpu")
    keep_freed_memory()
    if world_size == 1:
        with _memory_errors():
            yield Process(rank=0, world_size=1, device=place)
        return
    with _stdout_on_stderr():
        store, rank, world_size = next(rendezvous("env://", timeout=ANSWER))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=world_size,
            timeout=ANSWER, device_id=place if on_gpu else None,
        )  # fmt: skip
    try:
        with one_speaks(store, rank=rank, answer=ANSWER), _memory_errors():
            yield Process(rank=rank, world_size=world_size, device=place)
    finally:
        dist.destroy_process_group()


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Keep stdout for results: the Gloo of torch 2.9 says there that its ranks are connected."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def local_processes() -> int:
    """Count the processes that train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def require_one(process: Process, work: str) -> None:
    """Refuse several processes where one does all the work.

    Args:
        process: This one among its peers.
        work: What is done, as a sentence begins with it.

    Raises:
        ConfigError: If there are several.
    """
    if process.world_size > 1:
        raise EveryRankError(
            f"{work} runs in one process; got {process.world_size}. Type the same with srp-train "
            "in place of torchrun and its options."
        )


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn out-of-memory errors into one line; on CPUs torch has no error class for them."""
    try:
        yield
    except RuntimeError as error:
        _, names_cpu, reason = str(error).partition(CPU_ALLOCATOR)
        if not names_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigError(
            f"a step must fit the device's memory; got {(reason or str(error)).split('.')[0]}. "
            "Lower --batch-size."
        ) from error


def cpu_capabilities() -> dict[str, Any]:
    """Ask torch what the CPU can do, and its name; torch 2.9 knows only one answer that we need."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors instead of handing it back to the system.

    A step frees and takes the same tensors again; by default each comes from the system anew,
    page by page, which made a ResNet18 step on two cores 10 to 15 % slower. Other C libraries
    have no `mallopt` and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _gpu(local_rank: int) -> torch.device:
    """Take this process's own GPU."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_processes() > num_gpus:  # so that all of this machine end
        raise ConfigError(
            f"--device cuda needs a GPU for each process; got {num_gpus} for process "
            f"{local_processes()} of this machine. Use --device cpu or fewer processes."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def parallel(model: nn.Module, process: Process) -> nn.Module:
    """Make a model average its gradients over the processes."""
    if process.world_size == 1:
        return model
    ids = [process.device.index] if process.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, process_group=process.group)


def averages_gradients(model: nn.Module, *, wanted: bool) -> AbstractContextManager[None]:
    """Let a `parallel` model average its gradients in this context, or only add them up."""
    if wanted or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


@contextmanager
def apart(process: Process, num_groups: int) -> Iterator[tuple[Process, int]]:
    """Part all processes into equal groups, which work apart until all have ended this context.

    Args:
        process: This one among all; their number is a multiple of `num_groups`.
        num_groups: Number of groups.

    Returns:
        This process in its group, and the group's number.
    """
    size = process.world_size // num_groups
    ranks = [list(range(at * size, (at + 1) * size)) for at in range(num_groups)]
    own, _ = dist.new_subgroups_by_enumeration(ranks, timeout=ANSWER)
    # Some groups take longer than others.
    meeting = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))
    number, rank = divmod(process.rank, size)
    yield replace(process, rank=rank, world_size=size, group=cast(dist.ProcessGroup, own)), number
    dist.barrier(meeting)


def share_tensors(tensors: Iterable[Tensor], process: Process) -> None:
    """Give every process rank 0's values of some tensors, in place."""
    if process.world_size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, group=process.group, group_src=0)


def sum_over_ranks(tensor: Tensor, process: Process) -> Tensor:
    """Add a tensor up over the processes, in place."""
    if process.world_size > 1:
        dist.all_reduce(tensor, group=process.group)
    return tensor


def any_rank(is_so: bool, process: Process) -> bool:
    """Whether it is so on any process; all get the same answer."""
    counts = torch.tensor([is_so], dtype=torch.int64, device=process.device)
    return bool(sum_over_ranks(counts, process))


def gather_ranks(tensor: Tensor, process: Process) -> Tensor:
    """Stack each process's tensor, `(R, ...)` in the order of the ranks."""
    if process.world_size == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(process.world_size)]
    dist.all_gather(parts, tensor, group=process.group)
    return torch.stack(parts)


def wait_for_main(process: Process) -> None:
    """Let the other processes wait until rank 0 has written its files."""
    if process.world_size > 1:
        dist.barrier(process.group)
