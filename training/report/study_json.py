"""The study's figures as JSON, which `srp-train report` writes with its page."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from training.study.finished import Arm, Spread, differing_options
from training.study.paired import paired_test
from training.study.sentences import summarise_arms

FORMAT = "srp-report/2"
BASELINES = ("whole", "centre")  # policies that an arm that chooses is tested against


def study_json(arms: Sequence[Arm]) -> dict[str, Any]:
    """Give figures over seeds, each seed's accuracy, and paired tests.

    Accuracies are top-1, %; `points` is the arm minus the other. `top1_oracle` takes the crop on
    which another seed's classifier loses least, and `skill` is measured against it; both are null
    for one seed. `top1_any_right` is known in hindsight; `any_right_skill` is measured against it.
    `answer` is the page's first sentence.
    """
    records = [run.record for arm in arms for run in arm.runs]
    data = records[0].data
    options = differing_options(arms)
    return {
        "format": FORMAT,
        "data": {
            "fingerprint": data.fingerprint,
            "canvas_size": data.spec.canvas_size,
            "crop_size": data.spec.crop_size,
            "candidates": data.spec.candidates,
            "num_train": data.num_train,
            "num_val": data.num_val,
            "classes": list(data.class_names),
        },
        "hardware": sorted({record.hardware for record in records}),
        "commits": sorted({record.commit for record in records}),
        "answer": summarise_arms(arms)[0],
        "arms": [_arm(arm, arms, options) for arm in arms],
    }


def _arm(arm: Arm, arms: Sequence[Arm], options: Sequence[str]) -> dict[str, Any]:
    config = dataclasses.asdict(arm.config)
    return {
        "name": arm.name,
        "options": {name: config[name] for name in options},
        "seeds": list(arm.seeds),
        "top1_of_seeds": [round(done.top1, 3) for done in arm.evaluations],
        "top1": _spread(arm.top1),
        "top1_random": _spread(arm.top1_random),
        "top1_fixed": _spread(arm.top1_fixed) | {"crop": arm.fixed_crop},
        "top1_mean_of_all": _spread(arm.top1_mean),
        "top1_any_right": _spread(arm.top1_any_right),
        "top1_oracle": _spread(arm.top1_oracle),
        "skill": _spread(arm.skill),
        "any_right_skill": _spread(arm.any_right_skill),
        "shares": {
            name: round(share, 4) for name, share in zip(arm.crops, arm.shares, strict=True)
        },
        "entropy_of_mean": _spread(arm.entropy_of_mean),
        "mean_entropy": _spread(arm.mean_entropy),
        "proposer_macs": arm.proposer_macs,
        "classifier_macs": arm.classifier_macs,
        "seconds": round(arm.seconds),
        "against": {} if not arm.config.selects else {
            other.name: _against(arm, other)
            for other in arms if other.policy in BASELINES and other.config.fold is None
        },
    }  # fmt: skip


def _spread(value: Spread | None) -> dict[str, Any]:
    if value is None:
        return {"mean": None, "sd": None}
    return {
        "mean": round(value.mean, 4), "sd": None if value.sd is None else round(value.sd, 4)
    }  # fmt: skip


def _against(arm: Arm, other: Arm) -> dict[str, Any] | None:
    test = paired_test(arm, other)
    if test is None:
        return None
    return {
        "points": round(test.points, 3), "low": round(test.low, 3), "high": round(test.high, 3),
        "p": test.p, "method": test.method, "p_over_seeds": test.p_over_seeds,
        "seeds": list(test.seeds),
    }  # fmt: skip
