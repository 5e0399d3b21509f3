import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from specs import spec_of

from pipeline.build.config import BuildConfig
from pipeline.common.errors import ConfigError
from pipeline.decode import open_decoder
from pipeline.decode.pillow import PillowDecoder, pillow_name

REPO = Path(__file__).resolve().parents[3]

SPEC = spec_of(canvas_px=8, crop_px=8, max_pixels=10**6)
SIMD = replace(SPEC, decoder="pillow-simd")
DALI = replace(SPEC, decoder="dali")


@pytest.fixture(autouse=True)
def _own_cache() -> Iterator[None]:
    """Keep what one test opened from the others."""
    open_decoder.cache_clear()
    yield
    open_decoder.cache_clear()


def test_pillow_is_the_pillow_that_is_installed() -> None:
    decoder = open_decoder(SPEC)
    assert isinstance(decoder, PillowDecoder)
    assert decoder.library.startswith(f"{pillow_name()}, ")


def test_pillow_simd_opens_where_it_is_the_installed_pillow_and_only_there() -> None:
    if pillow_name().startswith("pillow-simd"):
        assert open_decoder(SIMD).library.startswith("pillow-simd ")
    else:
        with pytest.raises(ConfigError, match=rf"; got {pillow_name()}\. Make an environment"):
            open_decoder(SIMD)


def test_pillow_simd_opens_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decode.pillow_name", lambda: "pillow-simd 9.5.0.post2")
    assert isinstance(open_decoder(SIMD), PillowDecoder)


def test_pillow_simd_is_not_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decode.pillow_name", lambda: "pillow 13.0.0")
    with pytest.raises(ConfigError) as refusal:
        open_decoder(SIMD)
    assert str(refusal.value) == (
        "--decoder pillow-simd needs pillow-simd in place of Pillow; got pillow 13.0.0. "
        "Make an environment for it with make simd, or use --decoder pillow."
    )


@pytest.mark.parametrize("missing", ["nvidia", "nvidia.dali"])
def test_without_dali_the_command_that_installs_it_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pipeline.decode.dali", "nvidia.dali"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError) as refusal:
        open_decoder(DALI)
    assert str(refusal.value).startswith("--decoder dali needs NVIDIA DALI; got ")
    assert str(refusal.value).endswith(". Install it with: pip install 'srp[dali]'")


def test_a_dali_that_lacks_a_library_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "nvidia" / "dali").mkdir(parents=True)
    (tmp_path / "nvidia" / "__init__.py").touch()
    broken = "raise OSError('libdali.so: cannot open shared object file')"
    (tmp_path / "nvidia" / "dali" / "__init__.py").write_text(broken)
    command = ["-m", "pipeline.cli.main", "build-shards", str(tmp_path), str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, *command, "--decoder=dali"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: --decoder dali needs NVIDIA DALI; got libdali.so: cannot open shared object file. "
        "Install it with: pip install 'srp[dali]'\n"
    )


def test_a_module_of_ours_that_is_missing_is_our_mistake_and_not_dalis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pipeline.decode.dali", None)
    with pytest.raises(ModuleNotFoundError) as mistake:
        open_decoder(DALI)
    assert mistake.value.name == "pipeline.decode.dali"


def test_dali_gets_its_device_and_threads() -> None:
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'srp[dali]'")
    decoder: Any = open_decoder(DALI, num_threads=3)
    assert decoder.library.startswith("dali ")
    assert ", pillow" in decoder.library
    assert decoder._num_threads == 3


def test_a_process_opens_each_decoder_once() -> None:
    decoder = open_decoder(SPEC)
    assert open_decoder(SPEC) is decoder
    assert open_decoder(SPEC, 2) is not decoder


def config(**options: Any) -> BuildConfig:
    return BuildConfig(source=Path("in"), out=Path("out"), **options)


@pytest.mark.parametrize("decoder", ["pillow", "pillow-simd"])
def test_only_dali_can_have_a_gpu(decoder: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config(decoder=decoder, device="gpu")
    assert str(refusal.value) == (
        f"--device gpu needs --decoder dali; got --decoder {decoder}. "
        "Add --decoder dali, or drop --device gpu."
    )
    assert config(decoder="dali", device="gpu").device == "gpu"


def test_dali_makes_no_drafts() -> None:
    with pytest.raises(ConfigError) as refusal:
        config(decoder="dali", draft=True)
    assert str(refusal.value) == (
        "--draft needs --decoder pillow or pillow-simd; got --decoder dali. Drop --draft."
    )
    assert config(decoder="pillow", draft=True).draft


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^--device must be one of cpu, gpu; got 'tpu'\.$"):
        config(decoder="dali", device="tpu")
