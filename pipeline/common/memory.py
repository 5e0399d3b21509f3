"""The memory of this machine that is free, and what a process keeps of it."""

import ctypes
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# Of glibc's malloc.h; its largest threshold for what it maps by itself is 32 MiB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MAPPED_BYTES = 64 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Let malloc use freed pages again instead of returning each canvas to the system.

    The system clears a page before it gives it out again, and tells every core that it was taken.
    Other C libraries than glibc are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def free_bytes() -> int | None:
    """Say how much memory can be had without swapping; None where the system does not say."""
    found = [number for number in (_of_machine(), _of_cgroup()) if number is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    lines = dict(line.split(":", 1) for line in _read(_MEMINFO).splitlines() if ":" in line)
    words = lines.get("MemAvailable", "").split()
    return int(words[0]) * 1024 if words else None


def _of_cgroup() -> int | None:
    """Subtract what a container uses, without files that the system may drop, from its limit."""
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    fields = dict(line.split() for line in _read(_CGROUP / "memory.stat").splitlines())
    return int(limit) - int(used) + int(fields.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
