"""Accuracy of the choice, of every other choice, and what each costs.

At evaluation there is no noise: one crop is chosen by the best score, and the classifier runs
on that crop alone. Axes: N samples of the split, B of a batch, K candidates, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.durable import write_file
from training.data import Batch, Shards, evaluation_batches
from training.distributed import Process, sum_over_ranks
from training.model import SelectiveClassifier
from training.selection import take
from training.trainer import batch_reader, glimpse_side, uses_bfloat16

OnImages = Callable[[int], None]
"""Called with a number of images, on all ranks, that have passed."""

EVALUATION_BATCH = 64
CHOICE_SEED = 0  # of the one random crop that policy `random` is scored on after each epoch


@dataclass(frozen=True, kw_only=True)
class Table:
    """What one classifier and its proposer say of every crop of a split.

    Attributes:
        labels_N: Int64.
        predicted_NK: Int64, the class that the classifier sees in each crop.
        losses_NK: Float32, cross-entropy without smoothing.
        averaged_N: Int64, the class with the highest mean probability over all crops.
        probabilities_NK: Float32, the proposer's; uniform, or on one crop, for fixed policies.
    """

    labels_N: Tensor
    predicted_NK: Tensor
    losses_NK: Tensor
    averaged_N: Tensor
    probabilities_NK: Tensor

    @property
    def chosen_N(self) -> Tensor:
        """Index of each sample's best crop by the proposer."""
        return self.probabilities_NK.argmax(1)

    def save(self, path: Path) -> None:
        """Write the table as safetensors."""
        tensors = {name: tensor.contiguous() for name, tensor in vars(self).items()}
        write_file(path, save(tensors))

    @classmethod
    def load(cls, path: Path) -> "Table":
        """Read what `save` wrote."""
        return cls(**load_file(path))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one evaluation; accuracies are top-1, %.

    Attributes:
        crops: Names of the K candidates; the tuples below that are K long follow them.
        num_samples: Of the split; all were seen.
        top1: Of the policy itself.
        top1_crops: Of each crop always.
        top1_random: Of a crop drawn uniformly, the exact expectation.
        top1_mean: Of the classes' mean probability over all K crops.
        top1_oracle: Of the best crop in hindsight.
        shares: Of the samples for which each crop was chosen, 0 to 1.
        entropy_of_mean: Of the mean choice, nats; 0 where all images get the same crop.
        mean_entropy: Mean over images of the entropy of the choice, nats.
        proposer_macs: For the K glimpses of one image.
        classifier_macs: For what the policy shows the classifier of one image.
        top1_classes: Of the policy, by class.
        confusion: Counts by true class, then by predicted class, of the policy.
    """

    crops: tuple[str, ...]
    num_samples: int
    top1: float
    top1_crops: tuple[float, ...]
    top1_random: float
    top1_mean: float
    top1_oracle: float
    shares: tuple[float, ...]
    entropy_of_mean: float
    mean_entropy: float
    proposer_macs: int
    classifier_macs: int
    top1_classes: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


@torch.inference_mode()
def evaluate_choice(
    model: SelectiveClassifier, shards: Shards, *, process: Process, on_images: OnImages
) -> float:
    """Score the policy alone, top-1 in % over all ranks: cheap enough for after every epoch."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.float64, device=process.device)
    autocast = uses_bfloat16(model.config, process.device)
    for batch in _batches(model, shards, process):
        with torch.autocast(process.device.type, torch.bfloat16, enabled=autocast):
            predicted_B = _policy_prediction(model, batch)
        counts[0] += (predicted_B == batch.labels_B).sum()
        counts[1] += len(predicted_B)
        on_images(len(predicted_B) * process.world_size)
    hits, seen = sum_over_ranks(counts, process).tolist()
    return float(100 * hits / seen)


def _batches(model: SelectiveClassifier, shards: Shards, process: Process) -> Iterator[Batch]:
    """Read this rank's share of the validation split, on its device."""
    reader = batch_reader(model.config, shards, model, "val", process)
    size = EVALUATION_BATCH
    shares = evaluation_batches(len(reader.reader), batch_size=size, process=process)
    for batch in reader.batches(shares):
        yield batch.to(process.device)


def _policy_prediction(model: SelectiveClassifier, batch: Batch) -> Tensor:
    if model.config.policy == "mean":
        logits_KBC = torch.stack([model.logits(crop) for crop in batch.crops_BKHWC.unbind(1)])
        return logits_KBC.softmax(2).mean(0).argmax(1)
    chosen_B = _probabilities(model, batch).argmax(1)
    return model.logits(take(batch.crops_BKHWC, chosen_B)).argmax(1)


def _probabilities(model: SelectiveClassifier, batch: Batch) -> Tensor:
    """Give the choice over K: the proposer's, or that of a policy that does not look."""
    if model.proposer is not None and batch.glimpses_BKSS is not None:
        probabilities_BK: Tensor = model.proposer(batch.glimpses_BKSS).probabilities_BK
        return probabilities_BK
    num_crops = batch.crops_BKHWC.shape[1]
    if model.config.policy in ("whole", "centre"):
        fixed_B = model.fixed_choice(batch.labels_B[:, None].expand(-1, num_crops).float())
        return F.one_hot(fixed_B, num_crops).float()
    generator = torch.Generator().manual_seed(CHOICE_SEED + int(batch.indices_B[0]))
    drawn_BK = torch.rand((len(batch.labels_B), num_crops), generator=generator)
    return drawn_BK.softmax(1).to(batch.labels_B.device)


def evaluate_table(
    model: SelectiveClassifier, shards: Shards, *, process: Process, on_images: OnImages
) -> tuple[Table, Evaluation]:
    """Run the classifier on every crop of the validation split, and draw the figures."""
    table = make_table(model, shards, process=process, on_images=on_images)
    evaluation = summarise(
        table,
        model,
        glimpse_px=glimpse_side(model.config, shards),
        crop_px=shards.manifest.spec.crop_size,
        num_classes=len(shards.manifest.classes),
    )
    return table, evaluation


@torch.inference_mode()
def make_table(
    model: SelectiveClassifier, shards: Shards, *, process: Process, on_images: OnImages
) -> Table:
    """Run the classifier on every crop of the validation split.

    Each rank fills in its rows; their sum is the table of the whole split.
    """
    model.eval()
    autocast = uses_bfloat16(model.config, process.device)
    num_samples, num_crops = shards.manifest.num_samples("val"), len(model.candidates)
    table = _empty_table(num_samples, num_crops, process.device)
    for batch in _batches(model, shards, process):
        with torch.autocast(process.device.type, torch.bfloat16, enabled=autocast):
            probabilities_BK = _probabilities(model, batch)
            logits_KBC = torch.stack([model.logits(crop) for crop in batch.crops_BKHWC.unbind(1)])
        rows = batch.indices_B
        labels_KB = batch.labels_B.expand(num_crops, -1)
        losses = F.cross_entropy(logits_KBC.flatten(0, 1), labels_KB.flatten(), reduction="none")
        table.labels_N[rows] = batch.labels_B
        table.predicted_NK[rows] = logits_KBC.argmax(2).T
        table.losses_NK[rows] = losses.reshape(num_crops, -1).T
        table.averaged_N[rows] = logits_KBC.softmax(2).mean(0).argmax(1)
        table.probabilities_NK[rows] = probabilities_BK.float()
        on_images(len(rows) * process.world_size)
    columns = {name: sum_over_ranks(column, process).cpu() for name, column in vars(table).items()}
    return Table(**columns)


def _empty_table(num_samples: int, num_crops: int, device: torch.device) -> Table:
    return Table(
        labels_N=torch.zeros(num_samples, dtype=torch.int64, device=device),
        predicted_NK=torch.zeros((num_samples, num_crops), dtype=torch.int64, device=device),
        losses_NK=torch.zeros((num_samples, num_crops), device=device),
        averaged_N=torch.zeros(num_samples, dtype=torch.int64, device=device),
        probabilities_NK=torch.zeros((num_samples, num_crops), device=device),
    )


def summarise(
    table: Table, model: SelectiveClassifier, *, glimpse_px: int, crop_px: int, num_classes: int
) -> Evaluation:
    """Turn a table into figures.

    Args:
        table: Of the whole split.
        model: That it was made with.
        glimpse_px: Side of the glimpses, px.
        crop_px: Side of the crops, px.
        num_classes: Of the data.
    """
    hits_NK = (table.predicted_NK == table.labels_N[:, None]).double()
    predicted_N = final_prediction(table, model.config.policy)
    hits_N = (predicted_N == table.labels_N).double()
    if model.config.policy == "random":
        hits_N = hits_NK.mean(1)  # the expectation over the draw, not one draw
    mean_choice_K = table.probabilities_NK.double().mean(0)
    proposer, classifier = count_macs(model, glimpse_px=glimpse_px, crop_px=crop_px)
    num_crops = len(model.candidates)
    counts = torch.bincount(table.chosen_N, minlength=num_crops)
    pairs = torch.bincount(table.labels_N * num_classes + predicted_N, minlength=num_classes**2)
    return Evaluation(
        crops=model.names,
        num_samples=len(table.labels_N),
        top1=_percent(hits_N),
        top1_crops=tuple(_percent(hits_NK[:, k]) for k in range(num_crops)),
        top1_random=_percent(hits_NK.mean(1)),
        top1_mean=_percent((table.averaged_N == table.labels_N).double()),
        top1_oracle=_percent(hits_NK.amax(1)),
        shares=tuple((counts / counts.sum()).tolist()),
        entropy_of_mean=float(_entropy(mean_choice_K)),
        mean_entropy=float(_entropy(table.probabilities_NK.double()).mean()),
        proposer_macs=proposer,
        classifier_macs=classifier * (num_crops if model.config.policy == "mean" else 1),
        top1_classes=tuple(_percent(hits_N[table.labels_N == c]) for c in range(num_classes)),
        confusion=tuple(map(tuple, pairs.reshape(num_classes, num_classes).tolist())),
    )


def final_prediction(table: Table, policy: str) -> Tensor:
    """Give the class that the policy itself predicts for each sample, int64 `(N,)`."""
    if policy == "mean":
        return table.averaged_N
    return table.predicted_NK.gather(1, table.chosen_N[:, None])[:, 0]


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.mean()) if len(hits) else 0.0


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)


def count_macs(model: SelectiveClassifier, *, glimpse_px: int, crop_px: int) -> tuple[int, int]:
    """Count multiply-accumulates with torch's own flop counter; two flops are one MAC.

    Returns:
        Of the proposer on one image's K glimpses, and of the classifier on one crop.
    """
    device = next(model.parameters()).device
    model.eval()
    proposer = 0
    with torch.inference_mode():
        if model.proposer is not None:
            shape = (1, len(model.candidates), glimpse_px, glimpse_px)
            looked = torch.zeros(shape, dtype=torch.uint8, device=device)
            proposer = _flops(lambda: model.proposer(looked)) // 2  # type: ignore[misc]
        crop = torch.zeros((1, crop_px, crop_px, 3), device=device)
        return proposer, _flops(lambda: model.logits(crop)) // 2


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
