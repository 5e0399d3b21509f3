"""How scores become what the classifier sees in training, and what is learnt from it.

At evaluation every policy that selects does the same: the crop with the best score, no noise.

Axes: B samples, K candidates, H and W px, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise from a seeded generator, float32 on the CPU."""
    exponential = torch.empty(shape).exponential_(generator=generator)
    return -exponential.log()


def blend(scores_BK: Tensor, noise_BK: Tensor, temperature: float) -> Tensor:
    """Weigh the crops by a Gumbel-Softmax; the classifier sees their sum, pixel by pixel.

    Source: Jang et al. 2017, Categorical Reparameterization with Gumbel-Softmax, eq. 2; the
    sum of pixels is the predecessor's.

    Returns:
        Float `(B, K)`, each row sums to 1.
    """
    return ((scores_BK + noise_BK) / temperature).softmax(1)


def straight_through(scores_BK: Tensor, noise_BK: Tensor, temperature: float) -> Tensor:
    """Choose one crop with Gumbel noise; the gradient is that of the soft weights.

    Source: Jang et al. 2017, section 2.2, the straight-through Gumbel-Softmax estimator.

    Returns:
        Float `(B, K)`, one 1 in each row.
    """
    soft = blend(scores_BK, noise_BK, temperature)
    hard = F.one_hot(soft.argmax(1), soft.shape[1]).to(soft.dtype)
    return hard + (soft - soft.detach())  # in this order the ones are exact


def expected_loss(probabilities_BK: Tensor, losses_BK: Tensor) -> Tensor:
    """Take the exact expectation of the loss over the choice, a scalar.

    K is small, so every crop goes through the classifier and no estimator is needed.
    """
    return (probabilities_BK * losses_BK).sum(1).mean()


def soft_target_loss(scores_BK: Tensor, errors_BK: Tensor, temperature: float) -> Tensor:
    """Compare the choice with the one that the known chances of an error ask for, a scalar.

    It is the cross-entropy of the choice with softmax(-errors / temperature). A choice that is sure
    and wrong still has a gradient here, but not in the expected loss. The lower the temperature,
    the more a noisy best crop counts.

    Source: Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach, the
    loss of ListNet on top one probabilities; the temperature is ours.
    """
    targets_BK = (-errors_BK / temperature).softmax(1)
    return F.cross_entropy(scores_BK, targets_BK)


def leave_one_out_loss(log_probabilities_BM: Tensor, losses_BM: Tensor) -> Tensor:
    """Estimate the gradient of the expected loss from M >= 2 crops drawn with replacement.

    The classifier learns from the drawn crops' mean loss. The proposer learns by the score
    function, each draw's loss compared with the mean of the others', which keeps the estimate
    unbiased and its variance low.

    Args:
        log_probabilities_BM: Log probabilities of the drawn crops.
        losses_BM: Losses of the classifier on them.

    Returns:
        A scalar whose gradient is the estimate. Its value is not the loss.

    Source: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free, eq. 8.
    """
    num_draws = losses_BM.shape[1]
    fixed = losses_BM.detach()
    others = (fixed.sum(1, keepdim=True) - fixed) / (num_draws - 1)
    score_function = ((fixed - others) * log_probabilities_BM).mean(1)
    return (losses_BM.mean(1) + score_function).mean()


def mean_choice_entropy(probabilities_BK: Tensor) -> Tensor:
    """Measure how evenly a batch uses the crops, 0 to log K, nats.

    It is the entropy of the batch's mean choice, not the mean entropy: a proposer may be sure
    of each image and still use all crops.
    """
    mean_K = probabilities_BK.mean(0)
    return -(mean_K * mean_K.clamp_min(1e-12).log()).sum()


def mix(crops_BKHWC: Tensor, weights_BK: Tensor) -> Tensor:
    """Sum K crops by their weights, uint8 to float `(B, H, W, 3)` in 0 to 255.

    Under autocast the pixels become bfloat16 at once, which holds all bytes exactly.
    """
    num_samples, num_crops, height, width, channels = crops_BKHWC.shape
    device = crops_BKHWC.device.type
    fast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if fast else weights_BK.dtype
    flat = crops_BKHWC.reshape(num_samples, num_crops, -1).to(dtype)
    mixed = torch.bmm(weights_BK[:, None].to(dtype), flat)
    return mixed.reshape(num_samples, height, width, channels)


def take(crops_BKHWC: Tensor, chosen_B: Tensor) -> Tensor:
    """Take one crop a sample, uint8 `(B, H, W, 3)`."""
    rows = torch.arange(chosen_B.shape[0], device=chosen_B.device)
    return crops_BKHWC[rows, chosen_B]
