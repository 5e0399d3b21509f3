import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import memory

MEMINFO = "MemTotal:       16000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\nHugePages_Total: 0\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the system's; a test writes its files."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_what_is_free_is_what_the_system_says(system: Path) -> None:
    (system / "meminfo").write_text(MEMINFO)
    assert memory.free_bytes() == 8000 * 1024


@pytest.mark.parametrize(
    ("limit", "free"), [("5000000\n", 3_100_000), ("max\n", 8_192_000), ("99000000\n", 8_192_000)]
)
def test_a_containers_limit_counts_where_it_is_lower(system: Path, limit: str, free: int) -> None:
    (system / "meminfo").write_text(MEMINFO)
    (system / "memory.max").write_text(limit)
    (system / "memory.current").write_text("2000000\n")
    (system / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert memory.free_bytes() == free


def test_a_system_that_says_nothing_is_not_asked_twice(system: Path) -> None:
    assert not any(system.iterdir())
    assert memory.free_bytes() is None


COUNT_FAULTS = """
import resource, sys
from pipeline.common.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        held = [bytearray(300_000) for _ in range(20)]  # as many canvases as wait to be written
        del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again_without_the_system() -> None:
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS, how], check=True, capture_output=True
            ).stdout
        )
        for how in ("kept", "returned")
    }
    assert faults["kept"] < 1000 < faults["returned"], faults
