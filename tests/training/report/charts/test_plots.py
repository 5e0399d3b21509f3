"""Charts are equal bytes from equal runs, name their arms, and hold text, not markup."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from training.report.charts import plots
from training.report.charts.accuracy import accuracy_by_macs, study_marks
from training.study.finished import Arm, FinishedRun, group_arms

MakeRun = Callable[..., FinishedRun]


def by_macs(arms: Sequence[Arm]) -> str:
    return accuracy_by_macs(study_marks(arms))


def test_every_chart_is_the_same_bytes_again_and_names_its_arms(runs: list[FinishedRun]) -> None:
    arms = group_arms(runs)
    for draw in (plots.learning_curves, plots.glimpse_sizes, plots.crop_shares, by_macs):
        svg = draw(arms)
        assert svg is not None
        assert svg == draw(group_arms(runs[::-1]))
        assert svg.startswith("<svg ")
    assert all(f">{arm.name}<" in plots.learning_curves(arms) for arm in arms)
    named = ("expected-g16", "whole", "oracle", "any crop right")
    assert all(f">{name}<" in by_macs(arms) for name in named)


def test_the_curve_of_a_chooser_begins_after_the_epochs_that_explored(make_run: MakeRun) -> None:
    chooser = make_run("chooser-s0", policy="distilled", seed=0)
    config = replace(chooser.record.config, epochs=52, explore_epochs=50)
    (arm,) = group_arms([replace(chooser, record=replace(chooser.record, config=config))])
    assert ">52<" in plots.learning_curves([arm])


def test_many_arms_get_a_panel_for_each_family_and_all_keep_their_names(make_run: MakeRun) -> None:
    many = [
        make_run(f"{policy}-g{px}-s0", policy=policy, glimpse_size=px, seed=0)
        for policy in ("blend", "expected") for px in range(7, 13)
    ]  # fmt: skip
    arms = group_arms([*many, make_run("whole-s0", policy="whole", seed=0)])
    svg = plots.learning_curves(arms)
    names = [arm.name for arm in arms]
    assert all(f">{label}<" in svg for label in (*names, "blend", "expected", "no choice"))


def test_no_two_charts_share_an_id(runs: list[FinishedRun]) -> None:
    arms = group_arms(runs)
    names = runs[0].record.data.class_names
    charts = [
        plots.learning_curves(arms), plots.glimpse_sizes(arms), plots.crop_shares(arms),
        by_macs(arms), plots.confusion(runs[0].evaluation, names),
    ]  # fmt: skip
    ids = [{part.split('"')[0] for part in str(svg).split(' id="')[1:]} for svg in charts]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_names_are_text_in_a_chart_not_markup_and_not_formulas(make_run: MakeRun) -> None:
    svg = plots.learning_curves(group_arms([make_run("<b>&$x_1$"), make_run("_hidden")]))
    assert "&lt;b&gt;&amp;$x_1$" in svg
    assert "_hidden" in svg


def test_a_chart_is_left_out_where_it_would_say_nothing(make_run: MakeRun) -> None:
    run = make_run("whole-s0", policy="whole", seed=0)
    arms = group_arms([run])
    assert plots.glimpse_sizes(arms) is None
    assert plots.crop_shares(arms) is None
    assert plots.confusion(run.evaluation, [str(number) for number in range(41)]) is None
