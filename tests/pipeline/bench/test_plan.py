import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.config import PlanBenchConfig
from pipeline.bench.plan import Section, bench_plan
from pipeline.command.results import Row
from pipeline.format import manifest as manifests


def sections_of(**options: Any) -> list[Section]:
    sections, _ = bench_plan(PlanBenchConfig(**options))
    return sections


def rows_of(section: Section, size: str) -> list[Row]:
    return [row for row in section.rows if row.labels["data"] == size]


def test_every_size_has_a_row_for_every_layout_and_codec() -> None:
    stored, fed, epoch, manifest, _ = sections_of()
    forms = [row.labels["layout, codec"] for row in fed.rows]
    assert forms == [
        "tensors, raw",
        *(f"canvas, {c}" for c in ("raw", "zstd", "png", "webp", "jpeg")),
    ]
    for section in (stored, epoch):
        for size in ("ImageNet-1k", "ImageNet-21k", "a billion"):
            assert [row.labels["layout, codec"] for row in rows_of(section, size)] == forms
    assert len(manifest.rows) == 3
    names = [row.name for section in sections_of() for row in section.rows]
    assert len(set(names)) == len(names)


def test_totals_are_samples_times_what_one_takes() -> None:
    stored, fed, epoch, _, _ = sections_of(price_month=2.0, gpu_decode_rate=100.0)
    for row, read in zip(stored.rows, epoch.rows, strict=True):
        figures, num_bytes = row.figures, row.figures["images"] * row.figures["kB a sample"] * 1e3
        assert figures["TB"] == pytest.approx(num_bytes / 1e12)
        assert figures["$ a month"] == pytest.approx(num_bytes / 1e9 * 2)
        assert figures["hours, 1 core"] == pytest.approx(8 * figures["hours, 8 cores"])
        assert figures["hours, 64 GPUs"] * 64 == pytest.approx(figures["images"] / 100 / 3600)
        assert 0 <= read.figures["requests"] * 8 * 2**20 - num_bytes <= 8 * 2**20 + 1
        assert figures["shards"] * 128 * 2**20 >= num_bytes * 0.99
    for row in fed.rows:
        assert row.figures["Gbit/s, 64 GPUs"] == pytest.approx(64 * row.figures["Gbit/s, 1 GPU"])
    raw = next(row for row in fed.rows if row.labels["layout, codec"] == "canvas, raw")
    assert raw.figures["Gbit/s, 1 GPU"] == pytest.approx(0.363 * 8 * 10, rel=0.01)


def test_a_folder_gives_the_bytes_of_its_own_samples(zstd_shards: Path) -> None:
    manifest = manifests.load(zstd_shards)
    mean = sum(s.num_bytes for s in manifest.shards) / sum(len(s.samples) for s in manifest.shards)
    stored, *_, broken = sections_of(shards=zstd_shards, sizes=(1000,))
    kb = {row.labels["layout, codec"]: row.figures["kB a sample"] for row in stored.rows}
    assert kb["canvas, zstd"] == pytest.approx(mean / 1000)
    assert kb["canvas, raw"] > kb["canvas, png"] > kb["canvas, jpeg"]
    assert broken.title == "What breaks first, canvas, zstd."
    assert [row.labels["what"] for row in broken.rows] == ["nothing"]


def test_what_breaks_follows_from_the_numbers_and_comes_in_order() -> None:
    (broken,) = sections_of(sizes=(10**9,))[-1:]
    starts = [float(row.labels["from, images"].replace(",", "")) for row in broken.rows]
    assert starts == sorted(starts)
    assert all(start < 10**9 for start in starts)
    first = sections_of(sizes=(int(starts[0]) - 1000, int(starts[0]) + 1000))[-1].rows
    assert [row.labels["what"] for row in first][:2] == ["nothing", broken.rows[0].labels["what"]]


def test_a_codec_that_is_slow_to_decode_breaks_at_any_size() -> None:
    rows = sections_of(sizes=(1000,), codec="png")[-1].rows
    assert [row.labels["what"] for row in rows] == ["cores to read for 8 GPUs"]
    assert sections_of(sizes=(1000,), codec="zstd")[-1].rows[0].labels["what"] == "nothing"


@pytest.mark.parametrize(
    ("larger", "gone"),
    [
        ({"shard_mib": 10_000}, ("memory maps to read by index", "seconds to open the folder")),
        ({"disk_gib": 1e9}, ("disk of a machine", "network for 8 GPUs, each epoch")),
        ({"net_gbit": 1e4}, ("network for 8 GPUs, each epoch",)),
        ({"ram_gib": 1e6}, ("memory of a build's list and indexes",)),
        ({"price_egress": 0.0}, ("cost of reading an epoch out of the region",)),
        ({"list_rate": 1e9}, ("hours in which a build lists its source",)),
    ],
)
def test_more_of_what_ran_out_takes_its_line_away(
    larger: dict[str, float], gone: tuple[str, ...]
) -> None:
    before = {row.labels["what"] for row in sections_of(sizes=(10**9,))[-1].rows}
    after = {row.labels["what"] for row in sections_of(sizes=(10**9,), **larger)[-1].rows}
    assert set(gone) <= before
    assert not set(gone) & after


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--size", "0"], "--size must be at least 1; got 0."),
        (["--core-rate", "0"], "--core-rate must be at least 0.01; got 0.0."),
        (["--gpu-rate", "nan"], "--gpu-rate must be at least 0.01; got nan."),
        (["--ram-gib", "inf"], "--ram-gib must be finite; got inf."),
        (["--price-month", "-1"], "--price-month must be at least 0.0; got -1.0."),
        (["--json", "missing/a.json"], "--json must be a file in a folder that exists"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(options: list[str], error: str, srp_data: Any) -> None:
    result = srp_data("bench", "plan", *options)
    assert result.exit_code == 2
    assert error in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_codec_that_a_layout_cannot_have_is_refused(tensor_shards: Path, srp_data: Any) -> None:
    result = srp_data("bench", "plan", tensor_shards, "--codec", "zstd")
    assert result.exit_code == 2
    assert "--layout tensors is raw; got --codec zstd for the shards in" in result.stderr


def test_the_command_prints_its_tables_or_one_json(tmp_path: Path, srp_data: Any) -> None:
    printed = srp_data("bench", "plan", "--size", "5000000", "--json", tmp_path / "plan.json")
    assert printed.exit_code == 0
    assert printed.stdout.count("5,000,000 images") >= 14
    assert "What breaks first, canvas, raw." in printed.stdout
    figures = json.loads((tmp_path / "plan.json").read_text())
    alone = srp_data("bench", "plan", "--size", "5000000", "--json", "-")
    assert json.loads(alone.stdout) == figures
    assert figures["setting"]["core_rate"] == 272
    assert len(figures["rows"]) == 6 + 6 + 6 + 1 + 1
