"""From an image file's bytes to its views: `--decoder` and `--device` choose who decodes."""

import atexit
import functools
from dataclasses import dataclass

from pipeline.common.errors import ConfigError
from pipeline.decode.pillow import PillowDecoder, pillow_name
from pipeline.decode.rules import Decoder
from pipeline.format.spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One decoder on one device.

    Attributes:
        decoder: `pillow`, `pillow-simd` or `dali`.
        device: `cpu` or `gpu`.
        num_threads: Of each process; only DALI has its own.
    """

    decoder: str
    device: str = "cpu"
    num_threads: int = 1


@functools.cache  # a worker process keeps its decoder from shard to shard
def open_decoder(backend: Backend, spec: DataSpec) -> Decoder:
    """Make a decoder.

    Raises:
        ConfigError: If it is not installed, or its device is missing; names what to type.
    """
    if backend.decoder == "dali":
        return _open_dali(backend, spec)
    if backend.decoder == "pillow-simd" and not pillow_name().startswith("pillow-simd"):
        raise ConfigError(
            f"--decoder pillow-simd needs an environment in which it stands in for Pillow; got "
            f"{pillow_name()}. Make one with make simd, or use --decoder pillow."
        )
    return PillowDecoder(spec)


def _open_dali(backend: Backend, spec: DataSpec) -> Decoder:
    try:
        from pipeline.decode.dali import DaliDecoder
    except (ImportError, OSError) as error:  # not there, or without a library that it needs
        if isinstance(error, ImportError) and (error.name or "").startswith("pipeline"):
            raise
        raise ConfigError(
            f"--decoder dali needs NVIDIA DALI; got {' '.join(str(error).split())}. "
            "Install it with: pip install 'srp[dali]'"
        ) from error
    atexit.register(open_decoder.cache_clear)  # DALI must go before the interpreter does
    return DaliDecoder(spec, device=backend.device, num_threads=backend.num_threads)
