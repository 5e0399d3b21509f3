"""One checkpoint: a safetensors file with JSON inside and its own SHA-256; nothing is unpickled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline import DataSpec, Manifest
from pipeline.common.checksum import NO_DIGEST, embed_sha256, read_sha256, verify_sha256
from pipeline.common.errors import CheckpointError, ConfigError
from training.config import SPLIT_FIELDS, TrainConfig
from training.saved.folder import RunPaths
from training.saved.record import EpochPart, RunRecord, changed_options, config_from_json

FORMAT = "srp-checkpoint/2"
FORMATS = "srp-checkpoint/"  # every version's begins so
DIGEST = "srp_sha256"
MODEL = "model."  # before the names of the weights that are used
RAW = "raw."  # before those that training goes on with, where MODEL's are their average
CLASSIFIER = "classifier."  # before the names of its tensors
PARTS = (CLASSIFIER, "proposer.")
BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)
# What decides the pixels that the networks see; other shards with these equal fit as well.
PIXEL_FIELDS = ("canvas_size", "crop_size", "exif", "jpeg_quality", "jpeg_subsampling")


@dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """What a checkpoint says about itself.

    Attributes:
        config: That of the run.
        spec: That of the shards.
        classes: Their class folders, in the order of the logits.
        epoch: Finished epochs.
        best_top1: Best validation accuracy so far, %.
        part: Finished steps of the next epoch, if the run stopped in it.
        fingerprint: That of the shards' build.
        class_names: The classes for people; empty in checkpoints of old versions.
    """

    config: TrainConfig
    spec: DataSpec
    classes: tuple[str, ...]
    epoch: int
    best_top1: float
    part: EpochPart | None = None
    fingerprint: str = ""
    class_names: tuple[str, ...] = ()


def pack_checkpoint(
    meta: CheckpointMeta,
    *,
    model: nn.Module,
    average: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> bytes:
    """Lay a checkpoint out, with its own SHA-256 in it; without an optimizer, weights alone.

    Where there is an average, it holds the weights that are used, and the model those that the
    optimizer goes on with.
    """
    state = {} if optimizer is None else _optimizer_state(model, optimizer)
    networks = {MODEL: model} if average is None else {MODEL: average, RAW: model}
    tensors = {
        f"{prefix}{name}": value
        for prefix, network in networks.items()
        for name, value in network.state_dict().items()
    }
    for name, value in state.items():
        if isinstance(value, Tensor):  # a group's is shared by its weights, which no file may do
            is_shared = name.startswith("param_groups.")
            tensors[f"optimizer.{name}"] = value.clone() if is_shared else value
    fields = {
        "format": FORMAT,
        "meta": meta,
        "optimizer": _plain(state),
        "scheduler": {} if scheduler is None else _plain(scheduler.state_dict()),
    }
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"srp": msgspec.json.encode(fields).decode(), DIGEST: NO_DIGEST}
    return embed_sha256(save(contiguous, metadata=metadata), DIGEST)


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Give an optimizer's tensors and numbers by the names of the weights, as torch lays it out."""
    try:
        return dict(get_optimizer_state_dict(model, optimizer, options=BY_NAME))
    except NotImplementedError as error:
        raise ConfigError(
            f"--opt must have a state of tensors and numbers; got {error} Use another --opt, such "
            "as adamw."
        ) from error


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can hold; the rest is tensors, or is rebuilt from the config."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if name == "_schedulers":
            plain[name] = [_plain(inner) for inner in value]
        elif isinstance(value, int | float | str | bool | list | tuple | None):
            plain[name] = value
    return plain


def read_meta(path: Path) -> CheckpointMeta:
    """Read what a checkpoint says about itself.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another version.
    """
    fields, _ = _read(path)
    try:
        meta = {**fields["meta"], "config": config_from_json(fields["meta"]["config"])}
        return msgspec.convert(meta, CheckpointMeta, from_attributes=True)
    except ConfigError as error:
        raise CheckpointError(f"{error} It is in {path}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint's JSON and its tensors, once its SHA-256 is checked."""
    try:
        data = path.read_bytes()
        header_bytes = 8 + int.from_bytes(data[:8], "little")  # as safetensors has it
        verify_sha256(data, DIGEST, within=header_bytes)
        tensors = load(data)  # it finds a header that does not fit the file
        metadata = json.loads(data[8:header_bytes])["__metadata__"]
        fields: dict[str, Any] = json.loads(metadata["srp"])
        found = str(fields["format"])
    except FileNotFoundError:
        raise CheckpointError(
            f"a run must have a checkpoint; got none at {path}. "
            "Name the folder of a run, such as runs/whole, or train one: srp-train from SHARDS"
        ) from None
    except (
        KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError,
        safetensors.SafetensorError,
    ) as error:  # fmt: skip
        raise _damaged(path, error) from error
    if found == FORMAT:
        return fields, tensors
    if found.startswith(FORMATS):
        raise CheckpointError(
            f"a checkpoint must be of this version's format, {FORMAT}; got {found} in {path}. "
            "Train the run again, or use the version of srp that wrote it."
        )
    raise _damaged(path, ValueError(f"format {found!r}"))


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint must be a whole safetensors file that srp wrote; got "
        f"{type(error).__name__}: {error} in {path}. "
        "Use the run's other checkpoint, or train again."
    )


def digest_of(path: Path) -> str:
    """Give the SHA-256 that a checkpoint holds of itself; empty where there is no file or none.

    It is the checkpoint's name: loading the file checks it.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return read_sha256(file.read(min(length, path.stat().st_size)), DIGEST)
    except FileNotFoundError:
        return ""


def checkpoint_of(run: Path) -> Path:
    """Take the last checkpoint of a run's folder, or the file that is named itself."""
    return RunPaths(folder=run).last if run.is_dir() else run


def load_weights(path: Path, model: nn.Module, part: str = MODEL) -> None:
    """Load a checkpoint's weights into a model of the same config, or into a part of one.

    Args:
        path: The checkpoint.
        model: Changed in place.
        part: Which of the checkpoint's weights, with a dot at its end: `RAW`, or a part of `MODEL`.

    Raises:
        CheckpointError: If they do not fit.
    """
    _, tensors = _read(path)
    try:
        model.load_state_dict(_below(tensors, part))
    except RuntimeError as error:
        raise _damaged(path, error) from error


def load_initial(
    path: Path, model: nn.Module, *, parts: Sequence[str] = PARTS, with_proposer: bool = False
) -> None:
    """Start with another run's classifier, which may be trained on other images and sizes.

    Its proposer is taken as well if all its weights have the same shapes.

    Args:
        path: Folder of a run, or one of its checkpoints.
        model: Changed in place.
        parts: That are taken.
        with_proposer: Whether such a proposer is required.

    Raises:
        CheckpointError: If there is no checkpoint, or its classifier or a required proposer does
            not fit.
    """
    file = checkpoint_of(path)
    read_meta(file)  # tells a file that is no checkpoint from one that does not fit
    found = _below(_read(file)[1], MODEL)
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for part in parts:
        wanted = {name: shape for name, shape in own.items() if name.startswith(part)}
        given = {name: tensor for name, tensor in found.items() if name.startswith(part)}
        if {name: tensor.shape for name, tensor in given.items()} == wanted:
            model.load_state_dict(given, strict=False)
        elif part == CLASSIFIER:
            raise CheckpointError(
                "--initial-checkpoint must hold a classifier of the same --model, --model-kwargs "
                f"and number of classes; got another in {file}. Use a run with the same on the "
                "same classes."
            )
        elif with_proposer:
            raise CheckpointError(
                "--proposer-lr 0 keeps a proposer as --initial-checkpoint holds it; got none like "
                f"that in {file}. Use that run's --proposer, --proposer-channels, "
                "--glimpse-size and --position-prior, or another --proposer-lr."
            )


def load_optimizer(
    path: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler
) -> None:
    """Load the state of the optimizer and of the schedule; load the weights after it.

    Raises:
        CheckpointError: If they do not fit.
    """
    fields, tensors = _read(path)
    try:
        own = _optimizer_state(model, optimizer)  # holds what JSON cannot, such as a dtype
        state = own | fields["optimizer"] | _below(tensors, "optimizer.")
        set_optimizer_state_dict(model, optimizer, state, options=BY_NAME)
        scheduler.load_state_dict(fields["scheduler"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    _lay_like_weights(optimizer)


def _lay_like_weights(optimizer: Optimizer) -> None:
    """Lay the state in memory as the weights lie, since a sum's last bit depends on the order."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight.detach(), dtype=value.dtype).copy_(value)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def check_own(path: Path, meta: CheckpointMeta, record: RunRecord) -> None:
    """Check that a checkpoint belongs to the run whose record is in the same folder.

    A record of an earlier version names no checkpoint.

    Args:
        path: The checkpoint.
        meta: What it says about itself.
        record: The run's.

    Raises:
        CheckpointError: If it belongs to another run; names what differs.
    """
    changed = [
        f"{option} {ours} in the record, {theirs} in the checkpoint"
        for option, ours, theirs in changed_options(record.config, meta.config, but=SPLIT_FIELDS)
        if option != "--initial-checkpoint"  # relative to where each command was typed
    ]
    if meta.fingerprint not in ("", record.data.fingerprint):
        changed.append("shards of other images or options")
    digest = digest_of(path)
    if record.checkpoints and digest not in record.checkpoints:
        changed.append(f"SHA-256 {digest[:12] or 'none'}, not {record.last[:12]}")
    if changed:
        raise CheckpointError(
            f"a checkpoint must be the one that the run's record names; got {'; '.join(changed)} "
            f"in {path}. Restore that checkpoint, or delete the run's folder and train it again."
        )


def check_fits(meta: CheckpointMeta, manifest: Manifest, shards: str) -> None:
    """Check that shards hold what a checkpoint was trained on.

    Raises:
        CheckpointError: If their pixels, candidates or classes differ.
    """
    ours, theirs = asdict(meta.spec), asdict(manifest.spec)
    changed = [
        f"{name} {ours[name]} in training, {theirs[name]} here"
        for name in PIXEL_FIELDS
        if ours[name] != theirs[name]
    ]
    if meta.classes != manifest.classes:
        changed.append(f"classes {_few(meta.classes)} in training, {_few(manifest.classes)} here")
    if changed:
        raise CheckpointError(
            f"shards must be of the spec that the run was trained on; got {'; '.join(changed)} in "
            f"{shards}. Build shards with the run's options, or train a run on these."
        )


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}...)"
