"""Write down what a refactor must not change: `python tests/proof.py OUT.json`, before and after.

It knows the two commands and the files that they write, no module: SHA-256 of every file of small
builds, of the weights after ten steps of every policy, their losses and figures, and every option
of every command. `diff` of two such files shows what changed. Losses and weights are equal only on
one kind of CPU, and with one release of torch.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from safetensors import safe_open

SIZES = ("--canvas-size=48", "--crop-size=32", "--glimpse-size=16", "--shard-mib=1")
SETS = ("five", "strips", "grid3", "full+five", "full+strips", "full+grid3")
BUILDS = (
    *(f"--candidates={name} --workers=1" for name in SETS),
    "--candidates=full+strips --layout=tensors --workers=2",
    *(
        f"--candidates=full+strips --codec={name} --workers=2"
        for name in ("zstd", "png", "webp", "jpeg")
    ),
    "--candidates=full+strips --decoder=dali --workers=1",
    "--candidates=full+strips --decoder=dali --layout=tensors --workers=2",
)
POLICIES = ("blend", "straight-through", "expected", "whole", "centre", "random", "mean")
# Ten steps: 70 images, of which each epoch leaves out what fills no batch.
TRAINING = ("--model=test_resnet", "--epochs=2", "--batch-size=14", "--device=cpu", "--no-amp")
FIGURES = ("train_loss", "train_top1", "val_top1")
PER_RUN = ("latency", "seconds", "images_per_s")  # what a clock measured


def run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def digests(folder: Path) -> dict[str, str]:
    """Give the SHA-256 of every file, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def tensors_digest(path: Path) -> str:
    """Give the SHA-256 of a file's tensors, whatever its metadata and its optimizer say."""
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        names = sorted(file.keys())
        for name in (name for name in names if not name.startswith("optimizer.")):
            digest.update(name.encode() + file.get_tensor(name).tobytes())
    return digest.hexdigest()


def builds(images: Path, scratch: Path) -> dict[str, Any]:
    proofs = {}
    for options in BUILDS:
        out = scratch / options
        run("srp-data", "build-shards", images, out, *SIZES, *options.split())
        proofs[options] = digests(out)
    return proofs


def of_run(folder: Path) -> dict[str, Any]:
    """Take the figures and the weights of one run."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return {
        "epochs": [{name: epoch[name] for name in FIGURES} for epoch in record["epochs"]],
        "evaluation": {k: v for k, v in record["evaluation"].items() if k not in PER_RUN},
        "weights": tensors_digest(folder / "last.safetensors"),
        "logits": tensors_digest(folder / "logits.safetensors"),
    }


def trainings(shards: Path, runs: Path) -> dict[str, Any]:
    for policy in POLICIES:
        options = ("--policy", policy, "--experiment", policy, "--output", runs, *TRAINING)
        run("srp-train", "from", shards, *options)
    for proposer in ("crops", "map"):
        options = ("--proposer", proposer, "--experiment", f"distilled-{proposer}")
        run("srp-train", "distill", runs / "random", "--output", runs, *options)
    return {folder.name: of_run(folder) for folder in sorted(runs.iterdir()) if folder.is_dir()}


def surface(command: click.Command, name: str) -> dict[str, str]:
    """List every command below one, and every option with its default."""
    found = {}
    for parameter in command.params:
        spelt = "/".join((*parameter.opts, *parameter.secondary_opts))
        found[f"{name} {spelt}"] = f"{parameter.default!r} {parameter.type.to_info_dict()}"
    if isinstance(command, click.Group):
        for below, nested in sorted(command.commands.items()):
            found |= surface(nested, f"{name} {below}")
    return found


def main() -> None:
    scripts = {e.name: e.load() for e in entry_points(group="console_scripts")
               if e.name in ("srp-data", "srp-train")}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images = scratch / "images"
        run("srp-data", "sample", images, "--train=7", "--val=3", "--size=56")
        proofs = {
            "surface": surface(click.Group("all", commands=scripts), ""),
            "images": digests(images),
            "builds": builds(images, scratch),
            "runs": trainings(scratch / "--candidates=full+five --workers=1", scratch / "runs"),
        }  # fmt: skip
    text = json.dumps(proofs, indent=1, sort_keys=True)
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
