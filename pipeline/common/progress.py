"""Progress of the work: one object that is passed down, silent or shown in a terminal."""

from collections.abc import Mapping
from itertools import accumulate


class Progress:
    """Silent; `pipeline.command.console.shown_progress` makes one that shows bars."""

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
            fields: Further fields of the log's line. `row`, a text for each heading, is not one: in
                a terminal it is a row of a table in place of the text.
        """


class Weighted(Progress):
    """Forwards the progress of stages, one after the other, and shows the whole, by their cost."""

    def __init__(self, progress: Progress, whole: str, costs: Mapping[str, float]) -> None:
        """Weigh the stages.

        Args:
            progress: Shows them.
            whole: Name of the bar of all of them.
            costs: Cost of each stage, in order, in the unit of that bar; others do not move it.
        """
        self._progress, self._whole = progress, whole
        self._total = max(1, round(sum(costs.values())))
        ends = accumulate(costs.values())
        self._spans = {
            name: (end - cost, cost) for (name, cost), end in zip(costs.items(), ends, strict=True)
        }

    def update(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """Forward it, and move the whole."""
        self._progress.update(stage, done, total, figures)
        if stage in self._spans:
            before, cost = self._spans[stage]
            at = min(self._total, round(before + cost * done / max(1, total)))
            self._progress.update(self._whole, at, self._total)

    def event(self, name: str, /, text: str = "", **fields: object) -> None:
        """Forward it."""
        self._progress.event(name, text, **fields)


SILENT = Progress()
