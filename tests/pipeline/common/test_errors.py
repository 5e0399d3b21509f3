import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import few, printable


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\nb \udcff é", "a b \\udcff é"),
        ("\x1b[2J\x1b]0;title\x07.jpg", "\\x1b[2J\\x1b]0;title\\x07.jpg"),
        ("\x9b31m", "\\x9b31m"),  # one character that begins an escape sequence
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("a\u2066b\u2069\u200f", "a\\u2066b\\u2069\\u200f"),
        ("\x00\x08\x7f\ufeff", "\\x00\\x08\\x7f\\ufeff"),
        ("a\r\x85\u2028b", "a b"),
        ("猫 \N{CAT FACE} קרוקודיל", "猫 \N{CAT FACE} קרוקודיל"),
    ],
)
def test_what_a_terminal_would_obey_is_spelt_out(text: str, printed: str) -> None:
    assert printable(text) == printed


@given(st.text(st.characters(codec=None, categories=None)))
def test_any_text_is_printable_on_one_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert printable(shown) == shown


def test_of_many_names_a_few_are_listed_and_the_rest_is_counted() -> None:
    assert few(["a"]) == "a"
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
