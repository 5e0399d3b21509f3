"""`--torchcompile`: a network's forward and backward, compiled for the machine by torch."""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from pipeline.common.errors import ConfigError

INDUCTOR = "inductor"  # torch's own compiler


def compiled(network: nn.Module, backend: str | None) -> Callable[[Tensor], Tensor]:
    """Compile what a network does when it is first called; None gives what it does already.

    The result is a function, not a module: the network keeps the names of its weights.
    """

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs)
        return outputs

    return run if backend is None else torch.compile(run, backend=backend)


def check_compiler(backend: str | None, device: torch.device) -> None:
    """Check that the machine can compile, before anything is read.

    Raises:
        ConfigError: If torch does not know the backend, or its compiler is not installed.
    """
    if backend is None:
        return
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ConfigError(
            f"--torchcompile must name a backend of torch, such as {known}; got {backend!r}. Leave "
            f"the name out for {INDUCTOR}."
        )
    if backend != INDUCTOR:
        return
    cxx = os.environ.get("CXX", "g++")
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError(
            "--torchcompile needs the package triton on a GPU; got none. Install it with: pip "
            "install triton"
        )
    if device.type == "cpu" and shutil.which(cxx) is None:
        raise ConfigError(
            f"--torchcompile needs a C++ compiler on a CPU; got none named {cxx}. Install g++, "
            "name another in CXX, or leave --torchcompile out."
        )
