"""Completion in a shell: click's, of both programs."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main as srp_data
from training.cli.train import main as srp_train

PROGRAMS = {"srp-data": srp_data, "srp-train": srp_train}


def complete(words: str) -> list[str]:
    """Complete the last of some words, as bash asks for it."""
    program = words.split()[0]
    asked = {
        f"_{program.upper().replace('-', '_')}_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = CliRunner().invoke(PROGRAMS[program], [], prog_name=program, env=asked)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("srp-train fr", ["plain,from"]),
        ("srp-train from shards --policy wh", ["plain,whole"]),
        ("srp-train from shards --epo", ["plain,--epochs"]),
        ("srp-train from sh", ["dir,sh"]),
        ("srp-train from -c run.to", ["file,run.to"]),
        ("srp-train bench st", ["plain,step"]),
        ("srp-data build-sh", ["plain,build-shards"]),
        ("srp-data build-shards images shards --codec j", ["plain,jpeg"]),
        ("srp-data verify sh", ["dir,sh"]),
    ],
)
def test_words_are_completed(words: str, found: list[str]) -> None:
    assert complete(words) == found


def test_completing_opens_no_log_and_reads_no_file_of_options(tmp_path: Path) -> None:
    assert complete(f"srp-train --log {tmp_path}/log fr") == ["plain,from"]
    assert complete(f"srp-train from -c {tmp_path}/none --epo") == ["plain,--epochs"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_shell_is_told_how_to_ask(program: str) -> None:
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    result = CliRunner().invoke(
        PROGRAMS[program], [], prog_name=program, env={variable: "zsh_source"}
    )
    assert f"{variable}=zsh_complete {program}" in result.stdout
    readme = Path(__file__).parents[1] / "training/README.md"
    assert f'eval "$({variable}=bash_source {program})"' in readme.read_text(encoding="utf-8")
