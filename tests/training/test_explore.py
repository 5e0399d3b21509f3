"""The notebook runs from its first cell to its last, on fewer and smaller trainings."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "training/explore.ipynb"
SHORTER = {
    "EPOCHS, FIT_EPOCHS = 16, 40": "EPOCHS, FIT_EPOCHS = 2, 1",
    "--train 300 --val 100": "--train 18 --val 2",
}


@pytest.mark.sweep  # a kernel and torch in it take a quarter of a minute
def test_the_notebook_runs_and_draws_what_the_proposer_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    book = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(
        book, timeout=100, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    printed = "".join(output.get("text", "") for output in outputs)
    assert "always centre:" in printed
    assert (tmp_path / "explore/runs/chooser/record.json").exists()
