import subprocess
import sys
from pathlib import Path

import pytest

import training

README = Path(__file__).resolve().parents[2] / "training/README.md"


def test_every_public_name_is_there_and_listed() -> None:
    for name in training.__all__:
        assert getattr(training, name) is not None
    assert set(training.__all__) <= set(dir(training))
    with pytest.raises(AttributeError, match="no attribute 'train_steps'"):
        training.train_steps  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import training, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    modules = {name.partition(".")[0] for name in loaded.stdout.decode().split()}
    assert not modules & {"numpy", "torch", "timm", "click", "msgspec", "matplotlib"}


def test_the_example_of_the_readme_runs(
    scene_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").symlink_to(scene_shards)
    monkeypatch.chdir(tmp_path)
    example = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert len(example.splitlines()) <= 12
    names: dict[str, object] = {}
    exec(example, names)  # noqa: S102 - it is our own
    assert names["step"] == 8
    assert isinstance(names["figures"], training.Evaluation)
