from pathlib import Path
from typing import Any

import pytest
from reported import Reported

from pipeline.bench import codecs
from pipeline.bench.config import CodecBenchConfig
from pipeline.common.errors import ConfigError


def test_every_codec_is_measured_on_every_canvas(canvas_shards: Path) -> None:
    progress = Reported()
    config = CodecBenchConfig(shards=canvas_shards, images=20)
    rows = codecs.bench_codecs(config, progress=progress)
    assert [row.name for row in rows][:4] == ["zstd", "png", "webp", "jpeg 95 4:4:4"]
    for row in rows:
        kilobytes, encode_ms, decode_ms, mean_off, max_off = row.figures.values()
        assert 0 < kilobytes < 168 * 168 * 3 / 1000
        assert encode_ms > 0 < decode_ms
        assert (max_off > 0) == (mean_off > 0) == row.name.startswith("jpeg")
    assert progress.calls == [("measuring", done, 20) for done in range(21)]


@pytest.mark.parametrize(
    ("fixture", "got"),
    [
        ("tensor_shards", "--layout tensors --codec raw"),
        ("zstd_shards", "--layout canvas --codec zstd"),
    ],
)
def test_shards_without_raw_canvases_are_refused_with_the_command_that_makes_some(
    fixture: str, got: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ConfigError, match=rf"got {got} in .*\. Build some with --codec raw"):
        codecs.bench_codecs(CodecBenchConfig(shards=request.getfixturevalue(fixture)))


def test_the_command_prints_a_line_for_each(canvas_shards: Path, srp_data: Any) -> None:
    result = srp_data("bench", "codecs", canvas_shards, "--images", 2)
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split() == [
        "row", "codec", "kB", "encode,", "ms", "decode,", "ms", "off:", "mean", "off:", "max"
    ]  # fmt: skip
    assert len(lines) == 3 + 6
