"""The import graph, and that options and configs are the same list."""

import ast
import dataclasses
import graphlib
import importlib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline.bench import cli as bench_cli
from pipeline.bench import config as bench_config
from pipeline.build.config import BuildConfig
from pipeline.cli import main
from pipeline.datasets.config import ScatterConfig, SceneConfig

REPO = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "training")

# Heavy imports wait until a command runs, and optional backends until they are asked for.
MAY_IMPORT_LATE = {
    "pipeline.bench.cli",
    "pipeline.cli.main",
    "pipeline.cli.verify",
    "pipeline.common.console",
    "training.cli.judge",
    "training.cli.train",
    "training.cli.headroom",
}
LATE_BACKENDS = {
    "pipeline.stream.remote_file": {"fsspec", "pipeline"},
    "pipeline.stream.stream": {"webdataset"},  # where it is in a pipeline of that library
    "pipeline.format.codecs": {"pipeline"},
    "pipeline.decode": {"pipeline"},
    "pipeline.bench.decoders": {"pipeline"},
    "pipeline.read.collate": {"pipeline"},
    "pipeline.pixels.resize": {"pipeline"},
}
MAY_PRINT = {"pipeline.cli.main", "pipeline.common.console", "training.cli.train"}

MAY_KNOW_TORCH = {"pipeline.bench.predecessor", "pipeline.bench.loaders.chart"}
# A loader runs in environments without srp's packages; ours is at home. These run and show them.
AROUND_LOADERS = {
    f"pipeline.bench.loaders.{name}" for name in ("run", "export", "process", "chart")
}
LOADERS_KNOW = {
    "pipeline.bench.loaders.tar",
    "pipeline.bench.loaders.tensors",
    "pipeline.bench.loaders.protocol",
}

Imports = set[str]


def modules(package: str) -> dict[str, ast.Module]:
    """Parse a package's modules, by dotted name."""
    return {
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8"), str(path)
        )
        for path in sorted((REPO / package).rglob("*.py"))
    }


MODULES = {package: modules(package) for package in PACKAGES}
NAMES = {name for package in PACKAGES for name in MODULES[package]}


def imported(node: ast.AST) -> Imports:
    """Name the modules that an import statement loads."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "import paths equal file paths"
        return {
            name if (name := f"{node.module}.{alias.name}") in NAMES else str(node.module)
            for alias in node.names
        }
    return set()


def is_for_types(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs; what is there for type checkers alone does not."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not is_for_types(child):
            yield from walk(child)


def imports_of(tree: ast.AST) -> Imports:
    return set().union(*(imported(node) for node in walk(tree)))


def late_imports_of(tree: ast.AST) -> Imports:
    functions = (n for n in walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return set().union(*(imports_of(function) for function in functions))


def roots(names: Imports) -> Imports:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("name", MODULES["pipeline"])
def test_the_pipeline_knows_neither_training_nor_its_libraries(name: str) -> None:
    # What the benches compare with, where it is installed, and a chart of it.
    is_loader = name.startswith("pipeline.bench.loaders.") and name not in AROUND_LOADERS
    if name in MAY_KNOW_TORCH or is_loader:
        return
    beyond = {"training", "torch", "torchvision", "timm", "matplotlib", "jinja2", "safetensors"}
    assert not roots(imports_of(MODULES["pipeline"][name])) & beyond


@pytest.mark.parametrize(
    "name", sorted(n for n in NAMES if n.startswith("pipeline.bench.loaders."))
)
def test_a_loader_knows_no_more_of_srp_than_how_to_take_its_turn(name: str) -> None:
    if name == "pipeline.bench.loaders.contenders.ours" or name in AROUND_LOADERS:
        return
    known = {n for n in imports_of(MODULES["pipeline"][name]) if n.startswith("pipeline.")}
    assert known <= LOADERS_KNOW


@pytest.mark.parametrize("name", MODULES["training"])
def test_training_knows_the_pipeline_by_its_public_names_and_common(name: str) -> None:
    names = imports_of(MODULES["training"][name])
    known = {other for other in names if other.split(".")[0] == "pipeline"}
    assert all(other == "pipeline" or room(other) == "pipeline.common" for other in known), known


# What other programs may rely on, one line a name.
PUBLIC = {
    "pipeline": """
        BOX_HEADER
        CANDIDATES_TEXT
        FULL
        ArrayBatch
        BatchLoader
        BatchSpec
        Box
        BuildConfig
        CropLayout
        DataSpec
        Indices
        Manifest
        ObjectBox
        Part
        Pixels
        Sample
        SampleStream
        ShardFolder
        ShardReader
        SrpError
        build_shards
        evaluation_batches
        open_store
        steps_per_epoch
        training_batches
        verify_shards
    """,
}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these(package: str) -> None:
    assert list(importlib.import_module(package).__all__) == PUBLIC[package].split()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_a_detour(package: str) -> None:
    graph = {name: imports_of(tree) & NAMES for name, tree in MODULES[package].items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the cycle


# Each folder may know those after it; what stands in one line knows nothing of its neighbours.
ROOMS = (
    {"pipeline.cli"},
    {"pipeline.bench", "pipeline.verify"},
    {"pipeline.datasets"},
    {"pipeline.build"},
    {"pipeline.decode", "pipeline.sources", "pipeline.stream"},
    {"pipeline.read"},
    {"pipeline.format"},
    {"pipeline.pixels"},
    {"pipeline.common"},
)
ROOM_OF = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("name", sorted(n for n in MODULES["pipeline"] if "." in n))
def test_the_arrows_between_folders_point_one_way(name: str) -> None:
    known = {room(other) for other in imports_of(MODULES["pipeline"][name]) & NAMES}
    for other in known - {room(name), "pipeline"}:
        assert ROOM_OF[other] > ROOM_OF[room(name)], f"{name} knows {other}"


def test_every_folder_has_its_place() -> None:
    assert {room(name) for name in MODULES["pipeline"] if "." in name} == ROOM_OF.keys()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_imports_stand_at_the_top(name: str) -> None:
    if name in MAY_IMPORT_LATE:
        return
    late = late_imports_of(MODULES[name.split(".")[0]][name])
    assert roots(late) <= LATE_BACKENDS.get(name, set())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_only_the_shell_prints(name: str) -> None:
    calls = (n for n in walk(MODULES[name.split(".")[0]][name]) if isinstance(n, ast.Call))
    printed = any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)
    assert not printed or name in MAY_PRINT


@pytest.mark.parametrize("name", sorted(NAMES))
def test_function_bodies_are_short(name: str) -> None:
    for node in ast.walk(MODULES[name.split(".")[0]][name]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            last = body[-1].end_lineno if body else None
            length = last - body[0].lineno + 1 if last else 0
            assert length <= 40, f"{node.name} has {length} lines"


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        str(parameter.name): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }


# One line for each command that fills a config: the command, the config, its fields that are
# arguments.
SURFACES = [
    (main.build_shards, BuildConfig, {"source", "out"}),
    (main.sample, SceneConfig, {"out"}),
    (main.scatter, ScatterConfig, {"source", "out"}),
    (bench_cli.bench_build, bench_config.BenchConfig, {"source"}),
    (bench_cli.bench_load, bench_config.LoadBenchConfig, {"shards"}),
    (bench_cli.bench_codecs, bench_config.CodecBenchConfig, {"shards"}),
    (bench_cli.bench_scale, bench_config.ScaleBenchConfig, {"shards"}),
]


@pytest.mark.parametrize(("command", "kind", "arguments"), SURFACES)
def test_options_and_fields_are_the_same_with_the_same_defaults(
    command: click.Command, kind: type, arguments: set[str]
) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    options = options_of(command)
    assert options.keys() - {"as_json"} == fields.keys() - arguments
    filled = command.make_context("", ["argument"] * max(1, len(arguments))).params
    for name in options.keys() & fields.keys():
        assert filled[name] == fields[name], name
        assert type(filled[name]) is type(fields[name]), name
    positional = {p.name for p in command.params if isinstance(p, click.Argument)}
    assert arguments <= positional


GROUPS = (main.main, bench_cli.bench)
COMMANDS = [(name, command) for group in GROUPS for name, command in group.commands.items()]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_every_option_has_a_help_text_and_shows_its_default(
    name: str, command: click.Command
) -> None:
    for option in options_of(command).values():
        assert option.help, f"{name} {option.name}"
        assert option.help.rstrip("]")[-1] in ".:" or option.help.endswith("]")
        assert option.required or option.show_default or "[default: " in option.help
        if option.name.endswith(("_size", "size_px", "_pixels")):  # type: ignore[union-attr]
            assert "px" in option.help
        if option.name.endswith("_mib"):  # type: ignore[union-attr]
            assert "MiB" in option.help
