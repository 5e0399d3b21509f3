"""How large a study can be on this machine: `srp-train sizes SOURCE`.

Ten steps of the classifier are timed, from the largest of the profile's crops down to the first
with which its fewest epochs fit its minutes.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import msgspec
import torch
from torch.nn import functional as F

from pipeline import count_images, place_crops
from pipeline.common.atomic_io import write_file
from pipeline.common.cpus import num_usable
from pipeline.common.errors import ConfigError
from training.choose.method import Counts
from training.data.processes import Process, cpu_capabilities
from training.model.classifier import SelectiveClassifier, autocast, candidate_indices
from training.study.jobs import default_jobs
from training.study.profiles import Profile
from training.study.runner import run_costs

STEPS, WARM_UP_STEPS = 10, 2
# What decides the speed of a training on a CPU, by torch's names.
CAPABILITIES = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_bf16": "bfloat16", "amx_bf16": "AMX"}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a study is run with.

    Attributes:
        crop_px: Side of the crops.
        epochs: Of a round.
        minutes: That all its trainings are expected to take.
        images_per_s: Measured with such crops, of one process.
        machine: That it was measured on, in words.
    """

    crop_px: int
    epochs: int
    minutes: float
    images_per_s: float
    machine: str

    def save(self, path: Path) -> None:
        """Write them, for a study that is resumed."""
        write_file(path, json.dumps(asdict(self), indent=1).encode() + b"\n")


def load_sizes(path: Path) -> Sizes | None:
    """Read what `Sizes.save` wrote, if it is there.

    Raises:
        ConfigError: If it is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Sizes)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"a file of sizes must be whole; got {error} in {path}. Delete it: they are chosen "
            "again."
        ) from error


def measure_sizes(
    profile: Profile, source: Path, *, process: Process, tell: Callable[[str], None]
) -> Sizes:
    """Count a source's images, and choose what fits by timing the machine.

    Args:
        profile: What is run.
        source: Folder of images, or a .tgz of one.
        process: This one.
        tell: Gets what was found, line by line.

    Raises:
        SourceError: If the source cannot be used.
    """
    counts, machine = count_images(source), describe_machine(process.device)
    tell(f"machine: {machine}")

    def rate_of(crop_px: int) -> float:
        rate = measure_rate(profile, crop_px, device=process.device)
        model = profile.arms[0].config.model
        tell(f"{model}, crops of {crop_px} px: {rate:.0f} images/s of one process")
        return rate

    return choose_sizes(
        profile,
        num_train=counts["train"],
        num_val=counts["val"],
        jobs=default_jobs(process),
        machine=machine,
        rate_of=rate_of,
    )


def choose_sizes(
    profile: Profile,
    *,
    num_train: int,
    num_val: int,
    jobs: int,
    machine: str,
    rate_of: Callable[[int], float],
) -> Sizes:
    """Choose the largest crop with which the profile's fewest epochs fit its minutes.

    The epochs are the profile's, or as many as fit. Where nothing fits, it is the smallest crop and
    the fewest epochs: the caller compares `minutes` with the profile's.

    Args:
        profile: What is run.
        num_train: Images to train on, of each data set.
        num_val: Images to score, of each data set.
        jobs: Runs side by side.
        machine: In words.
        rate_of: Gives the images/s of one process at a crop's side, px.
    """
    for crop_px in profile.crops:
        rate = rate_of(crop_px)
        for epochs in range(profile.epochs, profile.fewest_epochs - 1, -1):
            costs = _costs(profile, epochs, crop_px, num_train=num_train, num_val=num_val)
            images = profile.num_data_sets * _longest_share(costs, jobs)
            sizes = Sizes(
                crop_px=crop_px, epochs=epochs, minutes=images / rate / 60, images_per_s=rate,
                machine=machine,
            )  # fmt: skip
            if profile.minutes is None or sizes.minutes <= profile.minutes:
                return sizes
    return sizes


def _costs(
    profile: Profile, epochs: int, crop_px: int, *, num_train: int, num_val: int
) -> list[float]:
    """Estimate what each run on one data set costs, in images trained on."""
    layout = place_crops(profile.candidates, canvas_px=2 * crop_px, crop_px=crop_px)
    costs = []
    for arm in profile.arms:
        config = replace(arm.config, epochs=arm.rounds * epochs)
        counts = Counts(num_train, num_val, len(candidate_indices(config, layout)))
        costs.append(sum(run_costs(arm.distilled or config, counts).values()))
    return costs * len(profile.seeds)


def _longest_share(costs: Sequence[float], jobs: int) -> float:
    """Give the work of the busiest of some processes, which take the most expensive run first."""
    shares = [0.0] * jobs
    for cost in sorted(costs, reverse=True):
        shares[shares.index(min(shares))] += cost
    return max(shares)


def measure_rate(profile: Profile, crop_px: int, *, device: torch.device) -> float:
    """Time ten steps of the profile's classifier, on one thread of a CPU.

    Returns:
        Images/s, of the median step.
    """
    config = replace(profile.arms[0].config, batch_size=profile.batch_size)
    layout = place_crops(profile.candidates, canvas_px=2 * crop_px, crop_px=crop_px)
    model = SelectiveClassifier(config, plan=layout, num_classes=10, glimpse_px=crop_px)
    classifier = model.to(device).classifier
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-3, momentum=0.9)
    num_images = config.batch_size
    if device.type == "cpu":  # on which large ones take minutes
        num_images = min(num_images, max(8, 64**3 // crop_px**2))
    shape = (num_images, crop_px, crop_px, 3)
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(10, shape[:1], generator=generator).to(device)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(WARM_UP_STEPS + STEPS):
            started = time.perf_counter()
            with autocast(config, device):
                loss = F.cross_entropy(model.logits(crops), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(num_threads)
    return num_images / median(seconds[WARM_UP_STEPS:])


def describe_machine(device: torch.device) -> str:
    """Say what decides the speed of a training: the CPU, what it can do, its cores, the GPU."""
    found = cpu_capabilities()
    known = [name for flag, name in CAPABILITIES.items() if found.get(flag)]
    missing = [name for flag, name in CAPABILITIES.items() if flag in found and not found[flag]]
    parts = [
        found.get("cpu_name") or "CPU",
        f"{num_usable()} cores",
        "with " + ", ".join(known) if known else "",
        "without " + ", ".join(missing) if missing else "",
        torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU",
    ]
    return ", ".join(part for part in parts if part)
