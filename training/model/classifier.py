"""The proposer and the classifier, and one training loss for each policy.

Axes: B samples, K candidates, L that the proposer sees, M crops through the classifier, T teachers,
H and W px, C channels.
"""

from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d
from torch import Tensor, nn

from pipeline import BatchSpec, CropLayout, ShardFolder
from pipeline.command.settings import named_values, not_taken
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.data import augment
from training.data.processes import Process, cpu_capabilities
from training.data.shards import BatchReader
from training.data.windows import input_sides
from training.model import estimators
from training.model.compiled import compiled
from training.model.policies import POLICIES
from training.model.proposer import Proposal, looked_at, make_proposer

AA_LAYERS = {"avgpool": nn.AvgPool2d, "blurpool": BlurPool2d}
"""What timm's models take as `aa_layer`, by name."""
SHARDS_DECIDE = ("num_classes", "in_chans")  # arguments of a model that are not the user's
READS_FILES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
ESTIMATORS = {"blend": estimators.blend, "straight-through": estimators.straight_through}


class StepOutput(NamedTuple):
    """What one training step computed.

    `loss` is the scalar to go down. `losses_B` and `hits_B` (1 where right) are for people: of
    what the classifier saw, averaged where it saw several crops.
    """

    loss: Tensor
    losses_B: Tensor
    hits_B: Tensor


class SelectiveClassifier(nn.Module):
    """Chooses a crop by its glimpse, and classifies it."""

    mean_C: Tensor
    std_C: Tensor
    teachers: "tuple[SelectiveClassifier, ...]" = ()  # a tuple, since their weights are not ours

    def __init__(
        self, config: TrainConfig, *, plan: CropLayout, num_classes: int, glimpse_px: int
    ) -> None:
        """Build the networks.

        Args:
            config: Policy, networks and label smoothing.
            plan: The candidates that the shards hold.
            num_classes: Outputs of the classifier.
            glimpse_px: Side of the glimpses, px.

        Raises:
            ConfigError: If timm has no classifier of that name, it cannot take the crops, or a
                policy lacks its crop.
        """
        super().__init__()
        self.config = config
        self.num_classes, self.crop_px, self.glimpse_px = num_classes, plan.crop_px, glimpse_px
        self.candidates = candidate_indices(config, plan)
        self.looked_at = looked_at(config, plan, self.candidates)
        self.names = tuple(plan.names[k] for k in self.candidates)
        self.classifier = _classifier(config, num_classes, plan.crop_px)
        self._trained = compiled(self.classifier, config.torchcompile)
        for name, values_C in (("mean_C", config.mean), ("std_C", config.std)):
            values = torch.tensor(values_C, dtype=torch.float32) * 255
            self.register_buffer(name, values, persistent=False)
        self.proposer = None
        if config.selects:
            proposer = make_proposer(config, plan, self.candidates, glimpse_px=glimpse_px)
            self.proposer = proposer.to(memory_format=_layout(config))
            self.proposer.requires_grad_(not config.holds_proposer)

    def forward(
        self,
        crops_BKHWC: Tensor,
        glimpses_BLSS: Tensor | None,
        labels_B: Tensor,
        noise_BMK: Tensor,
        temperature: float,
        *,
        ways_B: Tensor | None = None,
        chooses: bool = True,
    ) -> StepOutput:
        """Compute one step's loss.

        Args:
            crops_BKHWC: Uint8, augmented; the chosen one alone where it was `chosen_ahead`.
            glimpses_BLSS: Uint8, where a proposer has yet to choose.
            labels_B: Int64.
            noise_BMK: Gumbel noise for M draws of a crop; see `noise_shape`.
            temperature: That of the Gumbel-Softmax.
            ways_B: How each image is mirrored, see `augment.Draws`; None if none is.
            chooses: Whether the proposer chooses; see `TrainConfig.random_epochs`.
        """
        if self.proposer is None or glimpses_BLSS is None:
            return self._classify(crops_BKHWC[:, 0], labels_B)
        proposal = self.proposer(glimpses_BLSS, ways_B)
        if not chooses:
            output = self._classify(crops_BKHWC[:, 0], labels_B)
            # Zero, but there for all weights: processes that share gradients wait for each.
            return output._replace(loss=output.loss + 0 * proposal.scores_BK.sum())
        if POLICIES[self.config.policy].weighs_all:
            output = self._expected(crops_BKHWC, labels_B, noise_BMK, proposal)
        else:
            weigh = ESTIMATORS[self.config.policy]
            weights_BK = weigh(proposal.scores_BK, noise_BMK[:, 0], temperature)
            output = self._classify(estimators.mix(crops_BKHWC, weights_BK), labels_B)
        spread = estimators.mean_choice_entropy(proposal.probabilities_BK)
        return output._replace(loss=output.loss - self.config.balance * spread)

    def _expected(
        self, crops_BKHWC: Tensor, labels_B: Tensor, noise_BMK: Tensor,
        proposal: Proposal,
    ) -> StepOutput:  # fmt: skip
        num_samples, num_crops = labels_B.shape[0], crops_BKHWC.shape[1]
        num_draws = self.config.num_draws
        if num_draws:
            drawn_BM = (proposal.scores_BK.detach()[:, None] + noise_BMK).argmax(2)
            images = torch.cat([estimators.take(crops_BKHWC, drawn) for drawn in drawn_BM.T])
        else:
            drawn_BM = None
            images = crops_BKHWC.transpose(0, 1).flatten(0, 1)
        views_each = num_draws or num_crops
        seen = self._classify(images, labels_B.repeat(views_each))
        losses_BM = seen.losses_B.reshape(views_each, num_samples).T
        hits_BM = seen.hits_B.reshape(views_each, num_samples).T
        if drawn_BM is not None:
            log_probabilities_BM = proposal.scores_BK.log_softmax(1).gather(1, drawn_BM)
            loss = estimators.leave_one_out_loss(log_probabilities_BM, losses_BM)
            return StepOutput(loss, losses_BM.mean(1), hits_BM.mean(1))
        weights_BK = proposal.probabilities_BK
        loss = estimators.expected_loss(weights_BK, losses_BM)
        return StepOutput(loss, (weights_BK * losses_BM).sum(1), (weights_BK * hits_BM).sum(1))

    def _classify(self, images_BHWC: Tensor, labels_B: Tensor) -> StepOutput:
        logits_BC = self.logits(images_BHWC)
        losses_B = F.cross_entropy(
            logits_BC, labels_B, reduction="none", label_smoothing=self.config.smoothing
        )
        if self.teachers:
            taught_B = self._taught_losses(images_BHWC, logits_BC)
            losses_B = torch.lerp(losses_B, taught_B, self.config.distill_loss_weight)
        return StepOutput(losses_B.mean(), losses_B, (logits_BC.argmax(1) == labels_B).float())

    def _taught_losses(self, images_BHWC: Tensor, logits_BC: Tensor) -> Tensor:
        """Compare what the teachers and the classifier make of images.

        Source: Hinton, Vinyals and Dean 2015, equation 1, with T squared before it; timm's soft
        distillation for one teacher.
        """
        temperature = self.config.kd_temperature
        with torch.no_grad():
            taught_TBC = torch.stack(
                [(each.logits(images_BHWC) / temperature).softmax(1) for each in self.teachers]
            )
        own_BC = (logits_BC / temperature).log_softmax(1)
        divergence_BC = F.kl_div(own_BC, taught_TBC.mean(0), reduction="none")
        return divergence_BC.sum(1) * temperature**2

    def reader(
        self, shards: ShardFolder, split: str, process: Process, *, with_glimpses: bool = True
    ) -> BatchReader:
        """Open one split for what the networks look at.

        Args:
            shards: To read from.
            split: To read.
            process: This one among its peers.
            with_glimpses: Whether batches carry what the proposer looks at, if there is one.
        """
        with_glimpses = with_glimpses and self.config.selects
        content = BatchSpec(
            candidates=self.candidates,
            looked_at=self.looked_at if with_glimpses else (),
            glimpse_px=self.glimpse_px if with_glimpses else None,
            crops=shards.manifest.spec.layout != "canvas",
            compiled=process.device.type == "cuda",  # where reading has to keep up
        )
        return BatchReader(
            shards.reader(split), content, workers=self.config.workers, device=process.device
        )

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Gumbel noise that one sample's step needs: draws of a crop, candidates."""
        return max(1, self.config.num_draws), len(self.candidates)

    def logits(self, images_BHWC: Tensor) -> Tensor:
        """Classify images in 0 to 255, float32 `(B, classes)`.

        Training alone runs compiled code, so a score is the same on a machine without a compiler.
        """
        inputs = augment.normalise(images_BHWC, self.mean_C, self.std_C)
        if not self.config.channels_last:
            inputs = inputs.contiguous()
        classify = self._trained if self.training else self.classifier
        logits_BC: Tensor = classify(inputs).float()
        return logits_BC

    def chosen_ahead(self, noise_BK: Tensor, *, chooses: bool) -> Tensor | None:
        """Choose crops before the proposer runs, int64 `(B,)`; None where it chooses.

        The other crops need not be cut then.
        """
        if self.config.selects and chooses:
            return None
        return self.fixed_choice(noise_BK)

    def fixed_choice(self, noise_BK: Tensor) -> Tensor:
        """Choose without a proposer, int64 `(B,)`: the policy's own crop, or a random one."""
        if self.fixed_index is None:
            return noise_BK.argmax(1)
        return torch.full_like(noise_BK[:, 0], self.fixed_index, dtype=torch.int64)

    @property
    def fixed_index(self) -> int | None:
        """Place of the policy's own crop among the candidates, if it has one."""
        name = POLICIES[self.config.policy].fixed_crop
        return None if name is None else self.names.index(name)


def candidate_indices(config: TrainConfig, plan: CropLayout) -> tuple[int, ...]:
    """Find which of the shards' candidates a run reads.

    Raises:
        ConfigError: If the shards lack one, or the policy's crop is not among them.
    """
    needed = POLICIES[config.policy].fixed_crop
    if config.candidates is None:
        chosen = tuple(range(len(plan)))
    else:
        chosen = plan.indices(config.candidates)
    if needed and needed not in [plan.names[k] for k in chosen]:
        raise ConfigError(
            f"--policy {config.policy} needs the crop {needed!r}; got "
            f"{', '.join(plan.names[k] for k in chosen)}. "
            "Build shards with --candidates full+five, and leave --candidates out here."
        )
    if config.selects and len(chosen) < 2:
        raise ConfigError(
            f"--policy {config.policy} needs at least two candidates; got "
            f"{', '.join(plan.names[k] for k in chosen)}. Name more in --candidates."
        )
    return chosen


def uses_bfloat16(config: TrainConfig, device: torch.device) -> bool:
    """Whether to compute in bfloat16: only where the device has instructions for it."""
    if not config.amp:
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = cpu_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Compute in bfloat16 inside this context where `uses_bfloat16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config, device))


def _classifier(config: TrainConfig, num_classes: int, crop_px: int) -> nn.Module:
    if not timm.is_model(config.model):
        raise _unknown_model(config.model)
    arguments = _model_arguments(config)
    try:
        model: nn.Module = timm.create_model(config.model, num_classes=num_classes, **arguments)
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        if not arguments:  # a tag, such as resnet18.a1_in1k, that timm does not have
            raise _unknown_model(config.model) from error
        words = config.model_kwargs
        raise not_taken("--model-kwargs", words, config.model, error) from error
    sides = (crop_px,) if config.start_size is None else input_sides(config.start_size, crop_px)
    for side in sides:
        _check_takes(model, config.model, side, num_classes)
    return model.to(memory_format=_layout(config))


def _model_arguments(config: TrainConfig) -> dict[str, Any]:
    """Read `--model-kwargs`, with layers for their names."""
    arguments = named_values("--model-kwargs", config.model_kwargs)
    if own := arguments.keys() & {*SHARDS_DECIDE, *READS_FILES}:
        raise ConfigError(
            "--model-kwargs must leave the classes, the channels and the weights to srp; got "
            f"{', '.join(sorted(own))}. Leave it out; for weights, use --initial-checkpoint."
        )
    if "aa_layer" in arguments:
        arguments["aa_layer"] = AA_LAYERS.get(str(arguments["aa_layer"]), arguments["aa_layer"])
    return arguments


def _layout(config: TrainConfig) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format


def _unknown_model(name: str) -> ConfigError:
    close = ", ".join(timm.list_models(f"*{name[:6]}*")[:4])
    return ConfigError(
        f"--model must be a name that timm knows; got {name!r}. "
        f"{'Close ones: ' + close + '. ' if close else ''}"
        'List all with: python -c "import timm; print(timm.list_models())"'
    )


def _check_takes(classifier: nn.Module, name: str, crop_px: int, num_classes: int) -> None:
    """Show a classifier one black input, since some are made for one size of image."""
    try:
        with torch.no_grad():
            logits = classifier.eval()(torch.zeros(1, 3, crop_px, crop_px))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--model must take images of the crop's size; got {error} from {name!r} at "
            f"{crop_px} px. Take another --model, such as resnet18, or build shards with the "
            "--crop-size that it takes. With --start-size it must take smaller ones too."
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        raise ConfigError(
            f"--model must give a number for each of {num_classes} classes; got something else "
            f"from {name!r}. Leave out --model-kwargs, or take another --model, such as resnet18."
        )
    classifier.train()
