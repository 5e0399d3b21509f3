"""Progress of the work: one object that is passed down, silent or shown in a terminal."""


class Progress:
    """Silent; `pipeline.common.console.shown_progress` makes one that shows bars."""

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Report a stage; cheap enough for every batch.

        Args:
            stage: Name of the stage and its bar; a stage that starts again reuses its bar.
            done: Units done; `done == total` ends the stage.
            total: Units of the stage; 0 if unknown.
            figures: Text next to the bar, for example `loss 1.234`.
        """

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        """Report an event, for example the end of an epoch.

        Args:
            name: Name of the event in the log.
            text: Line for people; empty prints nothing.
            fields: Further fields of the log's line.
        """


SILENT = Progress()
