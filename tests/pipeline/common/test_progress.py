from pipeline.common.progress import Progress, Weighted


def test_the_whole_moves_by_the_cost_of_stages_and_those_that_were_done_before_count() -> None:
    told: list[tuple[object, ...]] = []

    class Told(Progress):
        def update(self, *now: object) -> None:
            told.append(now)

        def event(self, name: str, /, text: str = "", **fields: object) -> None:
            told.append((name, text, fields))

    shown = Weighted(Told(), "all", {"long": 30, "short": 10})
    shown.update("long", 1, 3, "loss 1")
    shown.update("other", 1, 2)
    shown.event("epoch", "a line", epoch=1)
    shown.update("long", 0, 0)  # of a stage whose length is not known yet
    assert told == [
        ("long", 1, 3, "loss 1"), ("all", 10, 40), ("other", 1, 2, ""),
        ("epoch", "a line", {"epoch": 1}), ("long", 0, 0, ""), ("all", 0, 40),
    ]  # fmt: skip
    told.clear()
    resumed = Weighted(Told(), "all", {"long": 30, "short": 10})
    resumed.update("short", 1, 2)
    assert told == [("short", 1, 2, ""), ("all", 35, 40)]
