"""What this machine has for srp, what it lacks, and what to type: `srp-data doctor`."""

import io
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryFile

from PIL import Image

from pipeline.build.config import BuildConfig
from pipeline.build.prepare import data_spec
from pipeline.command.results import describe_machine
from pipeline.common.atomic_io import named_output
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ImageError, SrpError, printable
from pipeline.common.memory import free_bytes
from pipeline.decode import open_decoder
from pipeline.format.spec import DECODERS

# What each extra is for; those of developers and benches are left out.
EXTRAS = {
    "train": "to train",
    "remote": "to read shards in S3, in Google Cloud Storage or on a web server",
    "dali": "to decode with DALI",
    "export": "to export runs",
    "ray": "to build on Ray",
}
# What decides the speed, as the kernel names it.
CPU_FLAGS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_bf16": "AMX",
}  # fmt: skip
BASE_DECODER = "pillow"
IMAGENETTE_BYTES = 6 * 2**30  # of the default shards, with room to build them
FEW_FILES = 1024
SMALL_SHM = 256 * 2**20
CHUNK = 2**20
OF_CUDA = "import torch; print(torch.cuda.is_available(), torch.version.cuda)"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        value: What was found, for people.
        advice: What to install or change; empty where all is well.
        is_broken: Whether the base install cannot work so.
    """

    name: str
    value: str
    advice: str = ""
    is_broken: bool = False


def examine(folder: Path, *, disk_mib: int) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    Args:
        folder: Whose disk is measured; a file is written there, and removed.
        disk_mib: Size of that file, MiB; 0 measures no speed.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    yield from _versions()
    yield from map(_decoder, DECODERS)
    yield from _devices()
    yield _cpu()
    yield from _memory()
    yield _space(folder)
    if disk_mib:
        yield _disk(folder, disk_mib)
    yield from _limits()


def _versions() -> Iterator[Finding]:
    yield Finding(name="python", value=f"{sys.version.split()[0]} in {sys.prefix}")
    try:
        needed = requires("srp") or []
        yield Finding(name="srp", value=version("srp"))
    except PackageNotFoundError:
        yield Finding(
            name="srp", value="not installed",
            advice="Install it where its files lie: pip install '.[train]'",
        )  # fmt: skip
        return
    yield _packages("base", [line for line in needed if "extra ==" not in line])
    for extra in EXTRAS:
        yield _packages(
            extra, [line for line in needed if re.search(rf"extra == .{extra}\W", line)]
        )


def _packages(extra: str, requirements: list[str]) -> Finding:
    """Give the versions of an extra's packages, and how to install what is missing."""
    found, missing = [], []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    is_base = extra == "base"
    what = "Install it again: pip install srp"
    if not is_base:
        what = f"Install it {EXTRAS[extra]}: pip install 'srp[{extra}]'"
    return Finding(
        name=f"packages, {extra}",
        value=", ".join([*found, *(f"{name} is missing" for name in missing)]),
        advice=what if missing else "",
        is_broken=is_base and bool(missing),
    )


def _decoder(name: str) -> Finding:
    """Decode a small JPEG."""
    sizes = {"canvas_size": 32, "crop_size": 16, "glimpse_size": 8}
    config = BuildConfig(source=Path(), out=Path(), decoder=name, **sizes)  # type: ignore[arg-type]
    jpeg = io.BytesIO()
    Image.new("RGB", (48, 32), (200, 100, 50)).save(jpeg, "JPEG")
    is_base = name == BASE_DECODER
    try:
        decoder = open_decoder(data_spec(config))
        ((_, views),) = decoder.decode([("doctor", jpeg.getvalue())])
        if isinstance(views, ImageError):
            raise views
    except (SrpError, OSError, RuntimeError) as error:
        text = printable(str(error))
        advice = "Install Pillow again: pip install --force-reinstall pillow" if is_base else ""
        return Finding(name=f"decoder {name}", value=text, advice=advice, is_broken=is_base)
    return Finding(name=f"decoder {name}", value=f"works: {decoder.library}")


def _devices() -> Iterator[Finding]:
    asked = "--query-gpu=name,memory.total,memory.free,driver_version"
    listing = _said("nvidia-smi", asked, "--format=csv,noheader")
    if not listing:
        yield Finding(name="GPU", value="none that nvidia-smi names; all works on the CPU")
        return
    for line in listing.splitlines():
        yield Finding(name="GPU", value=printable(line))
    cuda = _said(sys.executable, "-c", OF_CUDA).split()  # nothing where torch is not installed
    if cuda and cuda[0] != "True":
        yield Finding(
            name="torch's CUDA", value="none" if cuda[1] == "None" else f"{cuda[1]} fails",
            advice="Install the torch of your driver: https://pytorch.org/get-started/locally",
        )  # fmt: skip


def _said(*command: str) -> str:
    """Give what a program prints; nothing if it is not there or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu() -> Finding:
    usable, present = num_usable(), os.cpu_count() or 1
    lines = _text(Path("/proc/cpuinfo")).splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    known = [name for flag, name in CPU_FLAGS.items() if flag in flags]
    missing = [name for flag, name in CPU_FLAGS.items() if flags and flag not in flags]
    parts = (
        str(describe_machine()["cpu"]),
        f"{usable} of {present} cores may be used",
        f"with {', '.join(known)}" if known else "",
        f"without {', '.join(missing)}" if missing else "",
    )
    advice, quota = "", _cpu_quota()
    if quota is not None and quota < usable:
        advice = (
            f"This container may use {quota:g} cores' time: add --workers {max(1, int(quota))}."
        )
    elif flags and "avx2" not in flags:
        advice = "Without AVX2 resizing is slow: build the shards on a newer CPU."
    return Finding(name="CPU", value=", ".join(filter(None, parts)), advice=advice)


def _cpu_quota() -> float | None:
    """Give the cores whose time a container may use; None without a limit."""
    quota, _, period = _text(Path("/sys/fs/cgroup/cpu.max")).strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _memory() -> Iterator[Finding]:
    free = free_bytes()
    yield Finding(
        name="memory", value="unknown" if free is None else f"{free / 2**30:.1f} GiB free"
    )
    shared = Path("/dev/shm")  # noqa: S108 - its size is read
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "Raise it for DataLoaders of torch: docker run --shm-size 2g"
        yield Finding(
            name=str(shared), value=f"{size / 2**20:,.0f} MiB",
            advice=advice if size < SMALL_SHM else "",
        )  # fmt: skip


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    advice = f"The default shards of Imagenette need {IMAGENETTE_BYTES / 2**30:.0f} GiB: free some."
    return Finding(
        name="free space", value=f"{free / 2**30:,.1f} GiB at {printable(str(folder))}",
        advice=advice if free < IMAGENETTE_BYTES else "",
    )  # fmt: skip


def _disk(folder: Path, disk_mib: int) -> Finding:
    """Write a file to the disk, and read it back, from the disk where the system allows it."""
    chunk = os.urandom(CHUNK)
    with named_output(folder, "--dir"), TemporaryFile(dir=folder) as file:
        begun = time.perf_counter()
        for _ in range(disk_mib):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        written_s = time.perf_counter() - begun
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        while file.read(CHUNK):
            pass
        read_s = time.perf_counter() - begun
    write, read = (disk_mib * CHUNK / 1e6 / seconds for seconds in (written_s, read_s))
    return Finding(
        name="disk", value=f"{write:,.0f} MB/s written and synced, {read:,.0f} MB/s read back"
    )


def _limits() -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield Finding(
        name="open files", value=f"{files:,} at most",
        advice=f"Raise it: ulimit -n {min(most, 4096)}" if 0 <= files < FEW_FILES else "",
    )  # fmt: skip
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY:
        yield Finding(
            name="size of files", value=f"{size / 2**20:,.0f} MiB at most",
            advice="Raise it: ulimit -f unlimited",
        )  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
