"""How work says how far it has come: one object, passed down, silent or shown by a terminal."""


class Progress:
    """Says nothing; `pipeline.common.console.shown_progress` makes the one that shows bars."""

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Say how far a stage is; cheap enough for every batch.

        Args:
            stage: Its name, as a bar shows it; a stage that starts again reuses its bar.
            done: Units done, of `total`; `done == total` ends the stage.
            total: Units of the stage; 0 if unknown.
            figures: Text beside the bar, such as `loss 1.234`.
        """

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        """Say that something has happened once, such as the end of an epoch.

        Args:
            name: Of the event, in the log.
            text: Line for people; empty prints none.
            fields: Of the log's line.
        """


SILENT = Progress()
