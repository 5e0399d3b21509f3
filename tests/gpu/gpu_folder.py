"""Make what a machine with a GPU and no network needs: `make gpu-folder DATA=FILE.tgz`.

The folder holds wheels for that machine's Python, without torch, which is there; DALI's; and the
images. Each part is cut into pieces that are small enough to be carried one by one, which
`gpu_check.py` joins.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from gpu_check import PIECES, REPO, say

THERE = ("torch", "torchvision")
TESTING = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def requirements(extra: str, python: str, work: Path, *also: str) -> set[str]:
    """List the pinned packages of one extra of the project and of others."""
    wanted, excluded = work / "wanted.txt", work / "excluded.txt"
    wanted.write_text("\n".join(also), encoding="utf-8")
    excluded.write_text("\n".join(THERE), encoding="utf-8")
    options = ("--quiet", "--no-header", "--no-annotate", f"--extra={extra}")
    target = (f"--python-version={python}", "--python-platform=x86_64-manylinux_2_28")
    pins = ("-c", str(REPO / "constraints.txt"), "--excludes", str(excluded))
    found = subprocess.run(
        ["uv", "pip", "compile", *options, *target, *pins, "pyproject.toml", str(wanted)],
        cwd=REPO, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(found.stdout.split())


def download(names: set[str], python: str, out: Path) -> None:
    """Fetch a wheel of each package."""
    platforms = (f"--platform={name}" for name in PLATFORMS)
    target = ("--only-binary=:all:", "--no-deps", f"--python-version={python}", *platforms)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *target, "--dest", str(out), *sorted(names)], check=True)


def cut(part: Path, folder: Path, piece_bytes: int) -> dict[str, str]:
    """Write a folder as a tar file in pieces; returns the SHA-256 of each by its name."""
    joined = part.with_suffix(".tar")
    with tarfile.open(joined, "w") as archive:
        for path in sorted(part.iterdir()):
            archive.add(path, arcname=path.name)
    digests = {}
    with joined.open("rb") as file:
        while data := file.read(piece_bytes):
            name = f"{part.name}-{len(digests):02d}"
            (folder / name).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()
    joined.unlink()
    return digests


def main() -> None:
    """Make the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("images", type=Path, help="a .tgz of a folder with train/ and val/")
    add("--folder", type=Path, default=REPO / "gpu", help="is made anew")
    add("--python", default="3.12", help="of the machine with the GPU")
    add("--piece-mib", type=int, default=60)
    wanted = parser.parse_args()
    if not wanted.images.is_file():
        raise SystemExit(f"error: images must be an archive; got {wanted.images}. Name a .tgz.")
    shutil.rmtree(wanted.folder, ignore_errors=True)
    wanted.folder.mkdir(parents=True)
    sums = {}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        parts = {name: work / name for name in ("base", "dali", "images")}
        for part in parts.values():
            part.mkdir()
        base = requirements("train", wanted.python, work, *TESTING)
        download(base, wanted.python, parts["base"])
        download(requirements("dali", wanted.python, work) - base, wanted.python, parts["dali"])
        shutil.copy(wanted.images, parts["images"])
        for name, part in parts.items():
            sums[name] = cut(part, wanted.folder, wanted.piece_mib * 2**20)
            say(f"{name}: {len(list(part.iterdir()))} files in {len(sums[name])} pieces")
    (wanted.folder / PIECES).write_text(json.dumps(sums, indent=2), encoding="utf-8")
    say(f"made {wanted.folder}")


if __name__ == "__main__":
    main()
