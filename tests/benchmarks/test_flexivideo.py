"""FlexiVideo's ablation: what its report says of runs, and one arm of it, small and real."""

import pytest

from benchmarks.flexivideo import cuts, report
from benchmarks.flexivideo.__main__ import parse_arguments
from benchmarks.flexivideo.runs import (
    ARMS,
    CLEAN,
    FOOTAGE,
    HALFWAY,
    FinishedRun,
    Scale,
    keep_finished,
    read,
    train_and_measure,
)
from benchmarks.records import RunRecords

TOKENS = {"pairs": 48.0, "sixes": 16.0}


def run(arm, seed, accuracy, tokens=None, disturbed=0.5, disturbed_tokens=90.0):
    """A finished run that answers every kind of question alike."""

    def measured(accuracy, tokens):
        kinds = dict.fromkeys(report.KINDS, accuracy)
        return kinds | dict.fromkeys(report.COSTS, 1.0) | {"visual_tokens": tokens}

    own = tokens or TOKENS.get(arm, 28.0)
    clean = {CLEAN: measured(accuracy, own), HALFWAY: measured(accuracy / 2, own)}
    return FinishedRun(arm, seed, {name: measured(disturbed, disturbed_tokens) for name in FOOTAGE} | clean)


def seeds(arm, *accuracies, **kw):
    return [run(arm, seed, accuracy, **kw) for seed, accuracy in enumerate(accuracies)]


WINDOWS = [*seeds("pairs", 0.70, 0.72, 0.71), *seeds("sixes", 0.50, 0.52, 0.51)]


@pytest.mark.parametrize(
    ("dynamic", "says"),
    [
        (seeds("dynamic", 0.80, 0.83, 0.81), ["beats both windows", "28.0 visual tokens a clip, between theirs"]),
        (seeds("dynamic", 0.60, 0.63, 0.61), ["beats sixes alone, and is worse than pairs"]),
        (seeds("dynamic", 0.40, 0.43, 0.41), ["beats neither, and is worse than pairs and sixes"]),
        (seeds("dynamic", 0.30, 0.99, 0.70), ["beats neither (sign"]),
        (seeds("dynamic", 0.80, 0.83, 0.81, tokens=60.0), ["beats both windows", "not between theirs"]),
        (seeds("dynamic", 0.80), ["cannot be told yet"]),
        ([], ["cannot be told yet"]),
    ],
    ids=["both", "sixes", "neither", "uncertain", "more tokens", "one seed", "missing"],
)
def test_the_claim_is_told_as_the_numbers_are(dynamic, says):
    told = report.claim([*WINDOWS, *dynamic], "dynamic")
    assert all(words in told for words in says), told


def test_what_a_rule_buys_is_the_difference_from_the_pixel_rule_seed_by_seed():
    pixels = seeds("dynamic", 0.8, 0.9, disturbed=0.5)
    adaptive = seeds("adaptive", 0.8, 0.9, disturbed=0.7, disturbed_tokens=30.0)
    rows = {row[0]: row[1:] for row in report.breaks_table([*pixels, *adaptive])}
    assert rows[CLEAN][0] == "x 1.00"
    tokens, lost, gained, saved, *features = rows["noise 16"]
    assert (tokens, gained, saved) == ("x 3.21", "**+0.200 ± 0.000**", "-60.0")
    assert lost.startswith("-0.350") and features == ["", ""]


def test_tables_and_figure_are_drawn_of_whatever_is_there(tmp_path):
    some = [*WINDOWS, *seeds("features", 0.5, 0.6, 0.7)]
    for runs in (WINDOWS, seeds("dynamic", 0.5), some):
        for rows in (report.accuracy_table(runs), report.cost_table(runs), report.difference_table(runs)):
            assert len({len(row) for row in rows}) <= 1
    report.plot(some, tmp_path / "tokens.png")
    assert (tmp_path / "tokens.png").stat().st_size > 10_000


def test_under_noise_and_shake_the_pixel_rule_cuts_everywhere_and_the_adaptive_threshold_where_something_happens():
    compared = cuts.rules(None)
    rows = {row[0]: dict(zip(compared, row[1:], strict=True)) for row in cuts.table(compared, None, clips=6)}
    f1 = {footage: {rule: float(cell.split()[0]) for rule, cell in row.items()} for footage, row in rows.items()}
    assert set(f1[CLEAN].values()) == {1.0}
    for footage in ("noise 16", "shake 3 px"):
        assert f1[footage]["dynamic"] < 0.6 < 0.9 < f1[footage]["adaptive"]


@pytest.mark.parametrize(("found", "score"), [({3, 7}, 1.0), ({3}, 2 / 3), ({3, 7, 9, 11}, 2 / 3), (set(), 0.0)])
def test_f1_counts_missed_changes_and_false_cuts(found, score):
    assert cuts.f1(found, {3, 7}) == pytest.approx(score)


def test_what_is_not_given_is_the_whole_program(tmp_path):
    options = parse_arguments(["trainer.steps=2", "--home", str(tmp_path), "--seeds", "4", "5"])
    assert Scale(options.clips, options.held_out) == Scale(512, 128)
    assert (options.arms, options.seeds, options.overrides) == (list(ARMS), [4, 5], ["trainer.steps=2"])


@pytest.mark.ray
@pytest.mark.deepspeed
def test_an_arm_is_fine_tuned_measured_and_found_again(tmp_path):
    arguments = (
        "sixes",
        0,
        tmp_path,
        "qwen2_5_vl",
        Scale(train_clips=16, held_out_clips=4),
        ("trainer.steps=2", "trainer.save_every=1"),
    )
    path = train_and_measure(*arguments)
    records, asked = RunRecords(tmp_path / "out" / "runs.jsonl", []), (["sixes", "pairs"], [0], "qwen2_5_vl")
    keep_finished(records, tmp_path, *asked)
    (found,) = read(records, *asked)
    assert found.measured.keys() == {*FOOTAGE, HALFWAY}
    clean = found.measured[CLEAN]
    assert {*report.KINDS, *report.COSTS} <= clean.keys()
    assert clean["scenes"] == 4 and clean["visual_tokens"] == 4 * 4  # 24 frames; 56 x 56 pixels are 2 x 2 tokens
    assert 0 <= clean["accuracy"] <= 1 and clean["gflops"] > 0 and clean["peak_mib"] > 0
    written = path.stat().st_mtime_ns
    assert train_and_measure(*arguments) == path and path.stat().st_mtime_ns == written
