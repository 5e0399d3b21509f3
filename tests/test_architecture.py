"""The arrows between folders, the public names, and that options and configs are one list."""

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

# Each folder may know those on later lines; folders on one line know nothing of each other.
ARROWS = {
    "pipeline": """
        cli
        bench parts verify
        datasets
        build photos
        write
        decode engines sources
        stream
        read
        remote
        format
        pixels
        command
        common
    """,
    "training": """
        cli
        export
        predict
        report
        audit bench
        study
        choose
        run
        optim
        saved
        score
        model
        data
        config
    """,
}
# Plain tables without imports of their own, which the config and all above it read.
TABLES = ("training.model.policies", "training.optim.schedules")
# A command imports what is heavy when it runs; an optional backend when it is asked for.
LATE = {
    "pipeline.bench.decoders": {"pipeline"},
    "pipeline.command.console": {"rich"},
    "pipeline.decode": {"pipeline"},
    "pipeline.engines": {"pipeline"},
    "pipeline.format.codecs": {"pipeline"},
    "pipeline.pixels.resize": {"pipeline"},
    "pipeline.read.collate": {"pipeline"},
    "pipeline.remote.backends": {"huggingface_hub"},
    "pipeline.remote.remote_file": {"fsspec", "huggingface_hub", "pipeline"},
    "pipeline.stream.stream": {"webdataset"},
    "training.export.onnx_file": {"onnx", "onnxruntime"},
    "training.run.watching": {"torch"},
}
# The pipeline's base install has none of these; benches compare with some where they are there.
BEYOND = {"training", "torch", "torchvision", "timm", "matplotlib", "jinja2", "safetensors"}
COMPARED = ("pipeline.bench.predecessor", "pipeline.bench.loaders.")
# A measured loader runs in environments without srp's packages, so it knows these alone.
CONTENDERS = "pipeline.bench.loaders.contenders."
CONTENDERS_KNOW = {f"pipeline.bench.loaders.{name}" for name in ("tar", "tensors", "protocol")}

SHARED = ("command", "common")  # by both programs

Imports = set[str]


def modules(package: str) -> dict[str, ast.Module]:
    """Parse a package's modules, by dotted name."""
    return {
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_text(encoding="utf-8"), str(path)
        )
        for path in sorted((REPO / package).rglob("*.py"))
        if "results" not in path.parts  # no package: records, and what draws them
    }


MODULES = modules("pipeline") | modules("training")
NAMES = sorted(MODULES)


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


def folder_of(name: str) -> str:
    """Name the folder of a module in its package, such as `read`; `config` is on its own."""
    return name.split(".")[1] if "." in name else ""


def rank_of(name: str) -> int:
    lines = [line.split() for line in ARROWS[name.split(".")[0]].strip().splitlines()]
    return next(rank for rank, line in enumerate(lines) if folder_of(name) in line)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if folder_of(name) not in ("", "__main__")]
)
def test_the_arrows_between_folders_point_one_way(name: str) -> None:
    package = name.split(".")[0]
    for other in imports_of(MODULES[name]) & set(NAMES):
        is_other = other.startswith(f"{package}.") and folder_of(other) != folder_of(name)
        assert not is_other or other in TABLES or rank_of(other) > rank_of(name), (
            f"{name} knows {other}"
        )


def test_tables_import_nothing_of_ours() -> None:
    for table in TABLES:
        assert not imports_of(MODULES[table]) & set(NAMES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_has_its_place(package: str) -> None:
    folders = {folder_of(name) for name in NAMES if name.startswith(f"{package}.")}
    assert folders - {"__main__"} == set(ARROWS[package].split())


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_a_detour(package: str) -> None:
    graph = {name: imports_of(MODULES[name]) & set(NAMES) for name in NAMES if package in name}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the cycle


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("training")])
def test_training_knows_the_pipeline_by_its_public_names_and_what_both_share(name: str) -> None:
    for other in imports_of(MODULES[name]):
        assert not other.startswith("pipeline.") or folder_of(other) in SHARED, other


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("pipeline")])
def test_the_pipeline_knows_neither_training_nor_its_libraries(name: str) -> None:
    assert name.startswith(COMPARED) or not roots(imports_of(MODULES[name])) & BEYOND


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(CONTENDERS)])
def test_a_measured_loader_knows_no_more_of_srp_than_how_to_take_its_turn(name: str) -> None:
    known = {n for n in imports_of(MODULES[name]) if n.startswith("pipeline.")}
    assert name == f"{CONTENDERS}ours" or known <= CONTENDERS_KNOW


@pytest.mark.parametrize("name", NAMES)
def test_imports_stand_at_the_top(name: str) -> None:
    is_command = folder_of(name) == "cli" or name == "pipeline.bench.cli"
    assert is_command or roots(late_imports_of(MODULES[name])) <= LATE.get(name, set())


@pytest.mark.parametrize("name", NAMES)
def test_only_commands_print(name: str) -> None:
    calls = [node.func for node in walk(MODULES[name]) if isinstance(node, ast.Call)]
    prints = [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]
    assert not prints or folder_of(name) == "cli"


@pytest.mark.parametrize("name", NAMES)
def test_function_bodies_are_short(name: str) -> None:
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            last = body[-1].end_lineno if body else None
            length = last - body[0].lineno + 1 if last else 0
            assert length <= 40, f"{node.name} has {length} lines"


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
        Photo
        PhotoSpec
        Pixels
        Sample
        SampleStream
        ShardFolder
        ShardReader
        SrpError
        build_shards
        count_images
        decoder_library
        evaluation_batches
        find_photos
        open_source
        open_store
        place_crops
        read_photos
        steps_per_epoch
        training_batches
        verify_shards
    """,
    "training": """
        POLICIES
        Batch
        CropLogits
        Evaluation
        Process
        RunPaths
        RunRecord
        RunState
        SelectiveClassifier
        TrainConfig
        TrainingBatches
        build_state
        classify_crops
        load_model
        load_record
        srp_resnet18
        summarise
        train
        train_step
    """,
}


@pytest.mark.parametrize("package", PUBLIC)
def test_the_public_names_are_these(package: str) -> None:
    assert list(importlib.import_module(package).__all__) == PUBLIC[package].split()


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
    (bench_cli.bench_plan, bench_config.PlanBenchConfig, {"shards"}),
]


@pytest.mark.parametrize(("command", "kind", "arguments"), SURFACES)
def test_options_and_fields_are_the_same_with_the_same_defaults(
    command: click.Command, kind: type, arguments: set[str]
) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    options = options_of(command)
    assert options.keys() - {"as_json", "dry_run", "shards"} == fields.keys() - arguments
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
