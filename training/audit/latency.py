"""How long both networks take for one image."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from training.audit.verdict import Latency
from training.model.classifier import SelectiveClassifier

REPEATS = 50  # of one image, for the median
BATCH = 64  # images that are chosen for together, for the rate


@torch.inference_mode()
def measure_latency(
    model: SelectiveClassifier, *, glimpse_px: int, crop_px: int, device: torch.device
) -> Latency:
    """Time both networks on one image, and the proposer on a batch on one core, in float32.

    Args:
        model: That chooses.
        glimpse_px: Side of the glimpses, px.
        crop_px: Side of the crops, px.
        device: Of the model.
    """
    shape = (len(model.looked_at), glimpse_px, glimpse_px)
    looked = torch.zeros((1, *shape), dtype=torch.uint8, device=device)
    several = torch.zeros((BATCH, *shape), dtype=torch.uint8, device=device)
    crop = torch.zeros((1, crop_px, crop_px, 3), dtype=torch.uint8, device=device)
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
