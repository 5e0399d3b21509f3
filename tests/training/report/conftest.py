"""What the tests of the pages share: trained runs, and both pages of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import ShardFolder
from training.audit.run import Audited, audit_run
from training.data.processes import Process
from training.report.audit_page import write_audit
from training.report.study_page import write_study
from training.saved.record import RunRecord


@pytest.fixture(scope="session")
def by_map(
    train: Callable[..., RunRecord], tiny: Any, opened: ShardFolder, alone: Process, scenes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Audited:  # fmt: skip
    """Two seeds that choose by a map, and a run of the whole image beside them."""
    folder = tmp_path_factory.mktemp("by-map")
    for seed in (0, 1):
        train(tiny(proposer="map", seed=seed), folder / f"map-s{seed}")
    train(tiny(policy="whole", seed=0), folder / "whole-s0")
    return audit_run(
        folder / "map-s1", shards=opened, boxes=scenes / "boxes.csv", workers=1, process=alone
    )


@pytest.fixture(scope="session")
def pages(
    by_map: Audited, scene_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The files of both pages about these runs, by the command that writes them."""
    out = tmp_path_factory.mktemp("pages")
    (report,) = write_study([by_map.run.folder.parent], shards=[scene_shards], out=out / "r.html")
    audit, *_ = write_audit(by_map, out)
    return {"report": report, "audit": audit}


@pytest.fixture(scope="session", params=["report", "audit"])
def page_file(request: pytest.FixtureRequest, pages: dict[str, Path]) -> Path:
    """Each page in turn."""
    return pages[request.param]


@pytest.fixture(scope="session")
def html_page(page_file: Path) -> str:
    """The text of each page in turn."""
    return page_file.read_text(encoding="utf-8")
