import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from training.data.processes import Process
from training.model.sync_norm import SyncedNorm, synchronise

TWO = Process(world_size=2)


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make up a second process with the same batch: the averages are those of either."""
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: tensor.mul_(2))


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_synchronised_norm_computes_what_torchs_does(
    kind: type[nn.BatchNorm2d], momentum: float | None
) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(kind(3, momentum=momentum)).double()
    nn.init.normal_(network[0].weight)
    synced = copy.deepcopy(network)
    synchronise(synced, TWO)
    assert isinstance(synced[0], SyncedNorm)
    assert list(synced.state_dict()) == list(network.state_dict())
    for _ in range(2):
        images = torch.randn(5, 3, 4, 4, dtype=torch.float64) + 2
        given = [images.clone().requires_grad_() for _ in range(2)]
        seen = [model(each) for model, each in zip((network, synced), given, strict=True)]
        torch.testing.assert_close(seen[1], seen[0])
        for each in seen:
            (each**2 * images).sum().backward()
        torch.testing.assert_close(given[1].grad, given[0].grad)
    pairs = zip(network.parameters(), synced.parameters(), strict=True)
    assert all(torch.allclose(one.grad, other.grad) for one, other in pairs)  # type: ignore[arg-type]
    torch.testing.assert_close(network[0].running_mean, synced[0].running_mean)
    # It counts the images of both processes.
    unbiased = synced[0].running_var - network[0].running_var
    assert unbiased.abs().max() < 0.02
    assert torch.equal(network[0].num_batches_tracked, synced[0].num_batches_tracked)


def test_at_evaluation_and_in_a_copy_it_is_as_before() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    images = torch.randn(4, 3, 2, 2)
    network(images)
    synced = copy.deepcopy(network)
    synchronise(synced, TWO)
    average = copy.deepcopy(synced)  # as `--model-ema` makes one
    for model in (network, synced, average):
        model.eval()
        assert torch.equal(model(images), network(images))
    average[0].weight.data.zero_()
    assert synced[0].weight.abs().sum() == 3


def test_one_process_keeps_torchs_norms(alone: Process) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(network, alone)
    assert type(network[0]) is nn.BatchNorm2d


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_torchs_own_synchronised_norms() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(network, Process(world_size=2, device=torch.device("cuda", 0)))
    assert isinstance(network[0], nn.SyncBatchNorm)
