"""How long both networks take for one image."""

import statistics
import time
from collections.abc import Callable

import torch

from training.audit import Latency
from training.model import SelectiveClassifier

REPEATS = 50  # of one image, for the median


@torch.inference_mode()
def measure_latency(
    model: SelectiveClassifier, *, glimpse_px: int, crop_px: int, device: torch.device
) -> Latency:
    """Time both networks on one image, batch size 1, float32.

    Args:
        model: That chooses.
        glimpse_px: Side of the glimpses, px.
        crop_px: Side of the crops, px.
        device: Of the model.
    """
    looked = torch.zeros(
        (1, len(model.looked_at), glimpse_px, glimpse_px), dtype=torch.uint8, device=device
    )
    crop = torch.zeros((1, crop_px, crop_px, 3), dtype=torch.uint8, device=device)
    if model.proposer is None:
        raise RuntimeError("a run that chooses without a proposer")
    proposer = model.proposer
    return Latency(
        proposer_ms=_median_ms(lambda: proposer(looked).chosen_B.item()),
        classifier_ms=_median_ms(lambda: model.logits(crop).argmax().item()),
    )


def _median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 5):  # the first few warm up
        start = time.perf_counter()
        run()  # ends in a number, so a GPU is waited for
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[5:])
