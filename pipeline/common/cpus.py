"""The CPUs of this process: SLURM, cpusets and taskset may leave it only some."""

import os
import sys


def num_usable() -> int:
    """Count the CPUs that this process may use."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
