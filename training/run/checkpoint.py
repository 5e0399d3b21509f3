"""Save and load a run's state: one safetensors file, with numbers and names as JSON inside.

Nothing is unpickled, and one file cannot disagree with itself.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pipeline import DataSpec, Manifest
from pipeline.common.checksum import NO_DIGEST, embed_sha256, read_sha256, verify_sha256
from pipeline.common.errors import CheckpointError, ConfigError
from training.config import TrainConfig, changed_options, config_from_json
from training.run.folder import RunPaths
from training.run.record import EpochPart, RunRecord

FORMAT = "srp-checkpoint/1"
DIGEST = "srp_sha256"
CLASSIFIER = "classifier."  # before the names of its tensors
PARTS = (CLASSIFIER, "proposer.")
GROUP = "group"  # before the number of a parameter group, in the names of its tensors
# What decides the pixels that the networks see; other shards with these equal fit as well.
PIXEL_FIELDS = ("canvas_size", "crop_size", "exif", "jpeg_quality", "jpeg_subsampling")


@dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """What a checkpoint says of itself.

    Attributes:
        config: Of the run.
        spec: Of the shards that it was trained on.
        classes: Their class folders, in the order of the logits.
        epoch: Finished epochs.
        best_top1: Best validation accuracy so far, %.
        part: Of the epoch after them, where the run stopped in it.
        fingerprint: Of the shards that it was trained on; empty in those of before it was kept.
    """

    config: TrainConfig
    spec: DataSpec
    classes: tuple[str, ...]
    epoch: int
    best_top1: float
    part: EpochPart | None = None
    fingerprint: str = ""


def pack_checkpoint(
    meta: CheckpointMeta, *, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler
) -> bytes:
    """Lay a checkpoint out, with its own SHA-256 in it."""
    optimizer_tensors, optimizer_fields = _split_tensors(optimizer.state_dict())
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors.items()}
    fields = {
        "format": FORMAT,
        "config": asdict(meta.config),
        "spec": asdict(meta.spec),
        "classes": meta.classes,
        "epoch": meta.epoch,
        "best_top1": meta.best_top1,
        "part": meta.part and asdict(meta.part),
        "fingerprint": meta.fingerprint,
        "optimizer": optimizer_fields,
        "scheduler": _plain(scheduler.state_dict()),
    }
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"srp": json.dumps(fields), DIGEST: NO_DIGEST}
    return embed_sha256(save(contiguous, metadata=metadata), DIGEST)


def digest_of(path: Path) -> str:
    """Give the SHA-256 that a checkpoint holds of itself; empty where there is no file or none.

    It is the checkpoint's name: whoever loads the file checks it.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return read_sha256(file.read(min(length, path.stat().st_size)), DIGEST)
    except FileNotFoundError:
        return ""


def _split_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate an optimizer's tensors from its numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            kept = tensors if isinstance(value, Tensor) else numbers
            kept[f"{index}.{name}"] = value
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(state["param_groups"]):
        found = {name for name, value in group.items() if isinstance(value, Tensor)}
        tensors |= {f"{GROUP}{number}.{name}": group[name] for name in found}
        groups.append({name: value for name, value in group.items() if name not in found})
    return tensors, {"numbers": numbers, "param_groups": groups}


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can hold of a scheduler's state; the rest is rebuilt from the config."""
    plain: dict[str, Any] = {}
    for name, value in state.items():
        if name == "_schedulers":
            plain[name] = [_plain(inner) for inner in value]
        elif isinstance(value, int | float | str | bool | list | None):
            plain[name] = value
    return plain


def read_meta(path: Path) -> CheckpointMeta:
    """Read what a checkpoint says of itself.

    Raises:
        CheckpointError: If there is none or it is damaged.
    """
    fields, _ = _read(path)
    try:
        return CheckpointMeta(
            config=config_from_json(fields["config"]),
            spec=DataSpec(**fields["spec"]),
            classes=tuple(fields["classes"]),
            epoch=int(fields["epoch"]),
            best_top1=float(fields["best_top1"]),
            part=_part(fields.get("part")),
            fingerprint=str(fields.get("fingerprint", "")),
        )
    except ConfigError as error:
        raise CheckpointError(f"{error} It is in {path}.") from error
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _part(fields: dict[str, Any] | None) -> EpochPart | None:
    if fields is None:
        return None
    sums = tuple((float(loss), float(hits)) for loss, hits in fields["sums"])
    return EpochPart(**{**fields, "sums": sums})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what a checkpoint says of itself, and its tensors, once no byte of it has changed."""
    try:
        data = path.read_bytes()
        header_bytes = 8 + int.from_bytes(data[:8], "little")  # as the format has it
        verify_sha256(data, DIGEST, within=header_bytes)
        tensors = load(data)  # which finds a header that does not fit the file
        metadata = json.loads(data[8:header_bytes])["__metadata__"]
        fields: dict[str, Any] = json.loads(metadata["srp"])
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']!r}")
        return fields, tensors
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


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint must be a whole safetensors file that srp wrote; got "
        f"{type(error).__name__}: {error} in {path}. "
        "Use the run's other checkpoint, or train again."
    )


def load_weights(path: Path, model: nn.Module, part: str = "") -> None:
    """Load a checkpoint's weights into a model of the same config, or into a part of one.

    Args:
        path: Of the checkpoint.
        model: Changed in place.
        part: Of the checkpoint's model, with a dot behind it.

    Raises:
        CheckpointError: If they do not fit.
    """
    tensors = _tensors(path, f"model.{part}")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise _damaged(path, error) from error


def load_initial(path: Path, model: nn.Module, *, with_proposer: bool = False) -> None:
    """Begin with another run's classifier, which may have learnt on other images and sizes.

    Its proposer is taken as well where it has the same weights to fill, which a proposer of the
    same kind, channels and glimpse size has.

    Args:
        path: Folder of a run, or one of its checkpoints.
        model: Changed in place.
        with_proposer: Whether there must be such a proposer.

    Raises:
        CheckpointError: If there is none, its classifier is of another kind or class count, or its
            proposer is not as it must be.
    """
    file = RunPaths(folder=path).last if path.is_dir() else path
    read_meta(file)  # a file that is no checkpoint is told apart from one that does not fit
    found = _tensors(file, "model.")
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for part in PARTS:
        wanted = {name: shape for name, shape in own.items() if name.startswith(part)}
        given = {name: tensor for name, tensor in found.items() if name.startswith(part)}
        if {name: tensor.shape for name, tensor in given.items()} == wanted:
            model.load_state_dict(given, strict=False)
        elif part == CLASSIFIER:
            raise CheckpointError(
                "--initial-checkpoint must hold a classifier of the same --model and number of "
                f"classes; got another in {file}. Use a run with the same --model on the same "
                "classes."
            )
        elif with_proposer:
            raise CheckpointError(
                "--proposer-lr 0 keeps a proposer as --initial-checkpoint holds it; got none like "
                f"that in {file}. Use that run's --proposer, --proposer-channels, "
                "--glimpse-size and --position-prior, or another --proposer-lr."
            )


def load_optimizer(path: Path, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Load the state of the optimizer and of the schedule, for going on exactly.

    Raises:
        CheckpointError: If they do not fit.
    """
    fields, tensors = _read(path)
    entries: dict[int, dict[str, Any]] = {}
    try:
        groups = fields["optimizer"]["param_groups"]
        loaded = {**_below(tensors, "optimizer."), **fields["optimizer"]["numbers"]}
        for name, value in loaded.items():
            index, _, entry = name.partition(".")
            if index.startswith(GROUP):
                groups[int(index.removeprefix(GROUP))][entry] = value
            else:
                entries.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
        scheduler.load_state_dict(fields["scheduler"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    _lay_like_weights(optimizer)


def _lay_like_weights(optimizer: Optimizer) -> None:
    """Lay the state in memory as the weights lie, since a sum's last bit depends on the order."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight.detach(), dtype=value.dtype).copy_(value)


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    _, tensors = _read(path)
    return _below(tensors, prefix)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def check_own(path: Path, meta: CheckpointMeta, record: RunRecord) -> None:
    """Check that a checkpoint is of the run whose record lies beside it.

    A record of before it named its checkpoints names none.

    Args:
        path: Of the checkpoint.
        meta: What it says of itself.
        record: The run's.

    Raises:
        CheckpointError: If it is of another; names what differs.
    """
    changed = [
        f"{option} {ours} in the record, {theirs} in the checkpoint"
        for option, ours, theirs in changed_options(record.config, meta.config)
        if option != "--initial-checkpoint"  # spelt from where each command was typed
    ]
    if meta.fingerprint not in ("", record.data.fingerprint):
        changed.append("shards of other images or options")
    digest = digest_of(path)
    if record.checkpoints and digest not in record.checkpoints:
        changed.append(f"SHA-256 {digest[:12] or 'none'}, not {record.last[:12]}")
    if changed:
        raise CheckpointError(
            f"a checkpoint must be the one that the run's record names; got {'; '.join(changed)} "
            f"in {path}. Put back what was there, or delete the run's folder and train it again."
        )


def check_fits(meta: CheckpointMeta, manifest: Manifest, shards: Path) -> None:
    """Check that shards hold what a checkpoint was trained on.

    Raises:
        CheckpointError: If their pixels, candidates or classes are others.
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
