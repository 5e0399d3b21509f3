"""Read the runs of an audit, and run the networks of one again."""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pipeline import FULL, ShardFolder
from pipeline.command.settings import flag_of
from pipeline.common.errors import ConfigError
from pipeline.common.progress import SILENT, Progress
from training.audit.boxes import choose_on_boxes
from training.audit.verdict import Audit, audit
from training.data.processes import Process
from training.model.classifier import SelectiveClassifier
from training.model.policies import policies_using
from training.run.load import load_model
from training.saved.folder import RunPaths
from training.saved.record import load_record
from training.score.cost import measure_latency
from training.study.finished import Arm, FinishedRun, group_arms, read_runs_on

RIVAL = "whole"  # the policy that a choice must beat


@dataclass(frozen=True, kw_only=True)
class Audited:
    """An audit and its inputs.

    Attributes:
        audit: The result.
        arm: The audited arm.
        others: Arms on the same shards.
        run: The run that was named.
        model: The run's networks, in evaluation mode.
        shards: Shards of all runs.
        process: The process that runs the model.
        boxes: CSV of the objects' boxes, if one was named.
    """

    audit: Audit
    arm: Arm
    others: tuple[Arm, ...]
    run: FinishedRun
    model: SelectiveClassifier
    shards: ShardFolder
    process: Process
    boxes: Path | None


def audit_run(
    run: Path,
    *,
    shards: ShardFolder,
    boxes: Path | None,
    workers: int,
    process: Process,
    progress: Progress = SILENT,
) -> Audited:
    """Audit the arm that a run belongs to, with the other runs in its folder.

    Args:
        run: Folder of one of the arm's runs.
        shards: That it was trained on.
        boxes: CSV of the objects' boxes, or None.
        workers: Threads that read samples.
        process: The only one.
        progress: Shows images.

    Raises:
        CheckpointError: If the run is damaged or of other shards.
        ConfigError: If the run does not choose or is not finished, or the boxes cannot be used.
    """
    arm, others = _find(run)
    model = load_model(RunPaths(folder=run), shards, workers=workers, process=process)
    model.eval()
    found = None
    if boxes is not None:
        member = _member(arm, run)
        found = choose_on_boxes(
            model, shards, boxes, logits=member.logits if _is_of(member, shards) else None,
            process=process, progress=progress,
        )  # fmt: skip
    latency = measure_latency(model)
    return Audited(
        audit=replace(audit(arm, others), latency=latency, boxes=found),
        arm=arm,
        others=tuple(others),
        run=_member(arm, run),
        model=model,
        shards=shards,
        process=process,
        boxes=boxes,
    )


def rival_command(audited: Audited) -> str | None:
    """Write the command that trains the whole image at equal cost; None where it stands beside.

    It has the run's own options, as far as a classifier without a choice uses them.
    """
    config, folder = audited.run.record.config, audited.run.folder
    stands = any(other.policy == RIVAL and config.seed in other.seeds for other in audited.others)
    if stands or FULL not in audited.shards.crop_layout.names:
        return None
    words = ["srp-train", "from", audited.shards.place, "--policy", RIVAL, "--candidates", FULL]
    if audited.shards.cache is not None:
        words += ["--cache", str(audited.shards.cache.folder)]
        if audited.shards.cache.limit_mib is not None:
            words += ["--cache-mib", str(audited.shards.cache.limit_mib)]
    for field in fields(config):
        value, name = getattr(config, field.name), field.name
        is_used = RIVAL in policies_using(name) and name not in ("policy", "candidates", "workers")
        if value == field.default or not is_used:
            continue
        flag = flag_of(config, name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [flag, text]
    return shlex.join([*words, "--output", str(folder.parent)])


def _is_of(run: FinishedRun, shards: ShardFolder) -> bool:
    """Whether a run's logits are of the samples of these shards."""
    return run.record.data.fingerprint == shards.manifest.fingerprint


def _member(arm: Arm, run: Path) -> FinishedRun:
    return next(member for member in arm.runs if member.folder == run.resolve())


def _find(run: Path) -> tuple[Arm, list[Arm]]:
    """Find the arm that lies in a folder, and the other arms there that are on the same shards."""
    folder = run.resolve()
    fingerprint = load_record(RunPaths(folder=folder).record).data.fingerprint
    arms = group_arms(read_runs_on(folder.parent, fingerprint))
    for arm in arms:
        if folder in [member.folder for member in arm.runs]:
            if not arm.config.selects:
                raise ConfigError(
                    f"an audit needs a run that chooses; got --policy {arm.policy} in {run}. "
                    "Name a run with another policy: the audit compares it with this one."
                )
            if any(member.logits is None for member in arm.runs):
                raise ConfigError(
                    f"an audit needs each run's logits.safetensors; got {run} without. "
                    "Train the run again."
                )
            return arm, [other for other in arms if other is not arm]
    raise ConfigError(
        f"an audit needs a finished run; got {run}, which is not. "
        "Name the folder of a finished run, or finish this one with --resume."
    )
