import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from training.export import hub
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

Finished = tuple[RunPaths, RunRecord]
SrpTrain = Callable[..., Result]


def error_of(result: Result, status: int = 2) -> str:
    """Give the one error line that a command ended in."""
    assert result.exit_code == status, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


class Hub:
    """Takes the place of the Hugging Face hub."""

    uploads: list[dict[str, object]] = []  # noqa: RUF012 one for all

    def whoami(self) -> None:
        """Know everyone."""

    def create_repo(self, repo: str, *, exist_ok: bool) -> None:
        """Make none."""

    def upload_folder(self, **options: object) -> None:
        self.uploads.append(options)


@pytest.mark.sweep  # test_onnx_file.py covers the graph
def test_torchs_own_file_is_written_and_checked_on_the_runs_shards(
    srp_train: SrpTrain, finished: Finished, scene_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "chooser.pt2"
    words = ("export", finished[0].folder, out, "--format", "torch-export", "-j", "1", "--json")
    result = srp_train(*words, "--shards", scene_shards)
    assert result.exit_code == 0, result.output
    fields = json.loads(result.stdout)
    assert fields["files"] == [str(out)]
    assert fields["num_images"] == fields["num_same_crop"] == 29
    assert "checked on 29 images, 1 and 5 at a time" in result.stderr


def test_a_folder_is_written_again_and_pushed(
    srp_train: SrpTrain, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HfApi", Hub)
    words = ("export", finished[0].folder, tmp_path / "new/out", "--format", "timm")
    first = srp_train(*words)
    assert first.exit_code == 0, first.output
    again = srp_train(*words, "--push", "me/chooser", "--json")
    assert json.loads(again.stdout)["pushed"] == "https://huggingface.co/me/chooser"
    (upload,) = Hub.uploads
    assert upload["repo_id"] == "me/chooser"
    assert set(upload["allow_patterns"]) == {  # type: ignore[call-overload]
        "model.safetensors", "proposer.safetensors", "README.md", "config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gone", "out", "--format", "timm"), "a run must have a checkpoint; got none at gone"),
        (("RUN", "out", "--format", "keras"), "'keras' is not one of 'onnx', 'torch-export'"),
        (("RUN", "out"), "Missing option '--format'"),
        (("RUN", "file", "--format", "timm"), "OUT must be a folder that can be written; got file"),
        (("RUN", "file/out", "--format", "timm"), "OUT must be a folder that can be written"),
        (("RUN", "theirs", "--format", "timm"), "OUT must be new, or an export of srp; got theirs"),
        (("RUN", "file", "--format", "onnx"), "OUT must be new, or an export of srp; got file"),
        (
            ("RUN", "theirs", "--format", "onnx"),
            "OUT must be a file that can be written; got their",
        ),
        (("RUN", "no/out", "--format", "onnx"), "OUT must be a file that can be written; got no/o"),
        (("RUN", "a.onnx", "--format", "onnx", "--push", "me/it"), "--push uploads a folder for t"),
        (("RUN", "out", "--format", "timm", "--push", "it"), "--push must be OWNER/NAME; got 'it'"),
        (("RUN", "out", "--format", "timm", "--push", "a b/c"), "--push must be OWNER/NAME"),
        (("RUN/last.safetensors", "a.pt2", "--format", "torch-export"), "got a checkpoint without"),
        (
            ("RUN", "a.pt2", "--format", "torch-export", "--images", "no"),
            "IMAGE must be a file, a f",
        ),
    ],
)
def test_what_cannot_work_is_one_line(
    words: tuple[str, ...], message: str, srp_train: SrpTrain, finished: Finished, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text("{}")
    run, *others = words
    result = srp_train("export", run.replace("RUN", str(finished[0].folder)), *others)
    assert message in error_of(result)
    assert result.stdout == ""
    assert (tmp_path / "file").read_text() == "mine"


def test_a_push_without_a_network_is_refused_before_the_work(
    srp_train: SrpTrain, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(self: object) -> None:
        raise ConnectionError("Cannot reach the hub: offline mode is enabled.")

    monkeypatch.setattr(Hub, "whoami", offline)
    monkeypatch.setattr(hub, "HfApi", Hub)
    out = tmp_path / "out"
    result = srp_train("export", finished[0].folder, out, "--format", "timm", "--push", "me/it")
    message = error_of(result)
    assert message.startswith("--push needs the Hugging Face hub and a login; got Cannot reach")
    assert not out.exists()


def test_a_missing_package_is_named(
    srp_train: SrpTrain, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.export.onnx_file.find_spec", lambda name: None)
    result = srp_train("export", finished[0].folder, tmp_path / "a.onnx", "--format", "onnx")
    assert "pip install 'srp[export]'" in error_of(result)
    assert sys.modules["training.export.onnx_file"]
