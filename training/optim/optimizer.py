"""The optimizer of a run: timm's, with groups of weights that each have their own rate."""

from inspect import signature
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    list_optimizers,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pipeline.command.settings import named_values, not_taken
from pipeline.common.errors import ConfigError
from training.config import TrainConfig
from training.model.classifier import SelectiveClassifier

FUSED = (SGD, Adam, AdamW)
"""Optimizers whose step torch has as one loop over the weights, on a CPU and on a GPU."""


def _parameters(
    model: SelectiveClassifier, config: TrainConfig
) -> nn.Module | list[dict[str, Any]]:
    """Give the optimizer the whole model, or groups where not all weights are treated alike."""
    is_muon = _is_muon(config)
    if not is_muon:
        if config.holds_proposer:
            return model.classifier
        if model.proposer is None or config.proposer_lr is None:
            return model
    return [
        {**group, "lr": rate}
        for part, rate in _rates(model, config).items()
        for group in param_groups_weight_decay(
            part, config.weight_decay, fallback_list=_ends(part) if is_muon else ()
        )
    ]


def _rates(model: SelectiveClassifier, config: TrainConfig) -> dict[nn.Module, float]:
    """Give the highest learning rate of each network."""
    rates: dict[nn.Module, float] = {model.classifier: config.lr}
    if model.proposer is not None and not config.holds_proposer:
        rates[model.proposer] = config.lr if config.proposer_lr is None else config.proposer_lr
    return rates


def trained_weights(model: SelectiveClassifier, config: TrainConfig) -> tuple[nn.Parameter, ...]:
    """Give the weights that an optimizer changes: those of networks whose rate is not 0."""
    rates = _rates(model, config)
    return tuple(weights for part, rate in rates.items() if rate for weights in part.parameters())


def make_optimizer(model: SelectiveClassifier, config: TrainConfig) -> Optimizer:
    """Make the optimizer that `--opt` names, with a rate for each network.

    Raises:
        ConfigError: If timm has none of that name, or it does not work with the other options.
    """
    if config.opt not in list_optimizers():
        raise ConfigError(
            f"--opt must be a name that timm knows; got {config.opt!r}. Try sgd, adamw or lamb. "
            'List all with: python -c "import timm; print(timm.optim.list_optimizers())"'
        )
    options = {"momentum": config.momentum, "lr": config.lr, **_optimizer_arguments(config)}
    try:
        if config.opt_kwargs:  # some optimizers look at their arguments only in a step
            weight = nn.Parameter(torch.zeros(4, 4))
            weight.grad = torch.zeros(4, 4)
            create_optimizer_v2([weight], config.opt, **options).step()
        optimizer: Optimizer = create_optimizer_v2(
            _parameters(model, config), config.opt, weight_decay=config.weight_decay, **options
        )
    except (
        AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        if config.opt_kwargs:
            words = config.opt_kwargs
            raise not_taken("--opt-kwargs", words, config.opt, error) from error
        raise ConfigError(
            f"--opt must work with the other options; got {error} for {config.opt!r}. "
            "Change --momentum or --weight-decay, or try sgd, momentum or adamw."
        ) from error
    return optimizer


def _optimizer_arguments(config: TrainConfig) -> dict[str, Any]:
    """Read `--opt-kwargs`, and add the fused step to what has one."""
    arguments = named_values("--opt-kwargs", config.opt_kwargs)
    ours = set(signature(create_optimizer_v2).parameters) - {"momentum", "foreach"}
    if own := arguments.keys() & ours:
        raise ConfigError(
            "--opt-kwargs must leave groups of weights and what has an option of its own to srp; "
            f"got {', '.join(sorted(own))}. Leave it out."
        )
    is_fused = get_optimizer_class(config.opt, bind_defaults=False) in FUSED
    return {"fused": True, **arguments} if is_fused else arguments


def _is_muon(config: TrainConfig) -> bool:
    """Whether weights that are no matrices, and the ends, need Muon's own AdamW."""
    return bool(get_optimizer_class(config.opt, bind_defaults=False).__name__ == "Muon")


def _ends(part: nn.Module) -> list[str]:
    """Give patterns of the names in a classifier's first and last layer; none for a proposer.

    Muon is for the matrices in between (Jordan 2024).
    """
    known = getattr(part, "pretrained_cfg", {})
    found = [known.get("first_conv") or (), known.get("classifier") or ()]
    names = [name for each in found for name in ([each] if isinstance(each, str) else each)]
    return [f"{name}.*" for name in names]
