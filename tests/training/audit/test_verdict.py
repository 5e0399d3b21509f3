import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import ShardFolder
from pipeline.common.errors import ConfigError
from pipeline.common.progress import Progress
from training.audit.run import audit_run
from training.audit.verdict import Audit, audit
from training.data.processes import Process
from training.report.terminal import audit_text
from training.saved.folder import RunPaths
from training.saved.record import RunRecord, load_record
from training.score.crop_logits import CropLogits
from training.study.finished import Arm, FinishedRun, group_arms
from training.study.paired import few_seeds, write_p

NUM_SAMPLES, CROPS = 400, ("full", "left", "centre")
Make = Callable[..., FinishedRun]


def logits_of(right_NK: torch.Tensor, chosen_N: torch.Tensor) -> CropLogits:
    """A classifier of two classes that is right where it is said to be, and loses little there."""
    losses_NK = torch.where(right_NK, 0.1, 2.0) + 0.01 * torch.arange(right_NK.shape[1])
    return CropLogits(
        labels_N=torch.zeros(len(right_NK), dtype=torch.int64),
        logits_NKC=torch.stack([-losses_NK, (-torch.expm1(-losses_NK)).log()], 2),
        probabilities_NK=torch.nn.functional.one_hot(chosen_N, right_NK.shape[1]).float(),
    )


def arm_of(make_run: Make, classified: list[CropLogits], name: str = "expected") -> Arm:
    runs = []
    for seed, logits in enumerate(classified):
        run = make_run(f"{name}-s{seed}", policy="expected", seed=seed)
        right_NK = (logits.predicted_NK == logits.labels_N[:, None]).double()
        chosen = logits.chosen_N[:, None]
        figures = replace(
            run.evaluation,
            crops=CROPS,
            num_samples=NUM_SAMPLES,
            top1=100 * float(right_NK.gather(1, chosen).mean()),
            top1_crops=tuple((100 * right_NK.mean(0)).tolist()),
            top1_random=100 * float(right_NK.mean()),
            top1_mean=100 * float((logits.averaged_N == logits.labels_N).double().mean()),
            top1_any_right=100 * float(right_NK.amax(1).mean()),
            shares=tuple((logits.chosen_N.bincount(minlength=3) / NUM_SAMPLES).tolist()),
            proposer_macs=5, classifier_macs=1000,
        )  # fmt: skip
        runs.append(replace(run, evaluation=figures, logits=logits))
    (arm,) = group_arms(runs)
    return arm


def seeing_one(seed: int, *, choice: str) -> CropLogits:
    """Each image is seen rightly in one crop alone, `full` a little more often."""
    generator = torch.Generator().manual_seed(seed)
    best_N = torch.randint(0, 3, (NUM_SAMPLES,), generator=torch.Generator().manual_seed(9))
    right_NK = torch.nn.functional.one_hot(best_N, 3).bool()
    right_NK[:, 0] |= torch.rand(NUM_SAMPLES, generator=generator) < 0.1
    chosen_N = {
        "best": best_N,
        "worst": (best_N + 1) % 3,
        "full": torch.zeros_like(best_N),
        "nearly full": torch.where(torch.arange(NUM_SAMPLES) < 20, best_N, 0),
    }[choice]
    return logits_of(right_NK, chosen_N)


def rivals(found: Audit) -> dict[str, Any]:
    return {rival.name.partition(",")[0]: rival for rival in found.rivals}


def test_a_choice_that_sees_more_than_any_other_is_worth_it(make_run: Make) -> None:
    found = audit(arm_of(make_run, [seeing_one(seed, choice="best") for seed in (0, 1)]), [])
    assert found.top1.mean == 100
    assert found.verdict.startswith("Choosing is worth it here: the chosen crop is ")
    assert (
        "than the whole image, same classifier, the strongest rival that costs no more ("
        in found.verdict
    )
    tested = "bootstrap over images and seeds, seeds 0, 1: p < 0.001; paired t over the seeds: p"
    assert f"({tested} " in found.verdict
    assert found.any_right_skill is not None
    assert found.any_right_skill.mean == pytest.approx(1)


def test_a_choice_below_a_fixed_crop_is_not(make_run: Make) -> None:
    found = audit(arm_of(make_run, [seeing_one(0, choice="worst")]), [])
    assert found.verdict.startswith(
        "Choosing is not worth it here: use the whole image, same classifier, which is "
    )
    assert rivals(found)["the whole image"].points < 0
    assert found.verdict.endswith("at no more compute (McNemar mid-p, seed 0: p < 0.001).")


def seeing_as_well(num_first: int, num_second: int, num_samples: int = 200) -> CropLogits:
    """Sees the chosen crop alone rightly on some images, `left` alone on some, both elsewhere."""
    right_NK = torch.ones(num_samples, 3, dtype=torch.bool)
    right_NK[:, 2] = False
    right_NK[:num_first, 1] = False
    right_NK[num_first : num_first + num_second, 0] = False
    return logits_of(right_NK, torch.zeros(num_samples, dtype=torch.int64))


@pytest.mark.parametrize(("num_first", "num_second"), [(16, 17), (17, 16)])
def test_a_difference_that_may_be_chance_is_neither_claimed_nor_denied(
    num_first: int, num_second: int, make_run: Make
) -> None:
    logits = seeing_as_well(num_first, num_second)
    logits.averaged_N[:] = 1
    found = replace(audit(arm_of(make_run, [logits]), []), num_samples=200)
    assert found.answer == "not shown"
    strongest = rivals(found)["the best fixed crop"]
    assert found.decisive is not None
    assert found.decisive.points == min(0.0, strongest.points)
    assert found.verdict.startswith(
        "Choosing is not shown to be worth it here, nor shown not to be: "
    )
    assert "use " not in found.verdict
    note, one_seed = found.notes
    assert one_seed == few_seeds(1)
    assert note == (
        "200 images and 1 seed can show a difference of "
        f"{found.decisive.least_shown:.2f} points or more: half the width of its "
        f"{found.decisive.level:.3g} % interval, and at least 5 images."
    )
    assert audit_text(found).splitlines()[:3] == [found.verdict, note, one_seed]
    fields = found.to_json()
    assert (fields["answer"], fields["notes"]) == ("not shown", [note, one_seed])


def test_a_significant_rival_alone_makes_it_not_worth_it(make_run: Make) -> None:
    found = audit(arm_of(make_run, [seeing_as_well(2, 20)]), [])
    # `left`, the best of three crops, was picked on the images that are scored.
    assert found.answer == "not worth it"
    assert found.decisive is not None
    assert found.decisive.picked_from == 3
    assert (
        "use the best fixed crop, same classifier, which is 9.0 points more accurate"
        in found.verdict
    )
    assert found.verdict.endswith(", times the 3 crops that it was picked from).")
    assert found.notes == (few_seeds(1),)
    by_luck = audit(arm_of(make_run, [seeing_as_well(3, 12)]), [])
    assert by_luck.answer == "not shown"
    assert by_luck.decisive is not None
    assert by_luck.decisive.p is not None
    assert by_luck.decisive.test is not None
    assert by_luck.decisive.test.p < 0.05 < 3 * by_luck.decisive.test.p
    assert by_luck.decisive.p == pytest.approx(3 * by_luck.decisive.test.p)
    assert by_luck.decisive.p in [rival["p"] for rival in by_luck.to_json()["rivals"]]
    assert by_luck.decisive.level == pytest.approx(98.33, abs=0.01)
    assert -by_luck.decisive.points < by_luck.decisive.least_shown
    assert by_luck.verdict.endswith(", times the 3 crops that it was picked from).")


def test_few_seeds_are_warned_of_and_the_paired_t_over_them_stands_beside(make_run: Make) -> None:
    classified = [seeing_one(seed, choice="nearly full") for seed in range(4)]
    few, enough = (audit(arm_of(make_run, classified[:count]), []) for count in (3, 4))
    assert few.notes[-1] == few_seeds(3)
    assert few_seeds(3) in audit_text(few).splitlines()
    assert few.to_json()["notes"][-1] == few_seeds(3)
    assert not any("few" in note for note in enough.notes)
    test = rivals(few)["the centre crop"].test
    assert few.to_json()["rivals"][1]["test"]["p_over_seeds"] == test.p_over_seeds
    (row,) = (line for line in audit_text(few).splitlines() if line.startswith("  the centre crop"))
    told = [write_p(p).removeprefix("= ") for p in (test.p, test.p_over_seeds)]
    assert row.split()[-2:] == told


def test_the_rivals_are_what_the_logits_say(make_run: Make) -> None:
    logits = seeing_one(3, choice="best")
    found = audit(arm_of(make_run, [logits]), [])
    right = (logits.predicted_NK == logits.labels_N[:, None]).double()
    by_name = rivals(found)
    assert by_name["the whole image"].top1.mean == pytest.approx(100 * float(right[:, 0].mean()))
    assert by_name["the centre crop"].top1.mean == pytest.approx(100 * float(right[:, 2].mean()))
    best = by_name["the best fixed crop"].top1.mean
    assert best == pytest.approx(100 * float(right.mean(0).max()))
    assert by_name["the mean of all"].macs == 3 * 1000
    random = by_name["a random crop"].test
    assert random.points == pytest.approx(found.top1.mean - 100 * float(right.mean()))
    assert random.method == "bootstrap over images"
    assert by_name["the centre crop"].test.method == "McNemar mid-p"
    assert found.any_right.mean == pytest.approx(100 * float(right.amax(1).mean()))
    assert (found.oracle, found.skill) == (None, None)


def test_the_oracle_chooses_with_the_other_seeds_classifier(make_run: Make) -> None:
    first, second = (seeing_one(seed, choice="best") for seed in (0, 1))
    arm = arm_of(make_run, [first, second])
    found = audit(arm, [])
    scores = []
    for logits, other in ((first, second), (second, first)):
        chosen = other.losses_NK.argmin(1)[:, None]
        right = logits.predicted_NK.gather(1, chosen)[:, 0] == logits.labels_N
        scores.append(100 * float(right.double().mean()))
    assert found.oracle is not None
    assert found.oracle.mean == pytest.approx(sum(scores) / 2)
    assert found.oracle.mean < found.any_right.mean
    assert found.skill is not None
    skills = [
        (run.evaluation.top1 - run.evaluation.top1_random) / (score - run.evaluation.top1_random)
        for run, score in zip(arm.runs, scores, strict=True)
    ]
    assert found.skill.mean == pytest.approx(sum(skills) / 2)


def test_runs_that_do_not_choose_are_compared_by_seed(make_run: Make) -> None:
    classified = [seeing_one(seed, choice="best") for seed in (0, 1)]
    arm = arm_of(make_run, classified)
    whole = [
        replace(make_run(f"whole-s{seed}", policy="whole", seed=seed), logits=logits)
        for seed, logits in enumerate(seeing_one(seed, choice="full") for seed in (0, 1))
    ]
    folded = replace(whole[0], record=replace(whole[0].record, name="fold", config=replace(
        whole[0].record.config, fold=0)))  # fmt: skip
    found = audit(arm, [*group_arms(whole), *group_arms([folded])])
    (beside,) = [rival for rival in found.rivals if rival.name.startswith("whole")]
    assert beside.name == "whole, a classifier of its own"
    assert beside.test is not None
    assert beside.test.seeds == (0, 1)
    assert beside.p == beside.test.p < 0.001


def test_a_run_of_random_crops_is_compared_by_their_expectation_not_by_one_draw(
    make_run: Make,
) -> None:
    logits = seeing_one(1, choice="worst")
    runs = [
        replace(
            make_run("random-s0", policy="random", seed=0),
            logits=replace(logits, probabilities_NK=torch.eye(3)[drawn].expand(NUM_SAMPLES, 3)),
        )
        for drawn in range(3)
    ]
    arm = arm_of(make_run, [seeing_one(0, choice="full")])
    tests = [audit(arm, group_arms([run])).rivals[-1].test for run in runs]
    assert tests[0] is not None
    ours = 100 * float(arm.runs[0].logits.right_NK[:, 0].double().mean())  # type: ignore[union-attr]
    assert tests[0].points == pytest.approx(ours - 100 * float(logits.right_NK.double().mean()))
    assert tests == [tests[0]] * 3
    assert tests[0].method == "bootstrap over images"


def test_what_is_said_of_a_rival_is_of_the_seeds_that_both_have(make_run: Make) -> None:
    classified = [seeing_one(seed, choice="best") for seed in (0, 1)]
    whole = replace(
        make_run("whole-s1", policy="whole", seed=1), logits=seeing_one(1, choice="full")
    )
    found = audit(arm_of(make_run, classified), group_arms([whole]))
    (beside,) = [rival for rival in found.rivals if rival.name.startswith("whole")]
    assert beside.test is not None
    assert beside.test.seeds == (1,)
    both = replace(found, rivals=(replace(beside, macs=found.macs),))
    assert f"{beside.points:.1f} points more accurate" in both.verdict
    assert "(McNemar mid-p, seed 1: p < 0.001)" in both.verdict


def test_the_verdict_names_the_seeds_that_the_strongest_rival_was_tested_with(
    make_run: Make,
) -> None:
    arm = arm_of(make_run, [seeing_one(seed, choice="best") for seed in range(3)])
    strong = seeing_one(0, choice="full")
    strong.predicted_NK[:200] = 0
    whole = [
        replace(make_run(f"whole-s{seed}", policy="whole", seed=seed), logits=strong)
        for seed in (0, 2)
    ]
    found = audit(arm, group_arms(whole))
    alike = replace(found, rivals=tuple(replace(one, macs=found.macs) for one in found.rivals))
    assert "than whole, a classifier of its own, the" in alike.verdict
    assert "(bootstrap over images and seeds, seeds 0, 2: p < 0.001)" in alike.verdict


def test_it_is_json_and_text(make_run: Make) -> None:
    found = audit(arm_of(make_run, [seeing_one(seed, choice="best") for seed in (0, 1)]), [])
    fields = json.loads(json.dumps(found.to_json()))
    assert list(fields)[:4] == ["format", "answer", "verdict", "notes"]
    assert fields["format"] == "srp-audit/3"
    assert (fields["answer"], fields["verdict"]) == ("worth it", found.verdict)
    assert fields["top1"] == {"mean": 100.0, "sd": 0.0}
    assert len(fields["rivals"]) == len(found.rivals)
    text = audit_text(found)
    assert text.splitlines()[0] == found.verdict
    assert all(rival.name in text for rival in found.rivals)
    assert {"any_right", "oracle", "skill", "any_right_skill"} <= fields.keys()
    assert "  the oracle: another seed's crop of least loss  " in text
    assert "  any crop right, in hindsight  " in text
    assert "  (chosen - random) / (oracle - random)  " in text
    assert "  (chosen - random) / (any crop right - random)  " in text


class Noted(Progress):
    """Keeps how far each stage was."""

    def __init__(self) -> None:
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        self.stages.setdefault(stage, []).append((done, total))


def test_an_audit_of_a_run_on_the_disk_agrees_with_its_evaluation(
    finished: tuple[RunPaths, RunRecord], opened: ShardFolder, alone: Process, scenes: Path
) -> None:
    paths, record = finished
    shown = Noted()
    audited = audit_run(
        paths.folder, shards=opened, boxes=scenes / "boxes.csv", workers=1, process=alone,
        progress=shown,
    )  # fmt: skip
    found = audited.audit
    assert (audited.run.record, audited.others) == (record, ())
    assert record.evaluation is not None
    assert found.top1.mean == pytest.approx(record.evaluation.top1)
    assert found.shares == record.evaluation.shares
    logits = CropLogits.load(paths.logits)
    assert found.any_right.mean == pytest.approx(record.evaluation.top1_any_right)
    assert logits.labels_N.shape == (29,)
    assert found.boxes is not None
    assert shown.stages["looking up boxes"] == [(done, 29) for done in range(1, 30)]
    assert shown.stages["choosing where boxes are known"][-1] == (29, 29)
    assert found.boxes.pointing_map is None
    assert found.boxes.num_samples == 29
    assert found.boxes.top1 == pytest.approx(record.evaluation.top1)
    assert found.boxes.top1_best is not None
    assert found.boxes.coverage <= found.boxes.coverage_best == pytest.approx(1)
    assert found.latency is not None
    assert 0 < found.latency.proposer_ms < 1000
    assert 0 < found.latency.classifier_ms < 1000
    assert found.latency.proposer_images_per_s > 1


def test_the_command_says_the_verdict_first(
    finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any], tmp_path: Path
) -> None:
    words = ("audit", finished[0].folder, "--device", "cpu", "-o", tmp_path / "out")
    result = srp_train(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Choosing is ")
    assert f"wrote {tmp_path / 'out' / 'audit.html'}" in result.stderr
    told = json.loads(srp_train(*words, "--json").stdout)
    assert told["verdict"] == result.stdout.splitlines()[0]
    written = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert told | {"latency": None} == written | {"latency": None}
    assert not list(finished[0].folder.glob("audit.*"))


def test_who_audits_without_the_whole_image_is_given_the_command_that_trains_it(
    finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any], tmp_path: Path
) -> None:
    run = shutil.copytree(finished[0].folder, tmp_path / "runs with a space" / "chooser")
    _, told = srp_train("audit", run, "--device", "cpu").stderr.split("then audit again: ")
    program, *words = shlex.split(told)
    assert program == "srp-train"
    trained = srp_train(*words)
    assert trained.exit_code == 0, trained.output
    rival = load_record(run.parent / "whole-s42" / "record.json")
    assert rival.config == replace(
        finished[1].config, policy="whole", candidates="full", proposer=None,
        proposer_channels=None, workers=rival.config.workers, device=rival.config.device,
    )  # fmt: skip
    again = srp_train("audit", run, "--device", "cpu")
    assert "then audit again" not in again.stderr
    assert "whole, a classifier of its own" in again.stdout


def test_without_a_folder_page_json_and_picture_go_into_the_run(
    finished: tuple[RunPaths, RunRecord], srp_train: Callable[..., Any], tmp_path: Path
) -> None:
    run = shutil.copytree(finished[0].folder, tmp_path / finished[0].folder.name)
    result = srp_train("audit", run, "--device", "cpu")
    assert result.exit_code == 0, result.output
    names = {"audit.html", "audit.json", "audit.png"}
    assert {path.name for path in run.glob("audit.*")} == names
    again = srp_train("audit", run, "--device", "cpu")
    assert again.exit_code == 0, again.output


def test_shards_of_another_layout_can_be_audited_as_well(
    finished: tuple[RunPaths, RunRecord], scene_tensors: Path, srp_train: Callable[..., Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    words = ("--device", "cpu", "-o", tmp_path / "out", "--shards", scene_tensors)
    result = srp_train("audit", finished[0].folder, *words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "audit.html").exists()


@pytest.mark.sweep
def test_an_audit_takes_the_runs_on_its_shards_and_finds_renamed_folders(
    train: Callable[..., RunRecord], tiny: Any, opened: ShardFolder, small_shards: Path,
    srp_train: Callable[..., Any], tmp_path: Path,
) -> None:  # fmt: skip
    small = ShardFolder.open(small_shards)
    for seed in (0, 1):
        train(tiny(seed=seed), tmp_path / "runs" / f"mine-s{seed}")
        (tmp_path / "runs" / f"mine-s{seed}").rename(tmp_path / "runs" / f"renamed {seed}")
    train(tiny(policy="whole", seed=0), tmp_path / "runs" / "whole-s0")
    train(tiny(policy="whole", batch_size=2), tmp_path / "runs" / "other-s0", shards=small)
    run = tmp_path / "runs" / "renamed 1"
    result = srp_train("audit", run, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["arm"], told["seeds"]) == ("mine", [0, 1])
    names = [rival["name"] for rival in told["rivals"]]
    assert "whole, a classifier of its own" in names
    assert not any(name.startswith("other") for name in names)
    shutil.copytree(tmp_path / "runs" / "renamed 0", tmp_path / "runs" / "zzz, a copy")
    again = json.loads(srp_train("audit", run, "--device", "cpu", "--json").stdout)
    assert again["seeds"] == [0, 1]
    copy = srp_train("audit", tmp_path / "runs" / "zzz, a copy", "--device", "cpu", "--json")
    assert json.loads(copy.stdout)["seeds"] == [0]


def test_what_cannot_be_audited_is_one_line(
    finished: tuple[RunPaths, RunRecord], train: Callable[..., RunRecord], tiny: Any,
    srp_train: Callable[..., Any], tmp_path: Path, opened: ShardFolder, alone: Process,
) -> None:  # fmt: skip
    train(tiny(policy="centre", epochs=1), tmp_path / "centre")
    result = srp_train("audit", tmp_path / "centre", "--device", "cpu")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "an audit needs a run that chooses; got --policy centre in" in result.stderr
    other = tmp_path / "boxes.csv"
    other.write_text("path,x0,y0,x1,y1\nval/none/1.JPEG,0,0,1,1\n")
    begun = tmp_path / "begun"
    begun.mkdir()
    replace(finished[1], evaluation=None).save(begun / "record.json")
    with pytest.raises(ConfigError, match=r"an audit needs a finished run; got .*begun, which is"):
        audit_run(
            begun, shards=opened, boxes=None, workers=1, process=alone,
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"must be of the shards' images; got none of them in"):
        audit_run(
            finished[0].folder, shards=opened, boxes=other, workers=1, process=alone,
        )  # fmt: skip
