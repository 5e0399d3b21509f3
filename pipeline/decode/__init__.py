"""From an image file's bytes to its views: opens the decoder that a spec names."""

import atexit
import functools

from pipeline.common.errors import ConfigError
from pipeline.decode.pillow import PillowDecoder, pillow_name
from pipeline.decode.rules import Decoder
from pipeline.format.spec import DataSpec


@functools.cache  # a worker process keeps its decoder from shard to shard
def open_decoder(spec: DataSpec, num_threads: int = 1) -> Decoder:
    """Open the decoder of a spec, on its device.

    Args:
        spec: Names the decoder, and says what it makes of an image.
        num_threads: Threads of DALI; Pillow has one.

    Raises:
        ConfigError: If the decoder is not installed, or its device is missing.
    """
    if spec.decoder == "dali":
        return _open_dali(spec, num_threads)
    if spec.decoder == "pillow-simd" and not pillow_name().startswith("pillow-simd"):
        raise ConfigError(
            f"--decoder pillow-simd needs pillow-simd in place of Pillow; got {pillow_name()}. "
            "Make an environment for it with make simd, or use --decoder pillow."
        )
    return PillowDecoder(spec)


def _open_dali(spec: DataSpec, num_threads: int) -> Decoder:
    try:
        from pipeline.decode.dali import DaliDecoder
    except (ImportError, OSError) as error:  # not installed, or without a library that it needs
        if isinstance(error, ImportError) and (error.name or "").startswith("pipeline"):
            raise
        raise ConfigError(
            f"--decoder dali needs NVIDIA DALI; got {' '.join(str(error).split())}. "
            "Install it with: pip install 'srp[dali]'"
        ) from error
    atexit.register(open_decoder.cache_clear)  # DALI must be freed before the interpreter ends
    return DaliDecoder(spec, num_threads=num_threads)
