"""The schedules of the learning rate, and which options each uses.

This table imports nothing, so that `training.config` can read it.
"""

SCHEDULES = {
    "onecycle": (),
    "cosine": ("momentum", "warmup_epochs"),
    "step": ("momentum", "warmup_epochs", "decay_epochs", "decay_rate"),
}
"""Each schedule of the learning rate, with the fields that some use and others would ignore."""


def schedules_using(field: str) -> tuple[str, ...]:
    """Name the schedules that use a field of `TrainConfig`: all, or those that list it."""
    users = tuple(name for name, options in SCHEDULES.items() if field in options)
    return users or tuple(SCHEDULES)
