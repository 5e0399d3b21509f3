"""`--sync-bn`: batch norms that average over the batches of all processes.

On a GPU they are torch's own, which refuses a CPU; on a CPU they are written here, in torch's
operations, which take several times as long and give the same numbers.

Axes: B samples, C channels.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.data.processes import Process


def synchronise(network: nn.Module, process: Process) -> None:
    """Replace the batch norms inside a network; they keep their weights and their names."""
    if process.world_size == 1:
        return
    if process.device.type == "cuda":
        convert_sync_batchnorm(network, process_group=process.group)
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncedNorm(child, process))


class SyncedNorm(_BatchNorm):
    """A batch norm, with timm's activation where it had one, of equal batches on all ranks.

    Source: Ioffe and Szegedy 2015, Batch Normalization, algorithm 1, its batch being that of all
    ranks.
    """

    def __init__(self, norm: _BatchNorm, process: Process) -> None:
        """Take the place of a batch norm."""
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)
        self._process = process

    def __deepcopy__(self, memo: dict[int, Any]) -> "SyncedNorm":
        """Copy all but the group of the processes, which has no copy."""
        copied = SyncedNorm(self, self._process)
        copied._parameters = {name: _copied(value) for name, value in self._parameters.items()}
        copied._buffers = {name: _copied(value) for name, value in self._buffers.items()}
        copied.train(self.training)
        memo[id(self)] = copied
        return copied

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise `(B, C, ...)`; running averages move as those of torch's batch norm."""
        normed: Tensor = self._normed(inputs) if self.training else super().forward(inputs)
        for layer in (self.drop, self.act):
            normed = normed if layer is None else layer(normed)
        return normed

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 torch's own name
        """Take any number of places; torch asks its subclasses."""

    def _normed(self, inputs: Tensor) -> Tensor:
        ranks = self._process.world_size
        values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [1, -1, *[1] * (values.ndim - 2)]
        mean_C = _SumOverRanks.apply(values.mean(axes), self._process.group) / ranks
        centred = values - mean_C.reshape(shape)
        var_C = _SumOverRanks.apply(centred.square().mean(axes), self._process.group) / ranks
        self._move(mean_C.detach(), var_C.detach(), ranks * values.numel() // values.shape[1])
        scale_C = (var_C + self.eps).rsqrt()
        if self.weight is not None:
            scale_C = scale_C * self.weight
        normed = centred * scale_C.reshape(shape)
        if self.bias is not None:
            normed = normed + self.bias.reshape(shape)
        result: Tensor = normed.to(inputs.dtype)
        return result

    @torch.no_grad()
    def _move(self, mean_C: Tensor, var_C: Tensor, num_values: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is None:
            raise RuntimeError("running averages without their count")
        self.num_batches_tracked += 1
        part = self.momentum
        if part is None:
            part = 1 / float(self.num_batches_tracked)
        unbiased_C = var_C * (num_values / max(1, num_values - 1))
        self.running_mean.lerp_(mean_C, part)
        self.running_var.lerp_(unbiased_C, part)


def _copied(value: Tensor | None) -> Any:
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().clone(), value.requires_grad)
    return None if value is None else value.clone()


class _SumOverRanks(torch.autograd.Function):
    """Add a tensor up over the ranks; each rank's loss depends on every rank's part."""

    @staticmethod
    def forward(context: Any, part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        context.group = group
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=context.group)
        return total, None
