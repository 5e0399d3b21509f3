"""What training shows on the terminal: on rank 0 alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.console import shown_progress
from pipeline.common.progress import SILENT, Progress


@contextmanager
def rank_progress(is_main: bool) -> Iterator[Progress]:
    """Show bars on rank 0, and nothing on the others."""
    if is_main:
        with shown_progress("images/s") as progress:
            yield progress
    else:
        yield SILENT
