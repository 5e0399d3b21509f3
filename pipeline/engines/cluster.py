"""A Ray cluster: connect to it, or start one here, and look at each of its nodes."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.common.errors import ConfigError, printable

_CONNECT_S = 10
_LOOK_S = 120  # for a node to start a process that imports ours
_STORE_BYTES = 200 << 20  # of a cluster started here: results are small
_SHARES = 10_000  # Ray counts a GPU in ten-thousandths
_ADDRESS = re.compile(r"auto|(\[?[\w.:-]+?\]?):(\d{1,5})", re.ASCII)


@contextlib.contextmanager
def connected(address: str | None, *, workers: int) -> Iterator[None]:
    """Connect to a cluster while tasks run; one that this program is connected to is kept.

    Args:
        address: `auto` or HOST:PORT; None starts a cluster on this machine.
        workers: CPUs of a cluster that is started here.

    Raises:
        ConfigError: If the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    if address is None:
        place: dict[str, Any] = {
            "address": "local",  # whatever RAY_ADDRESS says
            "num_cpus": workers,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    else:
        place = {"address": address}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**place, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        told = printable(str(error)).rstrip(".")
        raise ConfigError(
            f"--ray-address must be of a Ray cluster of this version; got {address or 'none'}: "
            f"{told}. Start one with ray start --head, or drop --ray-address."
        ) from error
    try:
        with _answered_by(handler):
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _answered_by(handler: Any) -> Iterator[None]:
    """Let SIGTERM end in what the program's own handler raises.

    Ray sets a handler that cleans up nothing, and its calls turn whatever a handler raises into a
    plain KeyboardInterrupt.
    """
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []

    def answer(number: int, frame: Any) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    signal.signal(signal.SIGTERM, answer)
    try:
        yield
    except KeyboardInterrupt:
        if raised:
            raise raised[0] from None
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def require_listening(address: str | None) -> None:
    """Check that something listens at an address; Ray itself would wait for two minutes.

    Raises:
        ConfigError: If nothing does, or it is no address of a cluster.
    """
    if address is None:
        return
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise ConfigError(
            f"--ray-address must be auto or HOST:PORT; got {address!r}. From outside of the "
            "cluster, run the command there with: ray job submit"
        )
    if address == "auto":
        return
    try:
        place = (found[1].strip("[]"), int(found[2]))
        socket.create_connection(place, timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray-address must be where a Ray cluster listens; got {address}: {error}. "
            "Check the address and the port, which ray start --head prints."
        ) from error


def gpu_share(workers: int) -> float:
    """Give the share of a GPU that each of so many workers asks for.

    Raises:
        ConfigError: If no node has a GPU.
    """
    if not ray.cluster_resources().get("GPU"):
        raise ConfigError(
            "--device gpu needs a GPU that Ray knows of; got none on its nodes. "
            "Start a node with a GPU, or drop --device gpu."
        )
    return _SHARES // workers / _SHARES


def num_slots(share: float) -> int:
    """Count the tasks that the cluster can run at once, each of a CPU and a share of a GPU."""
    resources = ray.cluster_resources()
    cpus = int(resources.get("CPU", 0))
    return max(1, min(cpus, int(resources.get("GPU", 0) / share)) if share else cpus)


def require_same_everywhere(find_fault: Callable[[], str]) -> None:
    """Let each node look at the folders and the versions that it would work with.

    Args:
        find_fault: Says in words what differs on the machine where it runs; "" if nothing.

    Raises:
        ConfigError: If something differs on a node, or a node cannot run ours.
    """
    looks = {
        node["NodeManagerAddress"]: on_node(node["NodeID"], call, find_fault)
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }
    for host, look in looks.items():
        try:
            fault = ray.get(look, timeout=_LOOK_S)
        except GetTimeoutError:
            fault = f"it did not answer within {_LOOK_S} s"
        except RayError as error:
            fault = f"it cannot run srp: {first_cause(error)}"
        if fault:
            raise differs(f"{fault} on {host}")


def differs(fault: str) -> ConfigError:
    """Make the error of a node that would not build the same shards."""
    return ConfigError(
        "every Ray node must have the same srp, and reach SOURCE and OUT where they are here; got "
        f"{fault}. Mount the folder there, give the node your access to the store, or install what "
        "is missing."
    )


def on_node(node: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a small function on one node now, beside its tasks; returns a reference."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(work)
    return task.remote(*arguments)


def actor_on(node: str, kind: type) -> Any:
    """Start an actor on one node, beside its tasks, or elsewhere if that cannot be.

    Should it be killed, it begins anew, and calls wait for it.
    """
    there = NodeAffinitySchedulingStrategy(node, soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(scheduling_strategy=there, **options)(kind).remote()


def call(find_fault: Callable[[], str]) -> str:
    """Call what was sent."""
    return find_fault()


def kill(pid: int) -> None:
    """Kill a process of the node on which this runs, even one that is stopped."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def first_cause(error: Exception) -> str:
    """Give the last line of an error of Ray's, which names what went wrong there."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__)
