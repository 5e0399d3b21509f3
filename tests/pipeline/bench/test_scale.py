import re
from pathlib import Path
from typing import Any

from pipeline.bench.scale import measure


def test_every_size_is_a_row_with_at_least_as_many_samples(
    five_shards: Path, srp_data: Any
) -> None:
    result = srp_data(
        "bench", "scale", five_shards, "--size=200", "--size=400", "--workers=1", "--rounds=2"
    )
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert re.split(r"\s{2,}", head.strip()) == [
        "row", "samples", "shards", "samples/s", "start, s", "memory, MiB"
    ]  # fmt: skip
    assert len(rows) == 2
    for row, size in zip(rows, (200, 400), strict=True):
        _, num_samples, num_shards, rate, start_s, memory_mib = row.replace(",", "").split()
        assert int(num_samples) >= size
        assert int(num_shards) > 1
        assert float(start_s) >= 0
        assert float(memory_mib) > 0
        assert float(rate) > 0


def test_a_folder_is_measured_as_it_is(five_shards: Path) -> None:
    turn = measure(five_shards, 1)
    assert turn.rate == 0  # one batch holds all, and the first batch is part of the start
    assert turn.figures.keys() == {"start, s", "memory, MiB"}


def test_shards_without_canvases_are_refused(tensor_shards: Path, srp_data: Any) -> None:
    result = srp_data("bench", "scale", tensor_shards)
    assert result.exit_code == 2
    assert "a bench of scale needs shards with --layout canvas" in result.stderr
