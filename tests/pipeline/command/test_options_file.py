import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.command.options_file import options_text, read_options
from pipeline.command.settings import setting
from pipeline.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    epochs: int = setting(20, "Epochs.", low=1)
    lr: float = setting(0.1, "Rate.")
    amp: bool = setting(True, "Short numbers.")
    opt: str = setting("sgd", "Optimizer.")
    mean: tuple[float, float, float] = setting((0.1, 0.2, 0.3), "Mean.")
    fold: int | None = setting(None, "Fold.")


TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
SCALARS = st.one_of(
    st.booleans(), TEXTS, st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS).map(tuple))


@given(st.dictionaries(st.from_regex(r"\A[a-z_]+\Z"), VALUES), st.lists(TEXTS).map(tuple))
def test_fields_survive_their_text_and_a_heading_is_only_comment(
    fields: dict[str, Any], heading: tuple[str, ...]
) -> None:
    found = tomllib.loads(options_text(fields, heading))
    assert {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()} == fields


def test_a_field_without_a_value_has_no_line() -> None:
    assert options_text({"fold": None, "amp": True}, ("one\ntwo",)) == "# one two\namp = true\n"


def test_values_are_read_in_their_options_types(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('epochs = 5\nlr = 1\nmean = [0, 0.5, 1]\nopt = "adamw"\namp = false\n')
    values = read_options(path, Config)
    assert values == {"epochs": 5, "lr": 1.0, "mean": (0.0, 0.5, 1.0), "opt": "adamw", "amp": False}
    assert isinstance(values["lr"], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 5", "must be an option; got 'epoch' in FILE. Write epochs."),
        ("[train]\nepochs = 5", "must be an option; got 'train' in FILE. Leave it out."),
        ("epochs = 5.5", "epochs must have the option's type; got 5.5 in FILE: Expected `int`, "),
        ("epochs = true", "epochs must have the option's type; got True in FILE: "),
        ('lr = "high"', "lr must have the option's type; got 'high' in FILE: "),
        ("mean = [1]", "mean must have the option's type; got [1] in FILE: "),
        ("epochs = ", "a file of options must be TOML; got FILE: Invalid value"),
        ("epochs = 1\nepochs = 2", "a file of options must be TOML; got FILE: Cannot overwrite"),
    ],
)
def test_a_file_that_cannot_work_is_named_with_its_key(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_options(path, Config)
    assert message.replace("FILE", str(path)) in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be readable; got .*none: No such file or dir"):
        read_options(tmp_path / "none", Config)
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"must be TOML; got .*bytes: 'utf-8' codec can't"):
        read_options(tmp_path / "bytes", Config)
