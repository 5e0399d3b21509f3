"""What the tests of exports share: one graph of each kind, which takes seconds to make."""

import logging
from pathlib import Path

import pytest

from training.export.run import load_exported_run
from training.export.write import Written, write_graph
from training.predict.load import LoadedRun
from training.saved.folder import RunPaths
from training.saved.record import RunRecord

# torch lays a record of each step of a tracing out for whoever listens, and pytest would.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="session")
def files(scenes: Path) -> list[Path]:
    """Eleven photographs: no whole number of batches of five."""
    return sorted(scenes.glob("val/*/*.JPEG"))[:11]


@pytest.fixture(scope="session")
def loaded(finished: tuple[RunPaths, RunRecord]) -> LoadedRun:
    """A finished run that chooses. Only read it."""
    return load_exported_run(finished[0].folder)


@pytest.fixture(scope="session")
def onnx(loaded: LoadedRun, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The run as ONNX. Only read it."""
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("exported") / "chooser.onnx"
    return write_graph(loaded, out, "onnx", files=files, workers=1)
