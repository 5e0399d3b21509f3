"""Check what needs a GPU: `make gpu-check`, or `python3 tests/gpu/gpu_check.py`, without a network.

It begins with the standard library alone. Where a folder of `make gpu-folder` is there, what this
Python lacks is installed from it, beside the project. Each part is printed as it ends, and one that
fails does not keep the next from running. Trainings take what is left of the time.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PIECES = "pieces.json"
MARK = "pytest.mark.gpu"
NEEDED = ("torch", "timm", "numba", "msgspec", "simplejpeg", "zstandard", "safetensors", "rich")
TESTING = ("pytest", "hypothesis", "xdist", "pytest_timeout", "torchvision")
CANVASES = {128: 160, 224: 280}  # by the crop's side, px
EPOCHS = 20
RECIPES = REPO / "training/recipes"
KINDS = {
    "whole": ("--candidates=full", f"--config={RECIPES / 'long.toml'}"),
    "distilled": (f"--config={RECIPES / 'short.toml'}",),
}
PYTHON = sys.executable
DATA, TRAIN = (PYTHON, "-m", "pipeline.cli.main"), (PYTHON, "-m", "training")
# The environment is there: make must not begin one of its own.
MAKE = ("make", "READY=", f"SRP_DATA={' '.join(DATA)}", f"SRP_TRAIN={' '.join(TRAIN)}")
MACHINE = "import torch; print(torch.__version__, torch.cuda.get_device_name())"
FIND = """
import importlib.util, sys
for name in sys.argv[1:]:
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        print(name)
"""


def say(text: str) -> None:
    """Print a line at once, between those of the programs that are run."""
    sys.stdout.write(f"== {text}\n")
    sys.stdout.flush()


class Check:
    """Parts that run one after another; `failed` names those that did."""

    def __init__(self, work: Path, minutes: float) -> None:
        self.work, self.failed = work, list[str]()
        self._end = time.monotonic() + minutes * 60

    @property
    def left_s(self) -> float:
        """Seconds until the check should end."""
        return self._end - time.monotonic()

    def part(self, name: str, *command: str | Path, needs: Sequence[str] = ()) -> float:
        """Run a part; returns its seconds.

        Args:
            name: Printed before and after it.
            command: Program and arguments, run in the repository.
            needs: Packages without which it is left out.
        """
        if missing := lacking(needs):
            say(f"{name}: left out for want of {', '.join(missing)}")
            return 0.0
        say(name)
        begun = time.monotonic()
        status = subprocess.run([*map(str, command)], cwd=REPO).returncode
        seconds = time.monotonic() - begun
        say(f"{name}: {seconds:.1f} s{f', FAILED with exit status {status}' if status else ''}")
        if status:
            self.failed.append(name)
        return seconds

    def shards(self, images: Path, crop: int) -> Path:
        """Build shards with crops of one size, once."""
        out = self.work / f"shards-{crop}"
        sizes = (f"--canvas-size={CANVASES[crop]}", f"--crop-size={crop}", "--glimpse-size=64")
        if not (out / "manifest.json").exists():
            self.part(f"shards of {crop} px", *DATA, "build-shards", images, out, *sizes)
        return out

    def trainings(self, images: Path) -> None:
        """Train the whole image and the chooser, at both sizes, with one seed after another."""
        took: dict[tuple[int, str], float] = {}
        for seed, crop, policy in itertools.product(range(100), CANVASES, KINDS):
            name = f"{policy}, {crop} px, {EPOCHS} epochs, seed {seed}"
            if self.left_s < took.get((crop, policy), 0.0):
                say(f"{name}: left out, {self.left_s:.0f} s are left")
                return
            shards = self.shards(images, crop)
            options = (f"--policy={policy}", f"--epochs={EPOCHS}", f"--seed={seed}", *KINDS[policy])
            place = (f"--output={self.work}", f"--experiment={policy}-{crop}-s{seed}")
            took[crop, policy] = self.part(
                name, *TRAIN, "from", shards, *options, *place, "--resume"
            )


def pieces_of(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """List the parts of a folder that are here, checked: a name, and its pieces in order.

    Raises:
        SystemExit: If a piece of a part is missing, or is not what was made.
    """
    for name, digests in json.loads((folder / PIECES).read_text(encoding="utf-8")).items():
        paths = [folder / piece for piece in digests]
        if not any(path.exists() for path in paths):
            say(f"{name}: not carried")
            continue
        for path, digest in zip(paths, digests.values(), strict=True):
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise SystemExit(f"error: {path} must be what make gpu-folder made. Copy it again.")
        yield name, paths


def unpack(folder: Path, out: Path) -> None:
    """Unpack the parts of a folder, and install its wheels in `out`/packages."""
    for name, paths in pieces_of(folder):
        joined = out / f"{name}.tar"
        with joined.open("wb") as file:
            for path in paths:
                file.write(path.read_bytes())
        with tarfile.open(joined) as archive:
            archive.extractall(out / name, filter="data")
        joined.unlink()
    wheels = sorted(out.glob("*/*.whl"))
    if wheels:
        options = ("--no-index", "--no-deps", "--quiet", "--upgrade", "--target", out / "packages")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *map(str, (*options, *wheels))], check=True
        )


def gpu_tests() -> list[Path]:
    """List the files with tests for a GPU: others import packages that may not be there."""
    files = sorted((REPO / "tests").rglob("test_*.py"))
    return [path for path in files if MARK in path.read_text(encoding="utf-8")]


def lacking(names: Sequence[str]) -> list[str]:
    """List the packages that this Python does not find."""
    command = [sys.executable, "-c", FIND, *names]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def wanted_options() -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, help="images: a folder with train/ and val/, or a .tgz of one")
    add("--folder", type=Path, default=REPO / "gpu", help="what make gpu-folder made")
    add("--work", type=Path, default=REPO / "runs/gpu-check", help="for shards and runs")
    add("--minutes", type=float, default=8.0, help="by then the last training should end")
    return parser.parse_args()


def main() -> int:
    """Run all parts; the exit status is 1 if one failed, or none could begin."""
    wanted = wanted_options()
    wanted.work = wanted.work.resolve()
    if shutil.which("nvidia-smi") is None:
        raise SystemExit("error: make gpu-check needs an NVIDIA GPU and its driver.")
    unpacked = wanted.work / "unpacked"
    unpacked.mkdir(parents=True, exist_ok=True)
    if (wanted.folder / PIECES).exists():
        unpack(wanted.folder, unpacked)
    os.environ["PYTHONPATH"] = os.pathsep.join((str(REPO), str(unpacked / "packages")))
    images = wanted.data or next(unpacked.glob("images/*"), None)
    if missing := lacking(NEEDED):
        raise SystemExit(
            f"error: gpu-check needs {', '.join(missing)}. Bring them with make gpu-folder."
        )
    if images is None:
        raise SystemExit("error: gpu-check needs images. Name them: make gpu-check DATA=FILE.tgz.")
    check = Check(wanted.work, wanted.minutes)
    images = images.resolve()
    check.part("machine", PYTHON, "-c", MACHINE)
    check.part("tests", PYTHON, "-m", "pytest", "-q", "-m", "gpu", *gpu_tests(), needs=TESTING)
    step = check.shards(images, 128)
    check.part("bench step", *TRAIN, "bench", "step", step)
    check.part("bench build", *DATA, "bench", "build", images, needs=("nvidia.dali",))
    check.part("speedrun", *MAKE, "speedrun", f"DATA={images}", f"WORK={check.work}")
    check.trainings(images)
    say(f"failed: {', '.join(check.failed) or 'nothing'}")
    return bool(check.failed)


if __name__ == "__main__":
    sys.exit(main())
