"""What runs the tasks of a build, a shard each: the processes of one machine, or Ray.

`local.run_tasks` and `on_ray.run_tasks` take the same work and tasks, and yield results as they
come; each is imported where it is used, since Ray is an extra.
"""

import os
from types import ModuleType

from pipeline.common.errors import ConfigError

ENGINES = ("local", "ray")


def open_ray() -> ModuleType:
    """Import what runs tasks on Ray: `pipeline.engines.on_ray`.

    Raises:
        ConfigError: If Ray is not installed.
    """
    # Ray reads these when it is imported or started: it must neither send a driver's folder to the
    # nodes where `uv run` started it, nor report to its makers.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from pipeline.engines import on_ray
    except ImportError as error:
        if (error.name or "").startswith("pipeline"):
            raise
        raise ConfigError(
            f"--engine ray needs Ray; got {' '.join(str(error).split())}. "
            "Install it with: pip install 'srp[ray]'"
        ) from error
    return on_ray
