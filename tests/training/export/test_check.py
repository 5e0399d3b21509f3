"""A file that does not say what its run says gets no name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import SourceError, VerificationError
from training.export import write
from training.export.check import MOST_IMAGES, Answers, check_agreement, spread_files
from training.predict.load import LoadedRun


def wrong(images: np.ndarray) -> Answers:
    num = len(images)
    return Answers(
        np.zeros((num, 10), np.float32), np.zeros(num, np.int64), np.ones((num, 6), np.float32)
    )


def test_a_wrong_file_is_refused_and_leaves_nothing(
    loaded: LoadedRun, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "trace", lambda graph: graph)
    packed: Callable[..., object] = lambda program, description: b"file"  # noqa: E731
    monkeypatch.setitem(write.GRAPHS, "onnx", (packed, lambda data: wrong))
    with pytest.raises(VerificationError, match="an exported file must say what its run says"):
        write.write_graph(loaded, tmp_path / "out.onnx", "onnx", files=files, workers=1)
    assert not list(tmp_path.iterdir())


def test_a_number_that_is_none_is_refused(loaded: LoadedRun, files: list[Path]) -> None:
    def blind(images: np.ndarray) -> Answers:
        answers = wrong(images)
        return answers._replace(logits_BN=answers.logits_BN * np.nan)

    with pytest.raises(VerificationError):
        check_agreement(loaded, blind, files, workers=1)


def test_images_that_cannot_be_used_are_no_check(loaded: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("none")
    with pytest.raises(SourceError, match="got none of 1 that can be used"):
        check_agreement(loaded, wrong, [tmp_path / "text.jpg"], workers=1)


def test_files_are_taken_from_all_that_there_are() -> None:
    names = [Path(str(number)) for number in range(3925)]
    taken = spread_files(names)
    assert 100 < len(taken) <= MOST_IMAGES
    assert int(taken[-1].name) > 3900
    assert spread_files(names[:7]) == names[:7]
