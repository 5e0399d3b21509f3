"""A run's graph as ONNX, which onnxruntime runs without torch."""

from importlib.util import find_spec

import torch

from pipeline.common.errors import ConfigError
from training.export.check import Answers, Runner
from training.export.description import KEY
from training.export.graph import FREE, INPUT, OUTPUTS

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20  # antialiased Resize came with 18


def require_onnx() -> None:
    """Check that the optional packages are there.

    Raises:
        ConfigError: If one is not; says how to install it.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"an ONNX file needs {', '.join(PACKAGES)}; got no {', '.join(missing)}. "
            "Install them with: pip install 'srp[export]'"
        )


def pack_onnx(program: torch.export.ExportedProgram, description: str) -> bytes:
    """Lay a traced graph out as one ONNX file.

    Args:
        program: From `training.export.graph.trace`.
        description: JSON for the metadata.
    """
    import onnx

    exported = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=[INPUT],
        output_names=list(OUTPUTS), verbose=False,
    )  # fmt: skip
    if exported is None:
        raise RuntimeError("torch exported nothing")
    model = exported.model_proto
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    names = {dim.dim_param: name for dim, name in zip(dimensions, FREE, strict=False)}
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param in names:
            dim.dim_param = names[dim.dim_param]
    onnx.helper.set_model_props(model, {KEY: description})
    return bytes(model.SerializeToString())


def onnx_runner(data: bytes, *, threads: int = 0) -> Runner:
    """Open a file with onnxruntime on the CPU.

    Args:
        data: Of the file.
        threads: Of one operation; 0 takes as many as onnxruntime finds right.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images_BHWC: Answers(*session.run(None, {INPUT: images_BHWC}))
