"""Small builds, and what they leave."""

import hashlib
from pathlib import Path
from typing import Any

from pipeline.build.config import BuildConfig

SIZES = {"canvas_size": 64, "crop_size": 48, "glimpse_size": 16, "workers": 1}


def config(source: Path, out: Path, **options: Any) -> BuildConfig:
    """Give the config of a small build."""
    return BuildConfig(source=source, out=out, **{**SIZES, **options})


def files(folder: Path) -> dict[str, str]:
    """Hash every file of a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
