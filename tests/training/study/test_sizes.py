"""A study's crops and epochs follow the machine's speed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import Result

from training.study.profiles import PROFILES
from training.study.sizes import (
    Sizes,
    choose_sizes,
    describe_machine,
    load_sizes,
    measure_rate,
)

SrpTrain = Callable[..., Result]
QUICK = PROFILES["quick"]


def chosen(speed: float, *, num_train: int = 9469, jobs: int = 2) -> Sizes:
    """Choose on a machine that makes `speed` images/s at 64 px, and more the smaller they are."""
    return choose_sizes(
        QUICK, num_train=num_train, num_val=num_train // 3, jobs=jobs, machine="made up",
        rate_of=lambda crop_px: speed * (64 / crop_px) ** 2,
    )  # fmt: skip


def test_a_slower_machine_gets_fewer_epochs_and_then_smaller_crops() -> None:
    found = [chosen(speed) for speed in (1000, 140, 110, 80, 50, 5)]
    assert (found[0].crop_px, found[0].epochs) == (64, 6)
    order = [(-each.crop_px, -each.epochs) for each in found]
    assert len({each.crop_px for each in found}) == 3
    assert order[:3] == sorted(order[:3])
    assert QUICK.minutes is not None
    assert all(each.minutes <= QUICK.minutes for each in found[:-1])
    slowest = found[-1]
    assert (slowest.crop_px, slowest.epochs) == (min(QUICK.crops), QUICK.fewest_epochs)
    assert slowest.minutes > QUICK.minutes


def test_more_images_take_longer_and_more_processes_less() -> None:
    assert chosen(1000, num_train=20_000).minutes > chosen(1000).minutes
    one, two, many = (chosen(1000, jobs=jobs).minutes for jobs in (1, 2, 50))
    assert one / 2 <= two < one
    assert many == pytest.approx(chosen(1000, jobs=4).minutes)  # four runs: the longest decides


def test_a_profile_without_a_limit_takes_its_own_epochs() -> None:
    full = PROFILES["full"]
    found = choose_sizes(
        full, num_train=100, num_val=30, jobs=1, machine="", rate_of=lambda _: 1e-3
    )
    assert (found.crop_px, found.epochs) == (224, full.epochs)


def test_the_rate_is_measured_on_this_machine_with_one_thread() -> None:
    threads = torch.get_num_threads()
    smoke = replace(PROFILES["smoke"], batch_size=4)
    assert measure_rate(smoke, 32, device=torch.device("cpu")) > 0
    assert torch.get_num_threads() == threads


def test_the_machine_is_described_by_what_decides_its_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = {"cpu_name": "EPYC", "avx2": True, "avx512_f": False, "avx512_bf16": False}
    monkeypatch.setattr("training.study.sizes.cpu_capabilities", lambda: flags)
    monkeypatch.setattr("training.study.sizes.num_usable", lambda: 2)
    found = describe_machine(torch.device("cpu"))
    assert found == "EPYC, 2 cores, with AVX2, without AVX-512, bfloat16, no GPU"


def test_sizes_are_chosen_once_and_kept_for_a_study_that_is_resumed(
    image_tree: Path, tmp_path: Path, srp_train: SrpTrain
) -> None:
    file = tmp_path / "runs/sizes.json"
    command = ("sizes", image_tree, "--profile", "smoke", "-o", file, "--device", "cpu")
    first = srp_train(*command)
    assert first.exit_code == 0, first.stderr
    kept = load_sizes(file)
    assert kept is not None
    assert first.stdout == f"{kept.crop_px} {kept.epochs}\n"
    assert f"machine: {kept.machine}" in first.stderr
    assert f"test_resnet, crops of 32 px: {kept.images_per_s:.0f} images/s" in first.stderr
    assert "--profile smoke: crops of 32 px, 16 epochs, 8 runs: about " in first.stderr
    replace(kept, epochs=3).save(file)
    again = srp_train(*command, "--json")
    assert f"sizes as chosen before, in {file}" in again.stderr
    assert "images/s" not in again.stderr
    assert json.loads(again.stdout)["epochs"] == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "Input data was truncated"), ('{"crop_px": "a"}', "Expected `int`, got `str`")],
)
def test_a_damaged_file_of_sizes_is_one_line(
    content: str, reason: str, image_tree: Path, tmp_path: Path, srp_train: SrpTrain
) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(content)
    result = srp_train("sizes", image_tree, "-o", file)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith(f"error: a file of sizes must be whole; got {reason}")
    assert line.endswith(f" in {file}. Delete it: they are chosen again.")


def test_a_profile_for_sizes_of_its_own_is_refused(image_tree: Path, srp_train: SrpTrain) -> None:
    result = srp_train("sizes", image_tree, "--profile", "choosing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "error: --profile must be one that fits itself to the machine; got choosing. Choose from "
        "smoke, quick, full."
    ]
