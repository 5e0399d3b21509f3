from operator import attrgetter

import pytest

from pipeline.format.crops import place_crops
from training.choose.config import DistillConfig
from training.config import PROFILE_NAMES, PROPOSERS, TrainConfig
from training.model.classifier import SelectiveClassifier, candidate_indices
from training.score.cost import count_macs
from training.study.arms import tuned
from training.study.profiles import PROFILES, RANDOM

SIZES = {  # of the profiles that leave it to the machine: the smallest
    "smoke": (80, 32, "full+grid3"),
    "quick": (64, 32, "full+grid3"),
    "full": (336, 224, "full+five"),
    "choosing": (168, 112, "full+grid3"),
    "choosing-64": (112, 64, "full+grid3"),
}


def test_the_profiles_are_those_that_the_command_offers() -> None:
    assert tuple(PROFILES) == PROFILE_NAMES


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_arms_have_names_and_configs_of_their_own(name: str) -> None:
    listed = PROFILES[name].arms
    assert len({arm.name for arm in listed}) == len(listed)
    assert len({(arm.config, arm.distilled) for arm in listed}) == len(listed)


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_arm_fits_the_shards_that_its_profile_is_for(name: str) -> None:
    canvas, crop, candidates = SIZES[name]
    plan = place_crops(candidates, canvas_px=canvas, crop_px=crop)
    for arm in PROFILES[name].arms:
        assert candidate_indices(arm.config, plan)
        looks: TrainConfig | DistillConfig = arm.distilled or arm.config
        assert (looks.glimpse_size or 1) <= crop
        assert looks.candidates is None or plan.indices(looks.candidates)


@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
def test_the_profiles_of_make_reproduce_have_the_chooser_and_its_rivals(name: str) -> None:
    policies = {arm.config.policy for arm in PROFILES[name].arms}
    assert policies >= {"whole", "centre", "blend", "distilled"}
    assert SIZES[name][1] == min(PROFILES[name].crops)
    assert SIZES[name][2] == PROFILES[name].candidates


def test_the_full_profile_has_the_predecessors_glimpses_epochs_and_three_seeds() -> None:
    full = PROFILES["full"]
    predecessors = [arm.config for arm in full.arms if arm.name.startswith("predecessor-g")]
    assert [config.glimpse_size for config in predecessors] == [32, 64, 128, 224]
    assert full.epochs == 20
    assert len(set(full.seeds)) == 3


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_what_is_distilled_stands_behind_the_classifier_that_it_is_fitted_to(name: str) -> None:
    arms = PROFILES[name].arms
    names = [arm.name for arm in arms]
    for position, arm in enumerate(arms):
        if arm.distilled is not None:
            assert names.index(RANDOM) < position
            assert arm.config == arms[names.index(RANDOM)].config
        if arm.begins_with is not None:
            earlier = arms[names.index(arm.begins_with)]
            assert names.index(arm.begins_with) < position
            assert (earlier.distilled is not None) == arm.config.holds_proposer
            if earlier.distilled is not None:  # its proposer is gone on with
                of_proposer = attrgetter(
                    "proposer", "proposer_channels", "glimpse_size", "position_prior"
                )
                assert of_proposer(earlier.distilled) == of_proposer(arm.config)


@pytest.mark.parametrize("name", ["choosing", "choosing-64"])
def test_choosing_is_judged_over_five_seeds_with_every_proposer_and_the_fixed_crops(
    name: str,
) -> None:
    choosing = PROFILES[name]
    assert len(set(choosing.seeds)) == 5
    policies = {arm.config.policy for arm in choosing.arms}
    assert policies == {"whole", "centre", "random", "straight-through", "expected"}
    fitted = {
        (arm.distilled.proposer, arm.distilled.position_prior)
        for arm in choosing.arms
        if arm.distilled is not None
    }
    assert {kind for kind, _ in fitted} == set(PROPOSERS)
    assert {has_prior for _, has_prior in fitted} == {False, True}


@pytest.mark.parametrize("side", [64, 112])
def test_a_map_as_large_as_the_crop_costs_at_most_a_hundredth_of_the_classifier(side: int) -> None:
    plan = place_crops("full+grid3", canvas_px=2 * side, crop_px=side)
    model = SelectiveClassifier(tuned(side), plan=plan, num_classes=10, glimpse_px=side)
    proposer, classifier = count_macs(model)
    assert 0 < proposer <= classifier / 100
