"""A real Ray of two nodes on this machine: workers and a node are lost while it builds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planned import config, files
from poisoned import poison, write_poisoned
from reported import Reported
from slow import count_slowly, divide, meet_and_count

from pipeline.build.build import BuildResult, build_shards
from pipeline.build.landmarks import Landmarks
from pipeline.common.errors import ConfigError
from pipeline.engines import open_ray
from pipeline.parts.build_part import build_part
from pipeline.parts.merge import merge_parts
from pipeline.parts.plan import plan_parts

REPO = Path(__file__).resolve().parents[3]
VICTIM = "train/dog/dog_003.JPEG"

pytestmark = [
    pytest.mark.sweep,  # a cluster takes long to start
    pytest.mark.filterwarnings("default:::ray"),
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO:FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each, whose workers know the tests' poison."""
    pytest.importorskip("ray", reason="needs the extra ray, which is not installed")
    open_ray()
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{REPO}:{REPO / 'tests/faults'}")
        node = {"num_cpus": 1, "object_store_memory": 100_000_000}
        found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        found.add_node(**node)
        ray.init(address=found.address, log_to_driver=False, logging_level="error")
        try:
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


@pytest.fixture(autouse=True)
def _small_shards(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.build.prepare.samples_per_shard", lambda _: 3)
    monkeypatch.setattr("pipeline.build.build.build_shard", write_poisoned)


def on_ray(source: Path, out: Path, **options: Any) -> BuildResult:
    return build_shards(config(source, out, engine="ray", **options))


@pytest.mark.parametrize("how", ["kill", "sleep", "stop"])
def test_a_worker_that_dies_or_hangs_while_it_builds_costs_a_try_and_no_byte(
    how: str, own_tree: Path, tmp_path: Path
) -> None:
    poison(own_tree / VICTIM, how, once=tmp_path / "marker")
    built = on_ray(own_tree, tmp_path / "ray", image_timeout_s=300 if how == "kill" else 5)
    assert (tmp_path / "marker").exists(), "no worker was lost"
    assert len(built.retried) == 1
    build_shards(config(own_tree, tmp_path / "local"))
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_an_image_that_kills_its_workers_is_rejected_by_name_as_on_this_machine(
    own_tree: Path, tmp_path: Path
) -> None:
    poison(own_tree / VICTIM, "kill")
    built = on_ray(own_tree, tmp_path / "ray", max_rejects=1)
    assert [reject.path for reject in built.manifest.rejects] == [VICTIM]
    build_shards(config(own_tree, tmp_path / "local", max_rejects=1))
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_an_archive_and_a_resumed_build_give_the_same_files(
    image_archive: Path, image_tree: Path, tmp_path: Path
) -> None:
    build_shards(config(image_tree, tmp_path / "local"))
    on_ray(image_archive, tmp_path / "ray")
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    (tmp_path / "ray/train-000001.tar").unlink()
    assert len(on_ray(image_archive, tmp_path / "ray").reused) == 8
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_parts_of_a_plan_are_built_on_ray_and_here(image_tree: Path, tmp_path: Path) -> None:
    plan_parts(config(image_tree, tmp_path / "out"))
    build_part(config(image_tree, tmp_path / "out", engine="ray"), "1/2")
    build_part(config(image_tree, tmp_path / "out"), "2/2")
    merge_parts(tmp_path / "out", max_rejects=0, workers=1)
    build_shards(config(image_tree, tmp_path / "local"))
    assert files(tmp_path / "out") == files(tmp_path / "local")


def test_a_node_where_out_is_another_folder_is_named_before_anything_is_built(
    image_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.build.landmarks.Landmarks",
        lambda place, token, _, *rest: Landmarks(place, token, "of another machine", *rest),
    )
    with pytest.raises(
        ConfigError,
        match=r"^every Ray node must have the same srp, and reach SOURCE and OUT where they are "
        rf"here; got another {tmp_path}/out/.build/[0-9a-f]+ on [\d.]+\. Mount the folder there, ",
    ):
        on_ray(image_tree, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def run(tasks: list[Any], work: Any, *, needs_gpu: bool = False, **options: Any) -> Iterator[Any]:
    names = [(f"shard-{number}", 3) for number in range(len(tasks))]
    return open_ray().run_tasks(
        work, tasks, shards=names, address=None, workers=2, timeout_s=300, needs_gpu=needs_gpu,
        find_fault=str, **options,
    )  # fmt: skip


def test_a_bug_in_a_task_comes_out_and_the_others_stop() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run([1, 0, 3], divide, retry=None))


def test_a_shard_that_takes_long_is_named_and_images_are_counted() -> None:
    seen: list[str] = []

    class Figures(Reported):
        def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
            super().update(stage, done, total)
            seen.append(figures)

    progress = Figures()
    results = list(run([0.05, 0.05, 0.05, 4], count_slowly, retry=None, progress=progress))
    assert sorted(results) == [0.05, 0.05, 0.05, 4]
    assert progress.calls[-1] == ("building shards", 12, 12)
    assert "slow: shard-3" in seen


def test_a_node_that_is_lost_costs_its_tasks_a_try(cluster: Any, tmp_path: Path) -> None:
    import ray

    lost: list[str] = []
    ours = ray.get_runtime_context().get_node_id()
    node = next(each for each in cluster.list_all_nodes() if each.node_id != ours)

    def lose(_num_images: int) -> None:
        if len(list(tmp_path.iterdir())) == 2 and node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)

    def retry(folder: Path, _num_done: int, how: str) -> Path:
        lost.append(how)
        return folder

    try:
        results = list(run([tmp_path] * 3, meet_and_count, retry=retry, progress=Reported(lose)))
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    assert results == ["done"] * 3
    assert set(lost) == {"died"}


def test_images_are_counted_again_after_what_counts_them_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from pipeline.engines import cluster as ours

    actors: list[Any] = []
    start = ours.actor_on
    monkeypatch.setattr(ours, "actor_on", lambda *where: actors.append(start(*where)) or actors[-1])
    progress = Reported(lambda done: done == 1 and ray.kill(actors[0], no_restart=False))
    assert list(run([6.0], count_slowly, retry=None, progress=progress)) == [6.0]
    assert progress.calls[-1][1] == 3


def test_decoding_on_a_gpu_needs_a_node_that_has_one() -> None:
    with pytest.raises(ConfigError, match=r"^--device gpu needs a GPU that Ray knows of; got none"):
        list(run([1.0], count_slowly, retry=None, needs_gpu=True))
