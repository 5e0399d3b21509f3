"""What a choice and a classification cost: multiply-accumulates, and time on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training.model.classifier import SelectiveClassifier

REPEATS = 50  # of one image, for the median
BATCH = 64  # images that the proposer chooses for together, for the rate


def count_macs(model: SelectiveClassifier, *, image_px: int | None = None) -> tuple[int, int]:
    """Count multiply-accumulates with torch's own flop counter; two flops are one MAC.

    Args:
        model: To count.
        image_px: Side of the image that the classifier sees; None takes a crop's.

    Returns:
        MACs of the proposer for one image's glimpses, and of the classifier for one image.
    """
    model.eval()
    side, looked = image_px or model.crop_px, _glimpses(model, 1)
    image = torch.zeros((1, side, side, 3), device=looked.device)
    with torch.inference_mode():
        proposer = 0 if model.proposer is None else _macs(lambda: model.proposer(looked))  # type: ignore[misc]
        return proposer, _macs(lambda: model.logits(image))


def _macs(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def _glimpses(model: SelectiveClassifier, num_images: int) -> Tensor:
    """Make black glimpses as the proposer takes them, uint8 `(B, L, S, S)`."""
    shape = (num_images, len(model.looked_at), model.glimpse_px, model.glimpse_px)
    return torch.zeros(shape, dtype=torch.uint8, device=next(model.parameters()).device)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How fast both networks are on this machine, medians.

    Milliseconds are for one image at batch size 1. The rate is the proposer's at batch size 64, on
    one core where it runs on a CPU.
    """

    proposer_ms: float
    classifier_ms: float
    proposer_images_per_s: float


@torch.inference_mode()
def measure_latency(model: SelectiveClassifier) -> Latency:
    """Time both networks on one image, and the proposer on a batch on one core, in float32.

    Args:
        model: That chooses.
    """
    looked, several = _glimpses(model, 1), _glimpses(model, BATCH)
    crop = torch.zeros(
        (1, model.crop_px, model.crop_px, 3), dtype=torch.uint8, device=looked.device
    )
    if model.proposer is None:
        raise RuntimeError("a run that chooses without a proposer")
    proposer = model.proposer
    with _one_core():
        batch_ms = _median_ms(lambda: proposer(several).chosen_B.max().item())
    return Latency(
        proposer_images_per_s=1e3 * BATCH / batch_ms,
        proposer_ms=_median_ms(lambda: proposer(looked).chosen_B.item()),
        classifier_ms=_median_ms(lambda: model.logits(crop).argmax().item()),
    )


@contextmanager
def _one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 5):  # the first few warm up
        start = time.perf_counter()
        run()  # ends in a number, so a GPU is waited for
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])
