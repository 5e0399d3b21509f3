"""What goes to stdout can be piped: no colours, and no line is cut, whatever the terminal."""

from dataclasses import replace

import pytest

from training.report.terminal import evaluation_text
from training.study.finished import FinishedRun


def test_a_narrow_terminal_cuts_nothing_and_colours_nothing(
    runs: list[FinishedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = runs[0].evaluation
    crops = tuple(f"a rather long name of crop {k} [bold]" for k in range(len(done.crops)))
    names = tuple(f"class {number}" for number in range(len(done.top1_classes)))
    text = evaluation_text(replace(done, crops=crops), names)
    assert "\x1b" not in text
    assert "…" not in text
    lines = text.splitlines()
    for name, top1, share in zip(crops, done.top1_crops, done.shares, strict=True):
        (fixed,) = (line for line in lines if line.startswith(f"  always {name}  "))
        (chosen,) = (line for line in lines if line.startswith(f"  {name}  "))
        assert fixed.endswith(f" {top1:.2f}")
        assert chosen.endswith(f" {100 * share:.2f}")
    assert len({len(line) for line in lines if line.startswith("  always")}) == 1
