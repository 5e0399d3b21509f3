from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import BlurPool2d
from torch import Tensor, nn

from pipeline.common.errors import ConfigError
from pipeline.format.crops import place_crops
from training.config import TrainConfig
from training.data.shards import Batch
from training.model.classifier import SelectiveClassifier, StepOutput
from training.model.estimators import gumbel_noise, take
from training.model.policies import POLICIES
from training.score.cost import count_macs

PLAN = place_crops("full+five", canvas_px=48, crop_px=32)
VARIANTS = [
    *({"policy": name} for name, policy in POLICIES.items() if not policy.is_fitted),
    {"policy": "expected", "num_draws": 2},
    {"policy": "blend", "balance": 0.5, "pad_glimpses": True},
    {"policy": "straight-through", "channels_last": False, "candidates": "five"},
    {"policy": "expected", "proposer": "joint", "position_prior": True},
    {"policy": "straight-through", "proposer": "map"},
    {"policy": "expected", "proposer": "map", "candidates": "five", "position_prior": True},
]


def make_model(config: TrainConfig, candidates: str = "full+five") -> SelectiveClassifier:
    torch.manual_seed(0)
    plan = place_crops(candidates, canvas_px=48, crop_px=32)
    return SelectiveClassifier(config, plan=plan, num_classes=10, glimpse_px=16)


def step(model: SelectiveClassifier, batch: Batch, *, chooses: bool = True) -> StepOutput:
    generator = torch.Generator().manual_seed(3)
    num_samples, num_crops = len(batch.labels_B), len(model.candidates)
    noise = gumbel_noise((num_samples, *model.noise_shape), generator)
    assert batch.glimpses_BLSS is not None
    crops_BKHWC = batch.crops_BKHWC[:, :num_crops]
    ahead_B = model.chosen_ahead(noise[:, 0], chooses=chooses)
    output: StepOutput = model(
        crops_BKHWC if ahead_B is None else take(crops_BKHWC, ahead_B)[:, None],
        batch.glimpses_BLSS[:, list(model.looked_at)] if model.proposer else None,
        batch.labels_B,
        noise,
        0.7,
        chooses=chooses,
    )
    return output


def total_gradient(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_policy_learns_in_all_its_networks(
    variant: dict[str, Any], tiny: Callable[..., TrainConfig], make_batch: Callable[..., Batch]
) -> None:
    model = make_model(tiny(**variant))
    output = step(model, make_batch(8))
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert output.loss.isfinite()
    assert output.losses_B.shape == output.hits_B.shape == (8,)
    assert output.losses_B.isfinite().all()
    assert ((output.hits_B >= 0) & (output.hits_B <= 1 + 1e-6)).all()
    assert total_gradient(model.classifier) > 0
    assert (model.proposer is not None) == model.config.selects
    if model.proposer is not None:
        assert total_gradient(model.proposer.features) > 0
        assert total_gradient(model.proposer.score) > 0


def test_the_loss_of_expected_is_the_expectation_over_all_crops(
    tiny: Callable[..., TrainConfig], make_batch: Callable[..., Batch]
) -> None:
    model, batch = make_model(tiny(policy="expected", smoothing=0.1)).eval(), make_batch(5)
    output = step(model, batch)
    assert model.proposer is not None
    assert batch.glimpses_BLSS is not None
    chances = model.proposer(batch.glimpses_BLSS).probabilities_BK
    criterion = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    by_hand = torch.zeros(5)
    for k in range(6):
        logits = model.logits(batch.crops_BKHWC[:, k])
        by_hand += chances[:, k] * criterion(logits, batch.labels_B)
    torch.testing.assert_close(output.losses_B, by_hand)
    torch.testing.assert_close(output.loss, by_hand.mean())


@pytest.mark.parametrize("policy", ["expected", "straight-through", "blend"])
def test_while_crops_are_random_only_the_classifier_learns(
    policy: str, tiny: Callable[..., TrainConfig], make_batch: Callable[..., Batch]
) -> None:
    model = make_model(tiny(policy=policy, balance=0.5))
    step(model, make_batch(8), chooses=False).loss.backward()  # type: ignore[no-untyped-call]
    assert model.proposer is not None
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert total_gradient(model.proposer) == 0
    assert total_gradient(model.classifier) > 0


def test_the_map_needs_the_glimpse_of_the_whole_canvas(tiny: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"--proposer map looks at .* whole canvas, 'full'; got"):
        make_model(tiny(proposer="map"), "five")
    assert make_model(tiny(proposer="map", candidates="five")).looked_at == (0,)
    assert make_model(tiny(candidates="five")).looked_at == (1, 2, 3, 4, 5)
    assert make_model(tiny(policy="whole")).looked_at == ()


def test_balance_rewards_a_batch_that_uses_all_crops(
    tiny: Callable[..., TrainConfig], make_batch: Callable[..., Batch]
) -> None:
    plain = step(make_model(tiny(policy="blend")).eval(), make_batch(6))
    model = make_model(tiny(policy="blend", balance=2.0)).eval()
    balanced = step(model, make_batch(6))
    assert torch.equal(plain.losses_B, balanced.losses_B)
    gain = (plain.loss - balanced.loss).item()
    assert 0 < gain <= 2 * torch.tensor(6.0).log().item() + 1e-5


def test_what_the_model_says_at_evaluation_has_no_chance_in_it(
    tiny: Callable[..., TrainConfig], make_batch: Callable[..., Batch]
) -> None:
    model, batch = make_model(tiny()).eval(), make_batch(6)

    def say(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        assert model.proposer is not None
        scores: Tensor = model.proposer(batch.glimpses_BLSS).scores_BK
        return scores, model.logits(batch.crops_BKHWC[:, 0])

    with torch.inference_mode():
        first, second = say(1), say(2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(("policy", "name"), [("whole", "full"), ("centre", "centre")])
def test_a_fixed_policy_takes_its_crop_always(
    policy: str, name: str, tiny: Callable[..., TrainConfig]
) -> None:
    model = make_model(tiny(policy=policy))
    chosen = model.fixed_choice(torch.rand(7, 6))
    assert chosen.tolist() == [PLAN.names.index(name)] * 7


@pytest.mark.parametrize("policy", ["random", "mean"])
def test_random_and_mean_learn_from_every_crop_alike(
    policy: str, tiny: Callable[..., TrainConfig]
) -> None:
    noise = gumbel_noise((6000, 6), torch.Generator().manual_seed(0))
    chosen = make_model(tiny(policy=policy)).fixed_choice(noise)
    assert torch.bincount(chosen, minlength=6).float().std() < 60
    assert set(chosen.tolist()) == set(range(6))


def test_channels_last_changes_the_memory_and_not_the_result(
    tiny: Callable[..., TrainConfig], make_batch: Callable[..., Batch]
) -> None:
    images = make_batch(3).crops_BKHWC[:, 2]
    last = make_model(tiny(channels_last=True)).eval()
    first = make_model(tiny(channels_last=False)).eval()
    torch.testing.assert_close(last.logits(images), first.logits(images))


ARGUMENTS = ("stem_type=deep", "stem_width=32", "aa_layer=blurpool", "avg_down=True")


def test_arguments_of_the_model_reach_timm(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(policy="whole", model="resnet18", model_kwargs=ARGUMENTS)
    found = make_model(config).classifier
    wanted = timm.create_model(
        "resnet18", num_classes=10, stem_type="deep", stem_width=32, aa_layer=BlurPool2d,
        avg_down=True,
    )  # fmt: skip
    assert str(found) == str(wanted)
    text = make_model(tiny(policy="whole", model="resnet18", model_kwargs=("aa_layer=avgpool",)))
    assert isinstance(text.classifier.maxpool, nn.AvgPool2d)


def test_the_cost_of_a_model_with_arguments_is_that_of_its_layers(
    tiny: Callable[..., TrainConfig],
) -> None:
    model = make_model(tiny(policy="whole", model="resnet18", model_kwargs=ARGUMENTS))
    by_hand: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            by_hand.append(made.numel() * layer.weight[0].numel())
        elif isinstance(layer, BlurPool2d):  # one filter of 3 x 3 for each channel
            by_hand.append(made.numel() * 9)

    for layer in model.modules():
        layer.register_forward_hook(count)
    assert count_macs(model) == (0, sum(by_hand))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("stem_typ=deep",),
            "--model-kwargs must be what resnet18 takes in timm; got stem_typ=deep, which ends in "
            "TypeError: ResNet.__init__() got an unexpected keyword argument 'stem_typ'. ",
        ),
        (("aa_layer=[1]",), "--model-kwargs must be what resnet18 takes in timm; got aa_layer="),
        (("output_stride=7",), "--model-kwargs must be what resnet18 takes in timm; got output_"),
        (
            ("pretrained=True", "num_classes=3"),
            "--model-kwargs must leave the classes, the channels and the weights to srp; got "
            "num_classes, pretrained. Leave it out; for weights, use --initial-checkpoint.",
        ),
        (("features_only=True",), "--model must give a number for each of 10 classes; got somethi"),
    ],
)
def test_arguments_that_the_model_does_not_take_are_told_in_one_line(
    words: tuple[str, ...], message: str, tiny: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_model(tiny(policy="whole", model="resnet18", model_kwargs=words))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "shards", "message"),
    [
        (
            {"model": "resnet19"},
            "five",
            "--model must be a name that timm knows; got 'resnet19'. Close ones: ",
        ),
        (
            {"model": "qqqqqq"},
            "five",
            "--model must be a name that timm knows; got 'qqqqqq'. List all with: python -c ",
        ),
        (
            {"model": "test_maxvit"},
            "five",
            "--model must take images of the crop's size; got height (8) must be divisible by "
            "window (5) from 'test_maxvit' at 32 px. Take another --model, such as resnet18, or "
            "build shards with the --crop-size that it takes.",
        ),
        (
            {"policy": "whole"},
            "five",
            "--policy whole needs the crop 'full'; got top-left, top-right, bottom-left, "
            "bottom-right, centre. Build shards with --candidates full+five, and leave "
            "--candidates out here.",
        ),
        (
            {"policy": "centre", "candidates": "full,top-left"},
            "full+five",
            "--policy centre needs the crop 'centre'; got full, top-left. ",
        ),
        (
            {"candidates": "centre"},
            "five",
            "--policy straight-through needs at least two candidates; got centre. "
            "Name more in --candidates.",
        ),
        (
            {"candidates": "full+five"},
            "five",
            "--candidates must be in the shards; got 'full+five', but they hold only top-left, ",
        ),
        (
            {"candidates": "middle"},
            "five",
            "--candidates must be in the shards; got 'middle', but they hold only top-left, ",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_to_type(
    options: dict[str, Any], shards: str, message: str, tiny: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_model(tiny(**options), shards)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
