import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

README = Path(__file__).resolve().parents[2] / "pipeline/README.md"


def test_every_public_name_is_there_and_listed() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name) is not None
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'build_shard'"):
        pipeline.build_shard  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import pipeline, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    modules = {name.partition(".")[0] for name in loaded.stdout.decode().split()}
    assert not modules & {"numba", "numpy", "torch", "click", "PIL", "msgspec", "webdataset"}


def test_the_example_of_the_readme_runs(
    canvas_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").symlink_to(canvas_shards)
    monkeypatch.chdir(tmp_path)
    example = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len(example.splitlines()) <= 10
    names: dict[str, object] = {}
    exec(example, names)  # noqa: S102 - it is our own
    assert names["batch"]
