import json
import resource
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.bench import doctor
from pipeline.bench.doctor import EXTRAS, Finding, examine
from pipeline.common.errors import ConfigError

SrpData = Callable[..., Result]


def found(folder: Path, *, disk_mib: int = 0) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(folder, disk_mib=disk_mib)}


def test_the_command_prints_what_it_finds_and_then_what_to_do_and_leaves_nothing(
    srp_data: SrpData, tmp_path: Path
) -> None:
    result = srp_data("doctor", "--dir", tmp_path, "--disk-mib", 1)
    assert result.exit_code == 0, result.output
    findings, _, advice = result.stdout.partition("\n\n")
    for words in (
        "python               3.",
        "packages, base       click ",
        "decoder pillow       works: pillow",
        "CPU                  ",
        f"GiB at {tmp_path}",
        "MB/s written and synced, ",
        "open files           ",
    ):
        assert words in findings
    assert advice
    assert not list(tmp_path.iterdir())


def test_for_programs_it_prints_one_object_for_each_finding(
    srp_data: SrpData, tmp_path: Path
) -> None:
    result = srp_data("doctor", "--dir", tmp_path, "--disk-mib", 0, "--json")
    told = {each["name"]: each for each in json.loads(result.stdout)}
    assert told["decoder pillow"].keys() == {"name", "value", "advice", "is_broken"}
    assert "disk" not in told
    assert not any(each["is_broken"] for each in told.values())


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"packages, {extra}" in found(tmp_path)
    package = {"train": "timm", "remote": "s3fs", "dali": "nvidia-dali-cuda130", "export": "onnx"}
    package["ray"] = "ray"

    def missing(name: str) -> str:
        if name == package[extra]:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", missing)
    finding = found(tmp_path)[f"packages, {extra}"]
    assert f"{package[extra]} is missing" in finding.value
    assert finding.advice == f"Install it {EXTRAS[extra]}: pip install 'srp[{extra}]'"
    assert not finding.is_broken


def test_a_decoder_that_every_command_needs_and_that_fails_ends_in_status_2(
    srp_data: SrpData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(spec: object) -> None:
        raise OSError("libjpeg is missing")

    monkeypatch.setattr(doctor, "open_decoder", broken)
    result = srp_data("doctor", "--dir", tmp_path, "--disk-mib", 0)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: what every command needs must work; got decoder pillow: libjpeg is missing. "
        "Install Pillow again: pip install --force-reinstall pillow\n"
    )
    assert "decoder pillow: Install Pillow again" in result.stdout


def test_without_a_gpu_all_works_and_one_that_torch_cannot_use_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(gpus: str, cuda: str) -> Callable[..., str]:
        return lambda *command: gpus if command[0] == "nvidia-smi" else cuda

    monkeypatch.setattr(doctor, "_said", said("", ""))
    assert found(tmp_path)["GPU"].advice == ""
    monkeypatch.setattr(doctor, "_said", said("H200, 139 GiB", "True 13.0"))
    assert "torch's CUDA" not in found(tmp_path)
    monkeypatch.setattr(doctor, "_said", said("H200, 139 GiB", "False None"))
    finding = found(tmp_path)["torch's CUDA"]
    assert (finding.value, finding.is_broken) == ("none", False)
    assert "https://pytorch.org/get-started/locally" in finding.advice


def test_narrow_limits_are_told_with_what_raises_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_NOFILE: (256, 2048), resource.RLIMIT_FSIZE: (2**30, 2**30)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(doctor, "num_usable", lambda: 8)
    quota = {"/sys/fs/cgroup/cpu.max": "250000 100000\n", "/proc/cpuinfo": "flags : sse4_2\n"}
    monkeypatch.setattr(doctor, "_text", lambda path: quota[str(path)])
    findings = found(tmp_path)
    assert findings["open files"].advice == "Raise it: ulimit -n 2048"
    assert findings["size of files"].advice == "Raise it: ulimit -f unlimited"
    assert findings["CPU"].advice == "This container may use 2.5 cores' time: add --workers 2."
    assert "without AVX2, AVX-512, bfloat16, AMX" in findings["CPU"].value


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"--dir must be a folder that can be written; got "):
        found(tmp_path, disk_mib=1)
