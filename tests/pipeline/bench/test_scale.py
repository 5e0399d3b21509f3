import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.scale import measure_batches, measure_stream
from pipeline.format import manifest as manifests


def test_every_size_is_a_row_with_at_least_as_many_samples(
    five_shards: Path, srp_data: Any
) -> None:
    result = srp_data(
        "bench", "scale", five_shards, "--size=200", "--size=400", "--workers=1", "--rounds=2"
    )
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert re.split(r"\s{2,}", head.strip()) == [
        "row", "samples", "shards", "read as", "samples/s", "start, s", "memory, MiB"
    ]  # fmt: skip
    assert len(rows) == 4
    for row, size in zip(rows, (200, 200, 400, 400), strict=True):
        _, num_samples, num_shards, how, rate, start_s, memory_mib = row.replace(",", "").split()
        assert how in ("batches", "stream")
        assert int(num_samples) >= size
        assert int(num_shards) > 1
        assert float(start_s) >= 0
        assert float(memory_mib) > 0
        assert float(rate) > 0


def test_many_samples_are_read_as_a_stream_alone(
    five_shards: Path, srp_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "INLINE_SAMPLES", 300)
    result = srp_data("bench", "scale", five_shards, "--size=200", "--size=400", "--rounds=1")
    assert result.exit_code == 0, result.output
    rows = [row.split()[3] for row in result.stdout.splitlines()[1:]]
    assert rows == ["batches", "stream", "stream"]


def test_a_folder_is_measured_as_it_is(five_shards: Path) -> None:
    turn = measure_batches(five_shards, 1)
    assert turn.rate == 0  # one batch holds all, and the first batch is part of the start
    streamed = measure_stream(five_shards)
    assert streamed.rate
    assert turn.figures.keys() == streamed.figures.keys() == {"start, s", "memory, MiB"}


def test_shards_without_canvases_are_refused(tensor_shards: Path, srp_data: Any) -> None:
    result = srp_data("bench", "scale", tensor_shards)
    assert result.exit_code == 2
    assert "a bench of scale needs shards with --layout canvas" in result.stderr
