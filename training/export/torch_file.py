"""A run's graph as torch's own file, `.pt2`, which torch runs without srp."""

import io

import torch

from training.export.check import Answers, Runner
from training.export.description import KEY

ENTRY = f"{KEY}.json"  # of the description in the file


def pack_torch(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Lay a traced graph out as one file of `torch.export.load`.

    Args:
        program: From `training.export.graph.trace`.
        description: JSON for the entry `srp.json`.
    """
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={ENTRY: description})
    return file.getvalue()


def torch_runner(data: bytes) -> Runner:
    """Open a file with torch on the CPU."""
    module = torch.export.load(io.BytesIO(data)).module()

    def run(images_BHWC: object) -> Answers:
        with torch.inference_mode():
            found = module(torch.as_tensor(images_BHWC))
        return Answers(*(tensor.numpy() for tensor in found))

    return run
