"""The table of policies says of each how it chooses, and its options are fields of the config."""

import dataclasses

import pytest

from training.config import TrainConfig
from training.model.policies import POLICIES, Policy


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_chooses_in_exactly_one_way(policy: Policy) -> None:
    ways = (policy.looks, policy.fixed_crop is not None, policy.is_random, policy.averages)
    assert sum(ways) == 1


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_options_of_a_policy_are_fields_of_the_config(policy: Policy) -> None:
    assert set(policy.options) <= {field.name for field in dataclasses.fields(TrainConfig)}
