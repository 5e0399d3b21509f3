"""Write an export: made, checked, and only then named."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.common.atomic_io import named_output, require_file, require_folder, write_file
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from training.export.check import Agreement, Runner, check_agreement
from training.export.description import FORMAT, describe
from training.export.graph import ChoiceGraph, trace
from training.export.onnx_file import onnx_runner, pack_onnx
from training.export.timm_folder import CONFIG
from training.export.torch_file import pack_torch, torch_runner
from training.predict.load import LoadedRun

GRAPHS = {"onnx": (pack_onnx, onnx_runner), "torch-export": (pack_torch, torch_runner)}
TIMM = "timm"
FORMATS = (*GRAPHS, TIMM)


class Written(NamedTuple):
    """What was written, and how it compares with the run."""

    paths: tuple[Path, ...]
    agreement: Agreement


def require_ours(out: Path, kind: str) -> None:
    """Check that an output can be written, and that nothing but an older export is replaced.

    Args:
        out: File, or for timm a folder.
        kind: One of `FORMATS`.

    Raises:
        ConfigError: If not.
    """
    is_folder = kind == TIMM
    with named_output(out, "OUT", kind="folder" if is_folder else "file"):
        marked = out / CONFIG if is_folder else out
        is_used = any(out.iterdir()) if is_folder and out.is_dir() else out.exists()
        is_ours = marked.is_file() and FORMAT.encode() in marked.read_bytes()
    if is_used and not is_ours and out.is_dir() == is_folder:
        raise ConfigError(
            f"OUT must be new, or an export of srp; got {out}, which holds something else. "
            "Name another, or delete it."
        )
    if is_folder:
        require_folder(out, "OUT")
    else:
        require_file(out, "OUT")


def write_graph(
    run: LoadedRun, out: Path, kind: str, *, files: Sequence[Path], workers: int,
    progress: Progress = SILENT,
) -> Written:  # fmt: skip
    """Write a run's graph as one file.

    Args:
        run: From `load_exported_run`.
        out: The file.
        kind: A key of `GRAPHS`.
        files: Photographs to check it on.
        workers: Threads that decode.
        progress: Shows images.

    Raises:
        VerificationError: If the file does not say what the run says; then there is no file.
    """
    pack, runner_of = GRAPHS[kind]
    program = trace(ChoiceGraph(run.model, run.spec.crop_layout))
    data = pack(program, describe(run).to_json())
    runner: Runner = runner_of(data)
    agreement = check_agreement(run, runner, files, workers=workers, progress=progress)
    write_file(out, data)
    return Written((out,), agreement)
