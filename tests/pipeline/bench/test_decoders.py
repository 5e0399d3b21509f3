import json
import multiprocessing.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from pipeline.bench import decoders as bench_build
from pipeline.command import results
from pipeline.command.results import Difference, Row
from pipeline.decode.pillow import pillow_name
from pipeline.pixels.resize import is_exact

SIZES = ["--canvas-size=48", "--crop-size=32", "--glimpse-size=8"]
ONCE = [*SIZES, "--images=12", "--rounds=1"]
RGB_JPEGS = 13  # of the 27 images of the tree that all tests share
NONE = Difference(mean=0.0, p999=0, largest=0)
PILLOW = pillow_name().partition(" ")[0]

has_torchvision = find_spec("torchvision") is not None
has_dali = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
needs_exact = pytest.mark.skipif(
    not is_exact(), reason="the reference is Pillow >= 13; this environment has another"
)


class Bench(NamedTuple):
    """What one run of the command left."""

    result: Any
    figures: dict[str, Any]
    left_behind: list[Path]

    @property
    def rows(self) -> list[Row]:
        """All but those of a GPU, which few machines have."""
        rows = results.rows_from_json(json.dumps(self.figures))
        return [row for row in rows if "on the GPU" not in row.name]


def names_of(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


def rows_of_decoder(name: str, *, workers: tuple[int, ...]) -> list[str]:
    return [f"{name}: views", *(f"{name}: build, workers {number}" for number in workers)]


def expected_names(*, workers: tuple[int, ...]) -> list[str]:
    return [
        *([bench_build.PREDECESSOR] if has_torchvision else []),
        "libjpeg-turbo: decode",
        "libjpeg-turbo: decode, one resize",
        "libjpeg-turbo: decode, one resize, written",
        f"{pillow_name()}: decode, one resize",
        *rows_of_decoder(PILLOW, workers=workers),
        *(rows_of_decoder("dali", workers=workers) if has_dali else []),
    ]


@contextmanager
def own_temp_dir() -> Iterator[Path]:
    """Let this process and those it starts put temporary files into a folder of their own.

    The tests' own paths are too long for the sockets of processes.
    """
    multiprocessing.util.get_temp_dir()  # the builds' server keeps its own till the tests end
    with (
        tempfile.TemporaryDirectory(prefix="srp-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    with own_temp_dir() as folder:
        yield folder


@pytest.fixture(scope="module", autouse=True)
def _own_threads() -> Iterator[None]:
    """Give the other tests their threads back."""
    if not has_torchvision:
        yield
        return
    import torch
    import torchvision  # noqa: F401  # makes a cache folder of its own among temporary files

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(image_archive: Path, srp_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Everything that can be measured here, on the images of an archive."""
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "figures.json"
    with own_temp_dir() as temp:
        result = srp_data("bench", "build", image_archive, *ONCE, "--workers=2", "--json", path)
        assert result.exit_code == 0, result.output
        return Bench(result, json.loads(path.read_text()), list(temp.iterdir()))


@pytest.fixture
def _pillow_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long to start, where it is not what is tested."""
    monkeypatch.setattr(bench_build, "DECODERS", (("pillow", "cpu"),))
    monkeypatch.setattr(bench_build, "find_spec", lambda _name: None)


def one_line_error(result: Any) -> str:
    """What a command ended in, without the progress before it."""
    assert result.exit_code == 2
    assert result.stdout == ""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    return str(last)


def test_everything_that_is_here_is_measured(measured: Bench) -> None:
    assert names_of(measured.rows) == expected_names(workers=(1, 2))
    for row in measured.rows:
        assert len(row.rates) == 1
        assert row.median > 0, row.name


@needs_exact
def test_the_decoders_of_the_cpu_give_the_references_pixels(measured: Bench) -> None:
    compared = {row.name: row.differences for row in measured.rows if row.differences}
    decoders = [PILLOW, *(["dali"] if has_dali else [])]
    assert compared == {f"{name}: views": {"canvas": NONE, "glimpses": NONE} for name in decoders}


def test_views_are_compared_with_their_limit_and_builds_with_theirs_or_one_worker(
    measured: Bench,
) -> None:
    limit = bench_build.DECODE_RESIZE if is_exact() else bench_build.PILLOW_RESIZE
    first, *rest = measured.rows
    against = {row.name: [name for name in row.ratios if name != first.name] for row in rest}
    expected = {bench_build.WRITTEN: [bench_build.DECODE_RESIZE]}
    for name in (PILLOW, *(["dali"] if has_dali else [])):
        views, one, two = rows_of_decoder(name, workers=(1, 2))
        limits = [bench_build.WRITTEN, bench_build.PILLOW_RESIZE]
        expected |= {views: [limit], one: limits, two: [one]}
    assert {name: names for name, names in against.items() if names} == expected
    for row in measured.rows:
        for name, ratio in row.ratios.items():
            (other,) = (other for other in measured.rows if other.name == name)
            assert ratio == row.median / other.median  # type: ignore[operator]
        assert first.name in row.ratios


def test_people_get_a_table_of_the_medians(measured: Bench) -> None:
    heading, *lines = measured.result.stdout.splitlines()
    assert " ".join(heading.split()).startswith("row what images/s compared")
    assert len(lines) == len(measured.figures["rows"])
    for number, (line, fields) in enumerate(zip(lines, measured.figures["rows"], strict=True), 1):
        cells = [f"{number} {fields['name']}", results.number(fields["median"])]
        assert " ".join(line.split()).startswith(" ".join(cells)), line
    assert "reading the archive" in measured.result.stderr
    assert "measuring" in measured.result.stderr


def test_the_setting_holds_the_sizes_and_how_many_images_there_were(measured: Bench) -> None:
    setting = measured.figures["setting"]
    assert 0 < setting.pop("mean_bytes") < 100_000
    assert setting == {
        "source": "images.tgz",
        "images": 12,
        "rounds": 1,
        "canvas_size": 48,
        "crop_size": 32,
        "glimpse_size": 8,
    }
    assert {"cpu", "cores", "system", "python"} <= set(measured.figures["machine"])


def test_a_build_says_when_its_first_image_was_finished(measured: Bench) -> None:
    for fields in measured.figures["rows"]:
        is_build = "build, workers" in fields["name"]
        assert list(fields["figures"]) == ["first image, s"] * is_build
        if is_build:
            (rate,), seconds = fields["rates"], fields["figures"]["first image, s"]
            assert 0 < seconds <= 12 / rate


def test_nothing_is_left_behind(measured: Bench) -> None:
    assert measured.left_behind == []


@pytest.mark.usefixtures("_pillow_alone")
def test_without_torchvision_there_is_no_predecessor_and_programs_get_json_alone(
    image_tree: Path, srp_data: Any, temp_dir: Path
) -> None:
    command = ("bench", "build", image_tree, *SIZES, "--images=99", "--rounds=2", "--workers=1")
    result = srp_data(*command, "--json", "-")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert [row["name"] for row in figures["rows"]] == [
        "libjpeg-turbo: decode",
        "libjpeg-turbo: decode, one resize",
        "libjpeg-turbo: decode, one resize, written",
        f"{pillow_name()}: decode, one resize",
        *rows_of_decoder(PILLOW, workers=(1,)),
    ]
    assert {len(row["rates"]) for row in figures["rows"]} == {2}
    assert figures["setting"]["images"] == RGB_JPEGS
    assert list(temp_dir.iterdir()) == []


@needs_exact
@pytest.mark.usefixtures("_pillow_alone", "temp_dir")
def test_images_that_one_contender_lacks_or_sees_otherwise_are_left_out(
    own_tree: Path, jpeg: Any, srp_data: Any
) -> None:
    folder = own_tree / "train/cat"
    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "turned.jpg").write_bytes(jpeg(1, exif=turned))
    (folder / "cut.jpg").write_bytes(jpeg(2)[:-200])
    (folder / "text.jpg").write_text("text")
    (folder / "drawn.png").write_bytes(jpeg(3, kind="PNG"))
    command = ("bench", "build", own_tree, *SIZES, "--images=99", "--rounds=1", "--workers=1")
    figures = json.loads(srp_data(*command, "--json", "-").stdout)
    assert figures["setting"]["images"] == RGB_JPEGS
    rows = results.rows_from_json(json.dumps(figures))
    compared = [row.differences for row in rows if row.differences]
    assert compared == [{"canvas": NONE, "glimpses": NONE}]


@pytest.fixture
def smallest_tree(tmp_path: Path, jpeg: Any) -> Path:
    """Two classes of two JPEGs each, one in train/ and one in val/."""
    root = tmp_path / "smallest"
    for number, place in enumerate(("train/cat", "val/cat", "train/dog", "val/dog")):
        (root / place).mkdir(parents=True)
        (root / place / "one.jpg").write_bytes(jpeg(number))
    return root


@pytest.mark.sweep  # it measures everything once more
def test_another_environment_adds_no_row_that_is_here_already(
    smallest_tree: Path, srp_data: Any, temp_dir: Path
) -> None:
    command = ("bench", "build", smallest_tree, *ONCE, "--workers=1", "--beside", sys.executable)
    result = srp_data(*command, "--json", "-")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["setting"]["images"] == 4
    names = names_of(Bench(result, figures, []).rows)
    assert names == expected_names(workers=(1,))
    assert list(temp_dir.iterdir()) == []


MakePython = Callable[[str], Path]


@pytest.fixture
def make_python(tmp_path: Path) -> MakePython:
    """Make a program that takes Python's place and notes its arguments in `calls`."""

    def make(script: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{script}\n')
        path.chmod(0o755)
        return path

    return make


@pytest.mark.usefixtures("_pillow_alone")
def test_another_environment_has_its_turn_in_every_round(
    smallest_tree: Path, make_python: MakePython, srp_data: Any, tmp_path: Path, temp_dir: Path
) -> None:
    off = Difference(mean=0.25, p999=1, largest=2)
    theirs = [
        Row(name="first there", rates=(0.25,), median=0.25),
        Row(name="libjpeg-turbo: decode", rates=(0.25,), median=0.25),
        Row(
            name="odd: views",
            median=1000.5,
            ratios={"first there": 9.0, "libjpeg-turbo: decode": 9.0},
            differences={"canvas": off},
        ),
        Row(
            name="odd: build, workers 1",
            median=2000.5,
            ratios={"first there": 9.0, "odd: views": 9.0},
        ),
    ]
    (tmp_path / "figures").write_text(json.dumps(results.to_json(theirs, setting={})))
    python = make_python(
        f"sed s/000.5/00$(grep -c . {tmp_path}/calls).5/g {tmp_path}/figures"  # 1001.5, 1002.5
    )
    command = ("bench", "build", smallest_tree, *SIZES, "--images=7", "--rounds=2", "--workers=1")
    result = srp_data(*command, "--beside", python, "--json", "-")
    assert result.exit_code == 0, result.stderr
    rows = results.rows_from_json(result.stdout)
    assert len(set(names_of(rows))) == len(rows)
    assert 0.25 not in rows[0].rates
    decode_rate = rows[0].median
    assert rows[0].name == "libjpeg-turbo: decode"
    assert decode_rate
    # The first call lists the rows, and the second warms up.
    assert rows[-2:] == [
        Row(
            name="odd: views",
            rates=(1003.5, 1004.5),
            median=1004.0,
            ratios={"libjpeg-turbo: decode": 1004.0 / decode_rate},
            differences={"canvas": off},
        ),
        Row(
            name="odd: build, workers 1",
            rates=(2003.5, 2004.5),
            median=2004.0,
            ratios={
                "libjpeg-turbo: decode": 2004.0 / decode_rate,
                "odd: views": 2004.0 / 1004.0,
            },
        ),
    ]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4
    assert len(set(calls)) == 1
    assert calls[0].startswith(f"-m pipeline.cli.main bench build {temp_dir}/srp-bench-")
    assert calls[0].partition("/images ")[2] == (
        "--canvas-size 48 --crop-size 32 --glimpse-size 8 --images 7 --workers 1 --rounds 1 "
        "--json -"
    )


@pytest.mark.usefixtures("_pillow_alone")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "exit status 1"),
        ("echo Traceback >&2; echo 'No module named pipeline' >&2; exit 1", "No module named pi"),
        ("echo 'error: no such thing.' >&2; exit 2", "error: no such thing"),
        ("true", "it printed no figures"),
        ("echo '{}'", "it printed no figures"),
        ("echo '[]'", "it printed no figures"),
        ('echo \'{"rows": [{"name": "odd"}]}\'', "it printed no figures"),
    ],
)
def test_a_program_without_figures_beside_is_one_line(
    script: str,
    reason: str,
    smallest_tree: Path,
    make_python: MakePython,
    srp_data: Any,
    temp_dir: Path,
) -> None:
    python = make_python(script)
    result = srp_data("bench", "build", smallest_tree, *ONCE, "--workers=1", "--beside", python)
    *_, last = result.stderr.splitlines()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert last.startswith(
        f"error: --beside must be the Python of an environment with srp; got {python}: {reason}"
    )
    assert last.endswith(". Make one with: make simd")
    assert ".." not in last
    assert list(temp_dir.iterdir()) == []


@pytest.mark.usefixtures("_pillow_alone")
@pytest.mark.parametrize(
    ("name", "reason"), [("none", "No such file or directory"), ("", "Permission denied")]
)
def test_what_cannot_be_started_beside_is_one_line(
    name: str, reason: str, smallest_tree: Path, srp_data: Any, tmp_path: Path, temp_dir: Path
) -> None:
    python = tmp_path / name
    result = srp_data("bench", "build", smallest_tree, *ONCE, "--workers=1", "--beside", python)
    assert one_line_error(result) == (
        f"error: --beside must be the Python of an environment with srp; got {python}: {reason}. "
        "Make one with: make simd"
    )
    assert list(temp_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tree}", "--images=0"], "--images must be at least 1; got 0."),
        (["{tree}", "--json=no/such/x.json"], "--json must be a file in a folder that exists;"),
        (["{tree}", "--rounds=0"], "--rounds must be at least 1; got 0."),
        (["{tree}", "--workers=0"], "--workers must be at least 1; got 0."),
        (["{tree}", "--seed=-1"], "--seed must be at least 0; got -1."),
        (["{tree}", "--crop-size=400"], "got --crop-size 400 px for --canvas-size 336 px."),
        (["{tree}", "--glimpse-size=300"], "Lower --glimpse-size."),
        (["{tree}", "--rounds=x"], "Invalid value for '--rounds': 'x' is not a valid integer."),
        (["none"], "SOURCE must be a folder or a .tgz; got none, which does not exist."),
        (["{tree}/train/cat"], "got no class folder in train/ of "),
        ([], "Missing argument 'SOURCE'."),
        (
            ["{tree}", "--images=1"],
            "a bench must find at least two upright RGB JPEGs in each class; got 1 in 1 classes of "
            "{tree}. Raise --images, or name another source.",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    image_tree: Path,
    srp_data: Any,
    temp_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [argument.replace("{tree}", str(image_tree)) for argument in arguments]
    result = srp_data("bench", "build", *filled)
    assert words.replace("{tree}", str(image_tree)) in one_line_error(result)
    assert list(temp_dir.iterdir()) == []


def test_a_source_without_jpegs_is_one_line(
    smallest_tree: Path, jpeg: Any, srp_data: Any, temp_dir: Path
) -> None:
    for path in smallest_tree.rglob("*.jpg"):
        path.write_bytes(jpeg(1, kind="PNG"))
    result = srp_data("bench", "build", smallest_tree)
    assert one_line_error(result) == (
        "error: a bench must find at least two upright RGB JPEGs in each class; got 0 in 0 classes "
        f"of {smallest_tree}. Raise --images, or name another source."
    )
    assert list(temp_dir.iterdir()) == []


def test_the_group_lists_its_commands_and_each_explains_itself(srp_data: Any) -> None:
    assert "build " in srp_data("bench", "--help").stdout
    told = srp_data("bench", "build", "--help")
    assert told.exit_code == 0
    assert "SOURCE is a folder with train/ and val/ class folders" in told.stdout
