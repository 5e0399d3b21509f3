"""`srp-data bench plan`: what data sets of some sizes take, computed from rates that were measured.

Pure arithmetic: a `PlanBenchConfig` and the bytes of a sample become tables. `bench/README.md` has
the measurements behind the constants; rates and prices are options.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.bench.config import PlanBenchConfig
from pipeline.bench.limits import Demand, Limit, limits_of
from pipeline.build.config import BuildConfig
from pipeline.build.prepare import data_spec
from pipeline.command.results import Row
from pipeline.common.errors import ConfigError
from pipeline.format.spec import CODECS, DataSpec
from pipeline.format.ustar import TAR_END
from pipeline.stream.folder import ShardFolder

NAMES = {1_331_167: "ImageNet-1k", 14_197_122: "ImageNet-21k", 1_000_000_000: "a billion"}
COUNTS = (1, 8, 64)  # cores, and GPUs

# Of canvases of 336 px; the shares are those of canvases that were not enlarged.
# Source: shards/README.md, the table of codecs.
SHARES = {"raw": 1.0, "zstd": 0.39, "png": 0.52, "webp": 0.35, "jpeg": 0.18}
ENCODE_MS = {"raw": 0.0, "zstd": 1.4, "png": 11.0, "webp": 29.0, "jpeg": 0.57}
DECODE_MS = {"raw": 0.0, "zstd": 0.50, "png": 2.9, "webp": 1.8, "jpeg": 0.57}
COPY_MS = 0.04  # CPU time of a raw sample in a batch of canvases; bench/README.md, Loading
TAR_BYTES = 4096  # headers, paddings and small members of a sample
_MEASURED_PIXELS = 3 * 336**2


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to store a sample.

    Attributes:
        layout: `tensors` or `canvas`.
        codec: Codec of the canvases.
        sample_bytes: Mean bytes of a sample in its tar.
        encode_ms: CPU time to encode it, beyond that of `raw`.
        decode_ms: CPU time to bring it into a batch of canvases.
    """

    layout: str
    codec: str
    sample_bytes: float
    encode_ms: float
    decode_ms: float

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.layout}, {self.codec}"


class Section(NamedTuple):
    """One table and what it is of."""

    title: str
    rows: list[Row]


def bench_plan(config: PlanBenchConfig) -> tuple[list[Section], dict[str, Any]]:
    """Compute the tables, and say from what.

    Raises:
        ConfigError: If the shards hold no sample, or `--codec` cannot be that of their layout.
    """
    spec, measured = _spec_of(config)
    forms = forms_of(spec, measured_bytes=measured)
    chosen = _chosen(config, spec, forms)
    shard_bytes = ((config.shard_mib or spec.shard_mib) << 20) - len(TAR_END)
    demands = {
        (size, form.name): _demand(config, form, size, shard_bytes=shard_bytes)
        for size in config.sizes
        for form in forms
    }
    sections = [
        Section(
            "What is stored, and the hours to build it.", list(_stored(config, forms, demands))
        ),
        Section("What GPUs need, for any number of images.", list(_fed(config, forms))),
        Section("One epoch from an object store.", list(_read(config, forms, demands))),
        Section(f"The manifest, {chosen.name}.", list(_manifests(config, chosen, demands))),
        Section(f"What breaks first, {chosen.name}.", list(_broken(config, chosen, demands))),
    ]
    asked = {
        name: value for name, value in asdict(config).items() if name not in ("json", "shards")
    }
    return sections, {**asked, "spec": asdict(spec), "limits_of": chosen.name}


def _spec_of(config: PlanBenchConfig) -> tuple[DataSpec, float | None]:
    """Give the sizes to plan for, and the mean bytes of a sample where they were measured."""
    if config.shards is None:
        usual = BuildConfig(source=Path(), out=Path(), candidates="five")
        return data_spec(usual), None
    manifest = ShardFolder.open(config.shards).manifest
    num_samples = sum(len(shard.samples) for shard in manifest.shards)
    if not num_samples:
        raise ConfigError(
            f"a plan needs shards with samples; got 0 in {config.shards}. Build some, or leave "
            "SHARDS out."
        )
    return manifest.spec, sum(shard.num_bytes for shard in manifest.shards) / num_samples


def forms_of(spec: DataSpec, *, measured_bytes: float | None) -> list[Form]:
    """Compute what a sample takes in each layout and codec.

    Args:
        spec: Sizes and candidates.
        measured_bytes: Mean of the spec's own layout and codec; None computes it too.
    """
    layout, crop_bytes = spec.crop_layout, 3 * spec.crop_size**2
    coded = 3 * spec.canvas_size**2 + crop_bytes * len(layout.resized)
    glimpses = len(layout) * spec.glimpse_size**2
    crops = len(layout) * 4 * spec.crop_size**2
    forms = [
        Form(
            layout="tensors", codec="raw", sample_bytes=crops + TAR_BYTES, encode_ms=0.0,
            decode_ms=COPY_MS * crops / _MEASURED_PIXELS,
        ),
        *(
            Form(
                layout="canvas", codec=codec,
                sample_bytes=coded * SHARES[codec] + glimpses + TAR_BYTES,
                encode_ms=ENCODE_MS[codec] * coded / _MEASURED_PIXELS,
                decode_ms=(COPY_MS + DECODE_MS[codec]) * coded / _MEASURED_PIXELS,
            )
            for codec in CODECS
        ),
    ]  # fmt: skip
    if measured_bytes is None:
        return forms
    own = (spec.layout, spec.codec)
    return [
        replace(form, sample_bytes=measured_bytes) if (form.layout, form.codec) == own else form
        for form in forms
    ]


def _chosen(config: PlanBenchConfig, spec: DataSpec, forms: Sequence[Form]) -> Form:
    """Find the form whose limits are listed."""
    wanted = (spec.layout, config.codec or spec.codec)
    found = [form for form in forms if (form.layout, form.codec) == wanted]
    if not found:
        raise ConfigError(
            f"--layout tensors is raw; got --codec {config.codec} for the shards in "
            f"{config.shards}. Drop --codec."
        )
    return found[0]


def _demand(config: PlanBenchConfig, form: Form, size: int, *, shard_bytes: int) -> Demand:
    per_shard = max(1, int(shard_bytes // form.sample_bytes))
    num_bytes = size * form.sample_bytes
    num_gets = math.ceil(num_bytes / (config.get_mib * 2**20))
    return Demand(
        num_images=size,
        num_bytes=num_bytes,
        num_shards=math.ceil(size / per_shard),
        core_hours=size * (1 / config.core_rate + form.encode_ms / 1000) / 3600,
        num_gets=num_gets,
        epoch_cost=num_gets / 1000 * config.price_gets + num_bytes / 1e9 * config.price_egress,
        gbit_s_8=gbit_s(config, form, 8),
        read_cores_8=read_cores(config, form),
    )


def gbit_s(config: PlanBenchConfig, form: Form, num_gpus: int) -> float:
    """Compute the network that keeps some GPUs busy."""
    return num_gpus * config.gpu_rate * form.sample_bytes * 8 / 1e9


def read_cores(config: PlanBenchConfig, form: Form) -> float:
    """Compute the cores that read and decode for eight GPUs."""
    return 8 * config.gpu_rate * form.decode_ms / 1000


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def name_of(size: int) -> str:
    """Name a data set by its number of images."""
    return NAMES.get(size, f"{size:,} images")


Demands = dict[tuple[int, str], Demand]


def _each(
    config: PlanBenchConfig, forms: Sequence[Form], demands: Demands
) -> Iterator[tuple[str, dict[str, str], Form, Demand]]:
    """Give the row's name and labels, form and demand of each size and form."""
    for size in config.sizes:
        for form in forms:
            labels = {"data": name_of(size), "layout, codec": form.name}
            yield f"{name_of(size)}, {form.name}", labels, form, demands[size, form.name]


def _stored(config: PlanBenchConfig, forms: Sequence[Form], demands: Demands) -> Iterator[Row]:
    for name, labels, form, demand in _each(config, forms, demands):
        figures = {
            "images": demand.num_images,
            "kB a sample": form.sample_bytes / 1000,
            "TB": demand.num_bytes / 1e12,
            "shards": demand.num_shards,
            "$ a month": demand.num_bytes / 1e9 * config.price_month,
            **{f"hours, {_many(count, 'core')}": demand.core_hours / count for count in COUNTS},
        }
        if config.gpu_decode_rate:
            hours = demand.num_images / config.gpu_decode_rate / 3600
            figures |= {f"hours, {_many(count, 'GPU')}": hours / count for count in COUNTS}
        yield Row(name=f"stored: {name}", labels=labels, figures=figures)


def _fed(config: PlanBenchConfig, forms: Sequence[Form]) -> Iterator[Row]:
    for form in forms:
        figures = {
            **{f"Gbit/s, {_many(count, 'GPU')}": gbit_s(config, form, count) for count in COUNTS},
            "cores to read for 8 GPUs": read_cores(config, form),
        }
        yield Row(name=f"fed: {form.name}", labels={"layout, codec": form.name}, figures=figures)


def _read(config: PlanBenchConfig, forms: Sequence[Form], demands: Demands) -> Iterator[Row]:
    for name, labels, _, demand in _each(config, forms, demands):
        hours = demand.num_bytes * 8 / 1e9 / config.net_gbit / 3600
        figures = {
            "requests": demand.num_gets,
            "$, requests": demand.num_gets / 1000 * config.price_gets,
            "$, out of the region": demand.num_bytes / 1e9 * config.price_egress,
            f"hours at {config.net_gbit:g} Gbit/s": hours,
            "hours, 8 GPUs train": demand.num_images / (8 * config.gpu_rate) / 3600,
        }
        yield Row(name=f"epoch: {name}", labels=labels, figures=figures)


def _manifests(config: PlanBenchConfig, chosen: Form, demands: Demands) -> Iterator[Row]:
    for size in config.sizes:
        demand = demands[size, chosen.name]
        figures = {
            "shards": demand.num_shards,
            "in one file, MB": demand.inline_bytes / 1e6,
            "in memory, MB": demand.inline_memory / 1e6,
            "to open, s": demand.inline_start_s,
            "an index a shard: manifest, MB": demand.sharded_bytes / 1e6,
            "memory, MB": demand.sharded_memory / 1e6,
            "opened in, s": demand.sharded_start_s,
            "read by index, MB": demand.reader_memory / 1e6,
        }
        yield Row(
            name=f"manifest: {name_of(size)}", labels={"data": name_of(size)}, figures=figures
        )


def _broken(config: PlanBenchConfig, chosen: Form, demands: Demands) -> Iterator[Row]:
    for size in config.sizes:
        reached = [
            limit for limit in limits_of(config, demands[size, chosen.name]) if limit.is_over
        ]
        for place, limit in enumerate(sorted(reached, key=lambda each: each.from_images), start=1):
            yield _limit_row(name_of(size), place, limit)
        if not reached:
            labels = {"data": name_of(size), "what": "nothing", "needed": "", "limit": "",
                      "from, images": "", "what helps": ""}  # fmt: skip
            yield Row(name=f"limit: {name_of(size)}", labels=labels)


def _limit_row(data: str, place: int, limit: Limit) -> Row:
    labels = {
        "data": data,
        "what": limit.what,
        "needed": f"{limit.needed:,.3g} {limit.unit}" if limit.needed < 1000
        else f"{limit.needed:,.0f} {limit.unit}",
        "limit": f"{limit.limit:,.6g} {limit.unit}",
        "from, images": f"{limit.from_images:,.0f}",
        "what helps": limit.fix,
    }  # fmt: skip
    return Row(name=f"limit: {data}, {place}", labels=labels)
