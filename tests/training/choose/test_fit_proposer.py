import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline import ShardFolder
from pipeline.common.errors import DivergedError
from pipeline.format.crops import place_crops
from training.choose import fit_proposer as fitting
from training.choose.config import DistillConfig
from training.choose.fit_proposer import TARGET_TAU, fit_proposer, fit_to_losses
from training.config import TrainConfig
from training.data.augment import Mirrored, mirrored_candidates
from training.data.processes import Process
from training.model.proposer import CropProposer, MapProposer, Proposal, Proposer, make_proposer
from training.run.state import build_model

Tiny = Callable[..., TrainConfig]
SWAPPED = Mirrored((1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))


def ignore(*_: object) -> None:
    pass


def bright_crops(num_samples: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dim glimpses of which one is bright, and losses that are low for that one."""
    generator = torch.Generator().manual_seed(seed)
    looked = torch.randint(0, 120, (num_samples, 4, 8, 8), dtype=torch.uint8, generator=generator)
    best = torch.randint(0, 4, (num_samples,), generator=generator)
    looked[torch.arange(num_samples), best] += 120
    return looked, 2.0 - 1.9 * F.one_hot(best, 4).float()


def proposer_of(seed: int) -> CropProposer:
    torch.manual_seed(seed)
    return CropProposer(
        channels=(4,), glimpse_px=8, padded_px=8, num_held=4, candidates=(0, 1, 2, 3),
        has_prior=False,
    )  # fmt: skip


def fit_to(
    proposer: Proposer, looked: torch.Tensor, losses: torch.Tensor, *, seed: int = 1,
    hflip: float = 0.5, **options: Any,
) -> list[float]:  # fmt: skip
    """Fit to the losses of four crops in a square."""
    wanted = DistillConfig(**{"batch_size": 64, "proposer_lr": 0.02, "vflip": 0.0} | options)
    return fit_proposer(
        proposer, looked, losses, wanted, seed=seed, hflip=hflip, amp=False, counterparts=SWAPPED,
        glimpse_counterparts=SWAPPED, on_rows=ignore,
    )  # fmt: skip


def fit(*, seed: int = 1, **options: Any) -> tuple[CropProposer, list[float]]:
    looked, losses = bright_crops(512, seed=0)
    proposer = proposer_of(seed)
    means = fit_to(proposer, looked, losses, seed=seed, **{"epochs": 8} | options)
    return proposer.eval(), means


def test_a_proposer_learns_which_crop_loses_least() -> None:
    proposer, means = fit()
    assert means[-1] < 0.3 < means[0]
    looked, losses = bright_crops(256, seed=1)
    chosen = proposer(looked).chosen_B
    assert (chosen == losses.argmin(1)).float().mean() > 0.95


def test_a_crop_that_is_right_more_often_beats_one_that_is_never_far_off() -> None:
    looked = torch.full((64, 4, 8, 8), 50, dtype=torch.uint8)
    looked[:, 0] = 200
    losses = torch.full((64, 4), 1.2)
    losses[:, 0] = 0.05
    losses[::4, 0] = 20.0  # a mean of 5.0, but right on three of four images
    proposer = proposer_of(0)
    means = fit_to(proposer, looked, losses, epochs=20, hflip=0.0)
    assert proposer.eval()(looked).chosen_B.eq(0).all()
    assert means[-1] == pytest.approx(0.25 + 0.75 * -math.expm1(-0.05), abs=1e-5)


def test_a_proposer_that_is_sure_and_wrong_is_put_right_and_made_sure_again() -> None:
    looked, losses = bright_crops(512, seed=0)
    proposer = CropProposer(
        channels=(4,), glimpse_px=8, padded_px=8, num_held=4, candidates=(0, 1, 2, 3),
        has_prior=True,
    )  # fmt: skip
    assert proposer.prior is not None
    with torch.no_grad():
        proposer.prior[2] = 30.0  # the expected error has no gradient from here
    fit_to(proposer, looked, losses, epochs=24, batch_size=16, proposer_lr=0.1)
    looked, losses = bright_crops(256, seed=1)
    proposal = proposer.eval()(looked)
    assert (proposal.chosen_B == losses.argmin(1)).float().mean() > 0.95
    # Soft targets alone would ask for no more than this.
    wanted = ((losses.neg().exp() - 1) / TARGET_TAU).softmax(1).amax(1).mean()
    assert proposal.probabilities_BK.amax(1).mean() > 0.5 + wanted / 2


@pytest.mark.parametrize(("hflip", "vflip"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_a_map_is_fitted_by_where_each_mirrored_crop_lies(
    hflip: float, vflip: float, tiny: Tiny
) -> None:
    plan = place_crops("full+five", canvas_px=48, crop_px=32)
    candidates = plan.indices("top-left,centre")  # no counterpart of the first is among them
    wanted = DistillConfig(epochs=1, proposer_lr=0.02, vflip=vflip, batch_size=8)
    proposer = make_proposer(tiny(proposer="map"), plan, candidates, glimpse_px=16)
    assert isinstance(proposer, MapProposer)
    told: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_: object, given: tuple[torch.Tensor, ...], proposal: Proposal) -> None:
        map_BMN = proposer.saliency(given[0][:, 0].float() / 255)
        told.append((map_BMN.detach(), proposal.scores_BK.detach()))

    proposer.register_forward_hook(note)
    looked = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    fit_proposer(
        proposer, looked, torch.rand(8, 2), wanted, seed=1, hflip=hflip, amp=False, on_rows=ignore,
        counterparts=mirrored_candidates(plan, candidates),
        glimpse_counterparts=mirrored_candidates(plan, plan.indices("full")),
    )  # fmt: skip
    ((map_BMN, scores_BK),) = told
    large = map_BMN.repeat_interleave(12, 1).repeat_interleave(12, 2)  # as large as the canvas
    left, upper = 16 * int(hflip), 16 * int(vflip)
    torch.testing.assert_close(
        scores_BK[:, 0], large[:, upper : upper + 32, left : left + 32].mean((1, 2))
    )
    torch.testing.assert_close(scores_BK[:, 1], large[:, 8:40, 8:40].mean((1, 2)))


def test_losses_are_not_changed_by_mirroring() -> None:
    looked, losses = bright_crops(64, seed=0)
    before = looked.clone(), losses.clone()
    fit_to(proposer_of(0), looked, losses, epochs=1, hflip=1.0, vflip=1.0)
    assert torch.equal(looked, before[0])
    assert torch.equal(losses, before[1])


def test_equal_seeds_give_equal_proposers() -> None:
    first, again, other = (fit(seed=seed, epochs=1)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_rate_far_too_high_for_a_fit_ends_in_one_error() -> None:
    with pytest.raises(DivergedError, match=r"at step \d+ of epoch \d+ of the proposer's fit\."):
        fit(proposer_lr=1e3, weight_decay=1e3)


def test_a_fit_sees_the_glimpses_of_the_samples_that_its_losses_are_of(
    opened: ShardFolder, alone: Process, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(policy="distilled", epochs=2, proposer="crops")
    model = build_model(config, opened, alone)
    given: list[torch.Tensor] = []
    monkeypatch.setattr(
        fitting, "fit_proposer", lambda _model, seen_NLSS, *_, **__: given.append(seen_NLSS)
    )
    # So that buffers are used again.
    monkeypatch.setattr("training.score.choices.EVALUATION_BATCH", 8)
    fit_to_losses(model, torch.zeros(70, 6), DistillConfig(), shards=opened, process=alone)
    reader = opened.reader("train")
    for row in range(70):
        expected = torch.from_numpy(reader.read(row).small_glimpses[:, 0].copy())
        assert torch.equal(given[0][row], expected), row


def test_a_large_map_is_fitted_to_halved_glimpses_first_and_a_small_one_is_not() -> None:
    seen: list[int] = []
    plan = place_crops("full+five", canvas_px=96, crop_px=64)
    for side in (64, 48):
        config = TrainConfig(policy="distilled", glimpse_size=side)
        proposer = make_proposer(config, plan, tuple(range(6)), glimpse_px=side)
        proposer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
        looked = torch.randint(0, 256, (64, 1, side, side), dtype=torch.uint8)
        wanted = DistillConfig(epochs=4, batch_size=64)
        fit_proposer(
            proposer, looked, torch.rand(64, 6), wanted, seed=0, hflip=0.5, amp=False,
            counterparts=mirrored_candidates(plan, tuple(range(6))),
            glimpse_counterparts=mirrored_candidates(plan, (0,)), on_rows=ignore,
        )  # fmt: skip
    assert seen == [32, 32, 64, 64, 48, 48, 48, 48]
