import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from pipeline.bench.loaders import run as bench_load
from pipeline.bench.loaders.process import run_child
from pipeline.bench.loaders.protocol import Answer, Task
from pipeline.bench.loaders.registry import LOADERS
from pipeline.command.results import Row, number

ONCE = ["--rounds=1", "--seconds=0.001", "--batch=4", "--images=9"]
has_torchvision = find_spec("torchvision") is not None
has_matplotlib = find_spec("matplotlib") is not None
needs_matplotlib = pytest.mark.skipif(not has_matplotlib, reason="the chart needs matplotlib")


# Each variant of ours is tested in test_loaders.py; here one stands for all.
FEW = tuple(
    replace(loader, variants=loader.variants[:1]) if loader.name == "ours" else loader
    for loader in LOADERS
)


@pytest.fixture(autouse=True, scope="module")
def few_variants() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_load, "LOADERS", FEW)
        yield


@pytest.fixture
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="srp-") as folder:  # the tests' own paths are long
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        monkeypatch.undo()


class Shown(NamedTuple):
    """What one run of the command left."""

    result: Any
    figures: dict[str, Any]
    svg: Path


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """What takes an interpreter's place; each test writes what it does."""
    path = tmp_path / "python"
    path.touch()
    path.chmod(0o755)
    return path


def rows_of(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)["rows"]}


@pytest.fixture(scope="module")
def measured(five_shards: Path, srp_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """What always is here, with two workers."""
    folder = tmp_path_factory.mktemp("bench-load")
    options = ["--loader=ours", "--loader=limits", "--workers=2"]
    charted = ["--svg", folder / "chart.svg"] if has_matplotlib else []
    result = srp_data(
        "bench", "load", five_shards, *ONCE, *options, *charted, "--json", folder / "figures.json"
    )
    assert result.exit_code == 0, result.output
    figures = json.loads((folder / "figures.json").read_text())
    return Shown(result, figures, folder / "chart.svg")


def test_ours_and_the_limits_are_measured_with_one_and_more_workers(measured: Shown) -> None:
    names = [row["name"] for row in measured.figures["rows"]]
    assert names == [
        f"{loader.name}: {variant.text}, workers {workers}"
        for loader in FEW
        if loader.name in ("ours", "limits")
        for variant in loader.variants
        for workers in (1, 2)
    ]
    for row in measured.figures["rows"]:
        assert row["problem"] is None
        assert len(row["rates"]) == 1
        assert row["median"] == row["rates"][0] > 0
        assert row["labels"].keys() == {"gives", "loader", "workers", "version"}
        found = row["figures"]
        for name in ("kB a sample", "build, s", "import, s", "first batch, s"):
            assert found[name] > 0, name
    assert "cpu" in measured.figures["machine"]
    assert measured.figures["setting"] == {
        "shards": "five",
        "images": 9,
        "rounds": 1,
        "batch": 4,
        "seconds": 0.001,
        "canvas_size": 168,
        "crop_size": 112,
        "glimpse_size": 32,
    }


def test_people_get_a_table_and_progress(measured: Shown) -> None:
    assert "samples/s" in measured.result.stdout
    for row in measured.figures["rows"]:
        assert row["labels"]["loader"] in measured.result.stdout
        assert number(row["median"]) in measured.result.stdout
    for stage in ("reading shards", "building layouts", "measuring"):
        assert stage in measured.result.stderr


@needs_matplotlib
def test_the_chart_is_an_svg_with_text_as_text_and_the_same_for_the_same_figures(
    measured: Shown,
) -> None:
    from pipeline.bench.loaders.chart import draw_chart

    root = ElementTree.fromstring(measured.svg.read_text())  # noqa: S314  # our own
    texts = " ".join(
        "".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")
    )
    assert "ours: raw shards" in texts
    assert "memcpy" in texts
    assert "samples/s" in texts
    rows = [made_row("ours: x", "crops", 2.0), made_row("b", "canvases", None)]
    assert draw_chart(rows) == draw_chart(rows)
    assert draw_chart([]).startswith("<svg")


def made_row(loader: str, gives: str, median: float | None) -> Row:
    labels = {"gives": gives, "loader": loader, "workers": "1"}
    return Row(name=loader, labels=labels, median=median)


def test_rows_are_compared_with_the_reference_of_their_mode_and_number_of_workers(
    five_shards: Path, srp_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_python: Path, task: Task, *, scratch: Path) -> Answer:
        assert scratch.is_dir()
        if task.action == "build":
            return Answer(num_bytes=9000, build_s=1.0)
        rates = {"as installed": 10.0, "patched": 20.0}
        mode = 4 if task.mode == "canvases" else 1
        return Answer(rate=rates.get(task.variant, 5.0) * task.workers * mode, cpu_s=0.001)

    monkeypatch.setattr(bench_load, "run_child", answer)
    options = ["--loader=ffcv", "--loader=ours", "--workers=3", "--json=-"]
    rows = rows_of(srp_data("bench", "load", five_shards, *ONCE, *options))
    for row in rows.values():
        (name,) = row["ratios"]
        gives = "canvases" if row["labels"]["gives"] == "canvases" else "all crops"
        assert name == f"ffcv: as installed, {gives}, workers {row['labels']['workers']}"
    assert [row["ratios"].popitem()[1] for row in rows.values()] == [0.5] * 2 + [
        1.0, 1.0, 2.0, 2.0, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0
    ]  # fmt: skip
    assert rows["ours: raw shards, workers 3"]["figures"] == {
        "kB a sample": 1.0, "build, s": 1.0, "CPU ms a sample": 1.0
    }  # fmt: skip


def test_a_loader_that_is_missing_is_named_with_the_way_to_install_it(
    five_shards: Path, other_python: Path, srp_data: Any, temp_dir: Path
) -> None:
    hidden = other_python.with_name("hidden")
    hidden.mkdir()
    (hidden / "ffcv.py").write_text("raise ModuleNotFoundError('No module named', name='ffcv')")
    other_python.write_text(
        f'#!/bin/sh\nPYTHONPATH={hidden}:$PYTHONPATH exec {sys.executable} "$@"\n'
    )
    options = ["--loader=ffcv", "--workers=1", "--json=-", f"--python=ffcv={other_python}"]
    rows = rows_of(srp_data("bench", "load", five_shards, *ONCE, *options))
    ffcv = next(loader for loader in LOADERS if loader.name == "ffcv")
    assert len(rows) == len(ffcv.variants)
    for row in rows.values():
        assert row["problem"] == "not installed: make bench-envs"
        assert row["median"] is None
    assert list(temp_dir.iterdir()) == []


TORCHVISION = ("--loader=torchvision", "--workers=1", "--json=-")


def test_torchvision_needs_the_original_images(
    five_shards: Path, srp_data: Any, temp_dir: Path
) -> None:
    rows = rows_of(srp_data("bench", "load", five_shards, *ONCE, *TORCHVISION))
    assert {row["problem"] for row in rows.values()} == {"needs --source"}
    assert list(temp_dir.iterdir()) == []


@pytest.mark.sweep  # each of its processes takes ten seconds to import torchvision
@pytest.mark.skipif(not has_torchvision, reason="torchvision is not in here")
def test_torchvision_is_measured_on_the_original_images(
    five_shards: Path, image_tree: Path, srp_data: Any, temp_dir: Path
) -> None:
    command = ("bench", "load", five_shards, *ONCE, *TORCHVISION, "--source", image_tree)
    assert {row["problem"] for row in rows_of(srp_data(*command)).values()} == {None}
    assert list(temp_dir.iterdir()) == []


def test_wrong_pixels_are_reported_and_have_no_figures(
    five_shards: Path, srp_data: Any, monkeypatch: pytest.MonkeyPatch, temp_dir: Path
) -> None:
    def export(*arguments: Any, **options: Any) -> Any:
        import numpy as np

        origins = real(*arguments, **options)
        path = arguments[1] / "expected-crops.npy"
        expected = np.load(path)
        expected[0, 1] ^= 1
        np.save(path, expected)
        return origins

    real = bench_load.export_images
    monkeypatch.setattr(bench_load, "export_images", export)
    options = ["--loader=ours", "--workers=1", "--json=-"]
    rows = rows_of(srp_data("bench", "load", five_shards, *ONCE, *options))
    row = rows["ours: raw shards, workers 1"]
    assert row["problem"] == "wrong pixels: 1 of 9 images are not those that were given"
    assert row["median"] is None


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "failed: exit status 3"),
        ("echo 'No such luck' >&2; exit 1", "failed: No such luck"),
        ("true", "failed: exit status 0"),
    ],
)
def test_a_process_that_fails_is_a_row_with_its_reason(
    script: str, problem: str, five_shards: Path, other_python: Path, srp_data: Any
) -> None:
    other_python.write_text(f"#!/bin/sh\n{script}\n")
    options = ["--loader=spdl", "--workers=1", "--json=-", f"--python=spdl={other_python}"]
    rows = rows_of(srp_data("bench", "load", five_shards, *ONCE, *options))
    assert {row["problem"] for row in rows.values()} == {problem}


def test_ctrl_c_leaves_no_process(
    other_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_python.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {tmp_path}/pid\nwait\n")

    def interrupt(child: Any, *_: Any, **__: Any) -> Any:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen.communicate", interrupt)
    task = make_task()
    with pytest.raises(KeyboardInterrupt):
        run_child(other_python, task, scratch=tmp_path)
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    while is_running(stat):  # a killed process takes a moment to go
        time.sleep(0.01)


def is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def make_task() -> Task:
    return Task(
        action="turn", loader="ours", package="", variant="", mode="crops", layout="", images="",
        out="", workers=1, batch_size=1, seconds=1.0, boxes=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{five}", "--images=0"], "--images must be at least 1; got 0."),
        (["{five}", "--rounds=0"], "--rounds must be at least 1; got 0."),
        (["{five}", "--workers=0"], "--workers must be at least 1; got 0."),
        (["{five}", "--batch=0"], "--batch must be at least 1; got 0."),
        (["{five}", "--seconds=0"], "--seconds must be at least 0.001; got 0.0."),
        (["{five}", "--seconds=nan"], "--seconds must be at least 0.001; got nan."),
        (["{five}", "--loader=x"], "'--loader': 'x' is not one of 'ours', 'ffcv',"),
        (["{five}", "--python=x=/bin/sh"], "--python must name one of ours, ffcv,"),
        (["{five}", "--python=ffcv"], "--python must be NAME=PYTHON; got 'ffcv'."),
        (["{five}", "--json=no/such/x.json"], "--json must be a file in a folder that exists;"),
        (["{five}", "--svg=no/such/x.svg"], "--svg must be a file in a folder that exists;"),
        (
            ["{five}", "--loader=ours", "--python=ours=/no/such"],
            "--python must name an interpreter; got /no/such for ours: No such file or directory.",
        ),
        (
            ["{six}"],
            "a bench of loaders needs shards with --layout canvas and --candidates five; got "
            "--layout canvas and --candidates full+five in {six}. Build others with",
        ),
        (["{tree}"], "SHARDS must be a folder with a manifest.json; got {tree}, which has none."),
        (["{five}", "--source=none"], "SOURCE must be a folder or a .tgz; got none,"),
        ([], "Missing argument 'SHARDS'."),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    five_shards: Path,
    canvas_shards: Path,
    image_tree: Path,
    srp_data: Any,
    temp_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"{five}": five_shards, "{six}": canvas_shards, "{tree}": image_tree}

    def fill(text: str) -> str:
        return re.sub(r"\{\w+\}", lambda match: str(places[match[0]]), text)

    result = srp_data("bench", "load", *map(fill, arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert fill(words) in last
    assert list(temp_dir.iterdir()) == []


def test_another_source_than_the_shards_was_built_from_is_one_line(
    five_shards: Path, own_tree: Path, srp_data: Any, temp_dir: Path
) -> None:
    for path in (own_tree / "train").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes() + b"more")
    result = srp_data("bench", "load", five_shards, *ONCE, "--loader=ours", "--source", own_tree)
    assert result.exit_code == 2
    assert "--source must be what the shards were built from;" in result.stderr.splitlines()[-1]
    assert list(temp_dir.iterdir()) == []
