import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from training.model import estimators

BATCH, CROPS = 6, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(seed: int = 1) -> torch.Tensor:
    return torch.randn(BATCH, CROPS, generator=seeded(seed), requires_grad=True)


def noise(seed: int = 2) -> torch.Tensor:
    return estimators.gumbel_noise((BATCH, CROPS), seeded(seed))


def test_gumbel_noise_depends_on_its_generator_alone() -> None:
    torch.manual_seed(1)
    first = noise()
    torch.manual_seed(2)
    assert torch.equal(first, noise())
    assert not torch.equal(first, noise(3))


def test_gumbel_noise_has_the_mean_and_spread_of_a_gumbel_distribution() -> None:
    drawn = estimators.gumbel_noise((200_000,), seeded())
    assert drawn.isfinite().all()
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert drawn.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)


@given(temperature=st.floats(0.05, 10), seed=st.integers(0, 1000))
def test_blended_weights_sum_to_one(temperature: float, seed: int) -> None:
    weights = estimators.blend(scores(seed), noise(seed + 1), temperature)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(BATCH))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_blend_and_straight_through_match_torchs_gumbel_softmax_given_equal_noise(
    temperature: float,
) -> None:
    logits = scores()
    torch.manual_seed(5)
    soft = F.gumbel_softmax(logits, tau=temperature)
    torch.manual_seed(5)
    hard = F.gumbel_softmax(logits, tau=temperature, hard=True)
    torch.manual_seed(5)
    drawn = -torch.empty_like(logits).exponential_().log()
    torch.testing.assert_close(estimators.blend(logits, drawn, temperature), soft)
    torch.testing.assert_close(estimators.straight_through(logits, drawn, temperature), hard)


def test_straight_through_is_one_hot_forwards_and_soft_backwards() -> None:
    hard_scores, soft_scores = scores(), scores()
    hard = estimators.straight_through(hard_scores, noise(), 0.7)
    soft = estimators.blend(soft_scores, noise(), 0.7)
    assert torch.equal(hard, F.one_hot(soft.argmax(1), CROPS).float())
    upstream = torch.randn(BATCH, CROPS, generator=seeded(9))
    (hard * upstream).sum().backward()
    (soft * upstream).sum().backward()
    torch.testing.assert_close(hard_scores.grad, soft_scores.grad)
    assert hard_scores.grad is not None
    assert hard_scores.grad.abs().sum() > 0


def test_the_expected_loss_and_its_gradients_equal_brute_force() -> None:
    logits = scores().double().detach().requires_grad_()
    losses = torch.rand(BATCH, CROPS, generator=seeded(3), dtype=torch.float64).requires_grad_()
    estimators.expected_loss(logits.softmax(1), losses).backward()
    p, f = logits.detach().softmax(1), losses.detach()
    value = sum(p[b, k] * f[b, k] for b in range(BATCH) for k in range(CROPS)) / BATCH
    assert estimators.expected_loss(p, f).item() == pytest.approx(float(value))
    # d/ds_j sum_k p_k f_k = p_j (f_j - sum_k p_k f_k)
    by_hand = p * (f - (p * f).sum(1, keepdim=True)) / BATCH
    torch.testing.assert_close(logits.grad, by_hand)
    torch.testing.assert_close(losses.grad, p / BATCH)


def test_the_soft_target_loss_and_its_gradient_equal_brute_force() -> None:
    logits = scores().double().detach().requires_grad_()
    errors = torch.rand(BATCH, CROPS, generator=seeded(3), dtype=torch.float64)
    loss = estimators.soft_target_loss(logits, errors, 0.3)
    loss.backward()
    p, wanted = logits.detach().softmax(1), (-errors / 0.3).softmax(1)
    value = -sum(
        wanted[b, k] * p[b, k].log() for b in range(BATCH) for k in range(CROPS)
    ) / BATCH  # fmt: skip
    assert loss.item() == pytest.approx(float(value))
    torch.testing.assert_close(logits.grad, (p - wanted) / BATCH)


def test_a_choice_that_is_sure_and_wrong_learns_from_soft_targets_alone() -> None:
    errors = torch.tensor([[1.0, 0.0]])
    pulls = []
    for loss_of in (
        lambda logits: estimators.expected_loss(logits.softmax(1), errors),
        lambda logits: estimators.soft_target_loss(logits, errors, 0.3),
    ):
        logits = torch.tensor([[20.0, -20.0]], requires_grad=True)
        loss_of(logits).backward()
        assert logits.grad is not None
        pulls.append(float(logits.grad.abs().max()))
    assert pulls[0] < 1e-12
    assert pulls[1] > 0.9


@pytest.mark.parametrize(("num_crops", "num_draws"), [(3, 2), (4, 2), (3, 3)])
def test_the_leave_one_out_gradient_is_unbiased(num_crops: int, num_draws: int) -> None:
    logits = torch.randn(1, num_crops, generator=seeded(4), dtype=torch.float64).requires_grad_()
    weight = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    base = torch.rand(1, num_crops, generator=seeded(5), dtype=torch.float64)

    def losses() -> torch.Tensor:
        return weight * base + weight**2 * base.flip(1)

    exact = estimators.expected_loss(logits.softmax(1), losses())
    exact_scores, exact_weight = torch.autograd.grad(exact, (logits, weight))
    mean_scores, mean_weight = torch.zeros_like(exact_scores), torch.zeros_like(exact_weight)
    chances = logits.detach().softmax(1)[0]
    for draws in itertools.product(range(num_crops), repeat=num_draws):
        drawn = torch.tensor([draws])
        estimate = estimators.leave_one_out_loss(
            logits.log_softmax(1).gather(1, drawn), losses().gather(1, drawn)
        )
        of_scores, of_weight = torch.autograd.grad(estimate, (logits, weight))
        chance = chances[list(draws)].prod()
        mean_scores += chance * of_scores
        mean_weight += chance * of_weight
    torch.testing.assert_close(mean_scores, exact_scores)
    torch.testing.assert_close(mean_weight, exact_weight)


@given(seed=st.integers(0, 1000), scale=st.floats(0, 30))
def test_the_entropy_of_the_mean_choice_is_zero_to_log_k(seed: int, scale: float) -> None:
    entropy = estimators.mean_choice_entropy((scores(seed) * scale).softmax(1)).item()
    assert -1e-6 <= entropy <= math.log(CROPS) + 1e-6


def test_the_entropy_is_largest_where_sure_choices_use_all_crops_and_zero_where_one() -> None:
    assert estimators.mean_choice_entropy(torch.eye(4)).item() == pytest.approx(math.log(4))
    one = F.one_hot(torch.zeros(4, dtype=torch.int64), 4).float()
    assert estimators.mean_choice_entropy(one).item() == pytest.approx(0)


def test_mixing_with_one_hot_weights_equals_taking_the_crop() -> None:
    crops = torch.randint(0, 256, (4, 3, 5, 6, 3), dtype=torch.uint8, generator=seeded())
    chosen = torch.tensor([2, 0, 1, 1])
    mixed = estimators.mix(crops, F.one_hot(chosen, 3).float())
    taken = estimators.take(crops, chosen)
    assert taken.dtype == torch.uint8
    assert torch.equal(mixed, taken.float())
    assert all(torch.equal(taken[row], crops[row, k]) for row, k in enumerate(chosen))


def test_mixing_sums_pixels_by_their_weights() -> None:
    crops = torch.randint(0, 256, (2, 3, 4, 4, 3), dtype=torch.uint8, generator=seeded())
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    by_hand = torch.einsum("bkhwc,bk->bhwc", crops.float(), weights)
    torch.testing.assert_close(estimators.mix(crops, weights), by_hand)
