"""How names are put into messages."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """Put a text that may hold file names on one line that says to a terminal what it says to us.

    What is not printable is spelt out: escape sequences, which terminals obey, marks that turn the
    direction of writing, and bytes that are no text.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(text.split())
    )


def few(names: Sequence[str]) -> str:
    """List the first names, and count the rest."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
