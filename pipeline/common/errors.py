"""Every error that srp raises on purpose, and the exit status of each.

    SrpError
    ├── ConfigError        2  an option's value cannot work
    │   └── EveryRankError 2  the same, raised by every process of a run; rank 0 knows why
    ├── SourceError        2  the source images are missing or not laid out as expected
    ├── DownloadError      2  a data set could not be fetched
    ├── StoreError         2  a store at an address cannot be reached, or refuses
    ├── CheckpointError    2  a checkpoint does not fit what it is used for
    ├── VerificationError  3  bytes on disk are not what their manifest or digest says
    ├── RejectsError       4  more images were rejected than allowed
    ├── NoRoomError        1  the output cannot fit on the disk
    ├── DivergedError      1  the training loss is no longer finite
    ├── LostRankError      1  another process of a run died or hangs; --resume continues it
    ├── ToldError          -  another process of a run says why all end, and has its status
    ├── StoppedRunError  130  training was interrupted and saved; --resume continues it
    │   └── PreemptedRunError  75  the same, by SIGTERM: the cluster takes the machine back
    └── ImageError         -  one image cannot be used; the build turns it into a rejection

Every message follows one template: rule; got value where. Fix. The commands print it on one
line and exit with the status; anything else that escapes is a bug, and status 1. `printable`,
`escaped` and `few` put names into messages.
"""

from collections.abc import Sequence


class SrpError(Exception):
    """Base of everything raised on purpose.

    Attributes:
        exit_status: Exit status of the program.
        is_agreed: Whether the processes of a run have agreed that this one prints it.
    """

    exit_status = 1
    is_agreed = False


class ConfigError(SrpError):
    """An option's value cannot work."""

    exit_status = 2


class EveryRankError(ConfigError):
    """An option's value cannot work; every process of a run raises this, and rank 0 prints it."""


class SourceError(SrpError):
    """The source images are missing or not laid out as expected."""

    exit_status = 2


class DownloadError(SrpError):
    """A data set could not be fetched."""

    exit_status = 2


class StoreError(SrpError):
    """A store at an address cannot be reached, or does not let us read or write."""

    exit_status = 2


class CheckpointError(SrpError):
    """A checkpoint does not fit what it is used for."""

    exit_status = 2


class VerificationError(SrpError):
    """Bytes on disk are not what their manifest or digest says."""

    exit_status = 3


class RejectsError(SrpError):
    """More images were rejected than allowed."""

    exit_status = 4


class NoRoomError(SrpError):
    """The output cannot fit on the disk."""


class DivergedError(SrpError):
    """The training loss is no longer finite.

    Attributes:
        keys: Keys of the samples whose loss is not finite, if known.
    """

    def __init__(self, message: str, *, keys: tuple[str, ...] = ()) -> None:
        """Keep the keys of the samples."""
        super().__init__(message)
        self.keys = keys


class StoppedRunError(SrpError):
    """Training was interrupted between two steps; its state is saved."""

    exit_status = 130


class PreemptedRunError(StoppedRunError):
    """Training was stopped by SIGTERM, which a cluster sends before it takes a machine back."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: retry later


class LostRankError(SrpError):
    """Another process of a run died, or hangs; steps since the last checkpoint are lost."""


class ToldError(SrpError):
    """Another process of a run says why all end; this one ends in silence."""

    def __init__(self, exit_status: int) -> None:
        """Take the status of the error that is not printed."""
        super().__init__("another process of this run says why it ended.")
        self.exit_status = exit_status


class ImageError(SrpError):
    """One image cannot be used; the build rejects it by name."""


def printable(text: str) -> str:
    """Put a text on one line, safe for a terminal; a file name may hold anything."""
    return escaped(" ".join(text.split()))


def escaped(text: str) -> str:
    """Escape characters that are not printable, and keep every space.

    They are escape sequences, which a terminal would obey, marks that change the direction of
    writing, and bytes that are no text.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def few(names: Sequence[str]) -> str:
    """List the first names, and count the rest."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest
