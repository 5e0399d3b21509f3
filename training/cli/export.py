"""srp-train export: a finished run as files that others use. Options become arguments; no more."""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.command.console import AS_JSON, note
from pipeline.command.options import options_of
from pipeline.command.origins import Command
from pipeline.common.errors import ConfigError
from training.cli.options import PATH, RUN, RUN_SHARDS, rank_progress
from training.config import TrainConfig

if TYPE_CHECKING:
    from training.predict.load import LoadedRun
    from training.saved.record import RunRecord

FORMATS = ("onnx", "torch-export", "timm")


@click.command(cls=Command)
@RUN
@click.argument("out", type=PATH)
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True, help="What to write.")
@click.option(
    "--images",
    multiple=True,
    help="File, folder or pattern of photographs on which a graph is checked, at most 200 of them; "
    "may be repeated.  [default: crops of the run's validation images, from its shards]",
)
@RUN_SHARDS
@click.option(
    "--push",
    metavar="OWNER/NAME",
    help="Upload the folder for timm to this repository of the Hugging Face hub, too.  "
    "[default: nowhere]",
)
@AS_JSON
@options_of(TrainConfig, "workers")
def export(
    run: Path, out: Path, kind: str, images: tuple[str, ...], shards: str | None, push: str | None,
    as_json: bool, workers: int,
) -> None:  # fmt: skip
    """Write RUN to OUT as files that need no srp.

    RUN is a folder that training wrote, or one of its checkpoints. onnx and torch-export write one
    graph: photographs in, the class of the chosen crop out, in float32, at any number and size of
    images; it is compared with the run before the file gets its name. timm writes a folder: the
    classifier for timm, the proposer beside it, and a model card.
    """
    if push is not None and kind != "timm":
        raise ConfigError(
            f"--push uploads a folder for timm; got --format {kind}. Use --format timm."
        )

    from training.export.run import load_exported_run
    from training.export.write import require_ours, write_graph
    from training.saved.folder import RunPaths
    from training.saved.record import load_record

    if kind == "onnx":
        from training.export.onnx_file import require_onnx

        require_onnx()
    loaded = load_exported_run(run)
    has_record = run.is_dir() and RunPaths(folder=run).record.exists()
    record = load_record(RunPaths(folder=run).record) if has_record else None
    if push is not None:
        from training.export.hub import require_hub

        require_hub(push)
    require_ours(out, kind)
    for line in loaded.notes:
        note(f"note: {line}")
    if kind == "timm":
        _export_timm(loaded, record, run, out, push=push, as_json=as_json)
        return
    with rank_progress(True) as progress, tempfile.TemporaryDirectory() as folder:
        files = _files(images, shards, record, Path(folder))
        written = write_graph(loaded, out, kind, files=files, workers=workers, progress=progress)
    note(written.agreement.line())
    _tell(written.paths, as_json, dataclasses.asdict(written.agreement))


def _export_timm(
    loaded: "LoadedRun", record: "RunRecord | None", run: Path, out: Path, *, push: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    from training.export.model_card import read_verdict, write_card
    from training.export.timm_folder import write_timm_folder

    card = write_card(loaded, record, read_verdict(run))
    paths = write_timm_folder(loaded, out, card=card)
    fields: dict[str, object] = {}
    if push is not None:
        from training.export.hub import push_folder

        fields["pushed"] = push_folder(out, push)
        note(f"pushed to {fields['pushed']}")
    _tell(paths, as_json, fields)


def _files(
    images: tuple[str, ...], shards: str | None, record: "RunRecord | None", folder: Path
) -> list[Path]:
    """Find the photographs that a graph is checked on, or make some of the run's shards."""
    from pipeline import find_photos
    from training.export.check import save_crops, spread_files
    from training.run.load import shards_of

    if images:
        return spread_files(find_photos(images, sys.stdin.buffer).files)
    if record is None:
        raise ConfigError(
            "a graph is checked on images; got a checkpoint without a record of its shards. "
            "Name photographs with --images."
        )
    return save_crops(shards_of(record, shards), folder)


def _tell(paths: tuple[Path, ...], as_json: bool, fields: dict[str, object]) -> None:
    if as_json:
        click.echo(json.dumps({"files": [str(path) for path in paths], **fields}, indent=1))
        return
    for path in paths:
        click.echo(f"wrote {path}")
