"""The policies: how the crop that the classifier sees is chosen, and which options each uses.

This table imports nothing, so that `training.config` can read it.
"""

from typing import NamedTuple

PROPOSER_OPTIONS = (
    "proposer", "position_prior", "glimpse_size", "pad_glimpses", "proposer_channels",
    "proposer_lr", "balance",
)  # fmt: skip
GUMBEL_OPTIONS = (*PROPOSER_OPTIONS, "random_epochs", "tau_start", "tau_end")
WINDOW_OPTIONS = ("scale", "ratio", "scale_off_epochs")
STAGED_OPTIONS = (*PROPOSER_OPTIONS, "explore_epochs", "judge_mirrors", "fit_epochs")


class Policy(NamedTuple):
    """One way to choose: exactly one of `looks`, `fixed_crop`, `is_random` and `averages` is set.

    `looks`: a proposer looks at glimpses and chooses.
    `fixed_crop`: name of the crop that it always takes.
    `is_random`: it takes a random crop, and its score is the expectation over all.
    `averages`: it learns from random crops, and its prediction is the mean over all crops.
    `is_fitted`: its proposer is fitted to out-of-fold losses, in stages; see `choose/method.py`.
    `takes_one`: in training, too, the classifier sees one crop that the proposer chose.
    `weighs_all`: its loss is an expectation over the crops, each classified by itself.
    `options`: fields of `TrainConfig` that some policies use and others would ignore.
    """

    looks: bool = False
    fixed_crop: str | None = None
    is_random: bool = False
    averages: bool = False
    is_fitted: bool = False
    takes_one: bool = False
    weighs_all: bool = False
    options: tuple[str, ...] = ()


POLICIES = {
    "blend": Policy(looks=True, options=GUMBEL_OPTIONS),
    "straight-through": Policy(looks=True, takes_one=True, options=GUMBEL_OPTIONS),
    "expected": Policy(
        looks=True, weighs_all=True, options=(*PROPOSER_OPTIONS, "random_epochs", "num_draws")
    ),
    "distilled": Policy(looks=True, is_fitted=True, takes_one=True, options=STAGED_OPTIONS),
    "whole": Policy(fixed_crop="full", options=WINDOW_OPTIONS),
    "centre": Policy(fixed_crop="centre", options=WINDOW_OPTIONS),
    "random": Policy(is_random=True),
    "mean": Policy(averages=True),
}
"""By name, in the order of tables and charts."""
DISTILLED = "distilled"


def policies_using(field: str) -> tuple[str, ...]:
    """Name the policies that use a field of `TrainConfig`: all, or those that list it."""
    users = tuple(name for name, policy in POLICIES.items() if field in policy.options)
    return users or tuple(POLICIES)
