"""`retake compare`: paired differences where two runs filmed the same things, and a clear word where not."""

import csv
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from loop.cli import app
from loop.compare import Arm, arms_of, compare
from loop.compare_text import COLUMNS, flat_rows, table
from loop.errors import UserError
from loop.statistics import bootstrap_difference, bootstrap_mean
from tests.recorded_run import HARD, record


def two(tmp_path, **other):
    """The arms `one` and `other`; the second run differs in what is given."""
    return [
        Arm("one", (record(tmp_path / "one"),)),
        Arm("other", (record(tmp_path / "other", **{"gain": 0.15, **other}),)),
    ]


def test_a_difference_is_taken_take_by_take(tmp_path):
    found = compare(two(tmp_path))
    cell = found.cells["oracle_total", 2, "other"]
    assert cell.value == pytest.approx(0.355 + 0.3)  # the prompts' mean, half of the takes .01 more, 2 × .15
    told = cell.difference
    assert told.paired and (told.num_takes, told.num_prompts, told.note) == (8, 4, "")
    # every take gained .1 more: the prompts differ by .3, and nothing of that is left in the interval
    assert [told.interval.value, told.interval.low, told.interval.high] == pytest.approx([0.1] * 3)
    assert cell.high - cell.low > 0.2
    assert found.cells["oracle_total", 1, "one"].difference is None and not found.notes
    assert "real_oracle_total" not in found.metrics
    assert compare(two_again(tmp_path), ["real_oracle_total"]).metrics == ("real_oracle_total",)


def two_again(tmp_path):
    return arms_of([str(tmp_path / "one"), str(tmp_path / "other")], [])


def test_the_interval_is_drawn_over_prompts(tmp_path):
    gains = dict(zip(HARD, (0.0, 0.1, 0.2, 0.3), strict=True))
    told = compare(two(tmp_path, total=lambda p, n, r: HARD[p] + 0.01 * n + 0.1 * r + gains[p])).cells[
        "oracle_total", 1, "other"
    ]
    expected = bootstrap_mean([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3], list("aabbccdd"), seed=0)
    assert told.difference.interval.value == pytest.approx(0.15)
    assert 0 <= told.difference.interval.low < 0.1 < 0.2 < told.difference.interval.high <= 0.3
    # names of the prompts sort in another order than they are filmed, which moves single draws alone
    assert told.difference.interval.low == pytest.approx(expected.low, abs=0.03)


def test_win_rates_are_paired_under_one_judge_and_one_opponent(tmp_path):
    found = compare(two(tmp_path, wins=1.0))
    cell = found.cells["win_rate_vs_base", 2, "other"]
    assert cell.value == pytest.approx(0.625)  # 2 of 8 takes win, 6 are undecided; of the other, 2 at .75
    assert cell.difference.interval.value == pytest.approx(0.0625) and cell.difference.paired
    # round 1 of both was compared with the same base, round 2 with each run's own round 1
    assert found.cells["win_rate_vs_previous", 1, "other"].difference.interval is not None
    told = found.cells["win_rate_vs_previous", 2, "other"].difference
    assert told.interval is None and "own previous round" in told.note
    assert found.cells["judge_accuracy", 1, "other"].difference.note == "no values of single takes are stored"


@pytest.mark.parametrize(
    ("other", "metric", "note"),
    [
        ({"judge": "judge-b"}, "win_rate_vs_base", "other judges (judge-a and judge-b)"),
        ({"judge": "judge-b"}, "fool_rate", "other judges"),
        ({"base": "tiny/another"}, "win_rate_vs_base", "the bases differ"),
    ],
)
def test_what_other_judges_or_opponents_say_has_no_difference(tmp_path, other, metric, note):
    found = compare(two(tmp_path, **other))
    told = found.cells[metric, 1, "other"].difference
    assert told.interval is None and note in told.note
    assert found.cells["oracle_total", 1, "other"].difference.paired


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ({"seed": 1}, "the prompts' seeds differ"),
        ({"height": 64}, "clip settings differ (height)"),
        ({"anchors": "b"}, "real clips differ (0 of 8 are in both)"),
        ({"prompts": [*list(HARD)[:3], "a cow eats"]}, "prompts differ (3 of 5 are in both)"),
    ],
)
def test_runs_that_filmed_other_things_are_compared_apart_and_it_is_said(tmp_path, other, note):
    found = compare(two(tmp_path, **other))
    assert any(note in line for line in found.notes)
    told = found.cells["oracle_total", 1, "other"].difference
    assert not told.paired and note in told.note
    values = [[x for x in HARD.values() for _ in range(2)] for _ in range(2)]
    apart = bootstrap_difference(values[0], list("aabbccdd"), values[1], list("aabbccdd"), seed=0)
    width = told.interval.high - told.interval.low
    assert width == pytest.approx(apart.high - apart.low, rel=0.5) and width > 0.15
    text = "\n".join(table(found))
    assert "   ~" in text and note in text


def test_bootstrap_difference():
    found = bootstrap_difference([1.0, 3.0], ["a", "b"], [10.0], ["c"], seed=0)
    assert (found.value, found.num) == (8.0, 3)
    assert (found.low, found.high) == (7.0, 9.0)  # the first side's mean is drawn from 1, 2 and 3
    assert math.isnan(bootstrap_difference([], [], [1.0], ["a"], seed=0).value)
    with pytest.raises(ValueError, match="2 values but 1 groups"):
        bootstrap_difference([1.0], ["a"], [1.0, 2.0], ["a"], seed=0)


def test_runs_of_a_group_are_matched_by_what_they_filmed(tmp_path):
    for name, seed, gain in (("a0", 0, 0.1), ("a1", 1, 0.2), ("b1", 1, 0.25), ("b0", 0, 0.3)):
        record(tmp_path / name, seed=seed, gain=gain)
    groups = [
        f"{g}={tmp_path / one},{tmp_path / two}" for g, one, two in (("a", "a0", "a1"), ("b", "b1", "b0"))
    ]
    found = compare(arms_of([], groups))
    cell = found.cells["oracle_total", 1, "b"]
    assert (cell.value, cell.lowest, cell.highest) == pytest.approx((0.355 + 0.275, 0.605, 0.655))
    assert (cell.num_runs, cell.num_clips, cell.low) == (2, 16, None)
    told = cell.difference  # .3 − .1 and .25 − .2, a prompt's takes of both drawn together
    assert told.paired and (told.num_takes, told.num_prompts) == (16, 4)
    numbers = told.interval.value, told.interval.low, told.lowest, told.highest
    assert numbers == pytest.approx((0.125, 0.125, 0.05, 0.2))
    assert "0.630 (0.605 to 0.655)" in "\n".join(table(found))
    uneven = compare([*arms_of([], groups[:1]), *arms_of([str(tmp_path / "b0")], [])])
    assert not uneven.cells["oracle_total", 1, "b0"].difference.paired
    assert "2 and 1 runs, of which 1 share" in uneven.notes[0]


def test_nan_is_neither_averaged_nor_told_as_a_number(tmp_path):
    def total(prompt, n, r):
        return math.nan if r == 1 and prompt == "a cat runs" else HARD[prompt]

    found = compare(two(tmp_path, total=total))
    assert found.cells["oracle_total", 1, "other"].value is None
    assert found.cells["oracle_total", 1, "other"].difference.interval is None
    assert found.cells["oracle_total", 2, "other"].difference.interval.value == pytest.approx(-0.205)
    row = next(line for line in table(found) if line.split()[:1] == ["1"])
    assert row.split()[4:] == [
        "–",
        "–",
        "(1)",
    ]  # round, value and two bounds of the first; nothing of the other
    group = [
        Arm("both", (tmp_path / "one", tmp_path / "other")),
        *arms_of([str(record(tmp_path / "third"))], []),
    ]
    assert compare(group).cells["oracle_total", 1, "both"].value == pytest.approx(0.455)  # of one run


def test_values_that_do_not_make_the_metric_are_not_used(tmp_path):
    arms = two(tmp_path)
    scores = tmp_path / "other" / "round-001" / "evaluate" / "scores.parquet"
    rows = pq.read_table(scores).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "oracle_total": 0.1} for row in rows]), scores)
    told = compare(arms).cells["oracle_total", 1, "other"].difference
    assert told.interval is None and told.note == "no values of single takes are stored"


def test_a_judge_that_was_asked_once_for_two_metrics(tmp_path):
    """The held-out judge's rows have no verdicts of their own while it is the judge in force."""
    arms = two(tmp_path, wins=1.0)
    for arm, judge in zip(arms, ("judge-a", "judge-a"), strict=True):
        path = arm.runs[0] / "round-001" / "evaluate" / "metrics.parquet"
        rows = pq.read_table(path).to_pylist()
        [own] = [row for row in rows if row["metric"] == "win_rate_vs_base"]
        rows += [{**own, "metric": f"held_out_{own['metric']}", "judge": judge}]
        pq.write_table(pa.Table.from_pylist(rows), path)
    told = compare(arms, rounds=[1]).cells["held_out_win_rate_vs_base", 1, "other"].difference
    assert told.interval.value == pytest.approx(0.0625)


def test_takes_that_a_judge_saw_beside_other_clips_are_left_out(tmp_path):
    """As where evaluate.num_judged differs: then a take stands beside another real clip of its caption."""
    arms = two(tmp_path)
    folder = tmp_path / "other" / "round-001" / "evaluate"
    rows = pq.read_table(folder / "verdicts-fool_rate.parquet").to_pylist()
    [first, *_] = rows  # of the first take, which wins a quarter in both runs, as the second one does
    asked = [{**r, "second_id": "anchor-9"} if r["second_id"] == first["second_id"] else r for r in rows]
    pq.write_table(pa.Table.from_pylist(asked), folder / "verdicts-fool_rate.parquet")
    told = compare(arms, ["fool_rate"], [1]).cells["fool_rate", 1, "other"].difference
    assert told.num_takes == 7 and told.note == "takes left out, not measured alike in both: 1"
    assert "(1)" in table(compare(arms, ["fool_rate"], [1]))[2]


def test_what_a_judge_left_unanswered_is_left_out(tmp_path):
    arms = two(tmp_path)
    folder = tmp_path / "other" / "round-001" / "evaluate"
    rows = pq.read_table(folder / "verdicts-fool_rate.parquet").to_pylist()
    silent = [{**r, "num_votes": 0} if r["question_id"] == rows[-1]["question_id"] else r for r in rows]
    pq.write_table(pa.Table.from_pylist(silent), folder / "verdicts-fool_rate.parquet")
    metrics = pq.read_table(folder / "metrics.parquet").to_pylist()
    [row] = [row for row in metrics if row["metric"] == "fool_rate"]
    row |= {"value": (2 * 0.25 + 5 * 0.5) / 7, "num_clips": 7}  # eight takes, of which the last was undecided
    pq.write_table(pa.Table.from_pylist(metrics), folder / "metrics.parquet")
    told = compare(arms, ["fool_rate"], [1]).cells["fool_rate", 1, "other"].difference
    assert (told.num_takes, told.interval.value) == (7, 0)


def test_rolled_back_and_missing_rounds(tmp_path):
    arms = two(tmp_path, rounds=1, kept={1: False})
    found = compare(arms)
    assert found.notes == [f"round 2 is not measured in {tmp_path / 'other'}"]
    assert found.cells["oracle_total", 1, "other"].kept is False
    assert ("oracle_total", 2, "other") not in found.cells
    lines = table(found)
    assert any(line.split()[:1] == ["1"] and "]*" in line for line in lines)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two runs that go together, one that has measured nothing, and one that measured another thing."""
    folder = tmp_path_factory.mktemp("several")
    two(folder)
    record(folder / "empty", stop_before=(0, "evaluate"))
    metrics = record(folder / "strange", rounds=0) / "round-000" / "evaluate" / "metrics.parquet"
    [row, *_] = pq.read_table(metrics).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "metric": "odd"}]), metrics)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "needs two runs or more"),
        (["one", "nothing"], "there is no run nothing"),
        (["one", "one"], "is given twice"),
        (["one", "other", "--round", "7"], "--round 7: one has no such round; measured so far: 0, 1, 2"),
        (["one", "other", "--metric", "oracle_totl"], "did you mean oracle_total?"),
        (["one", "empty"], "empty has measured nothing yet"),
        (["one", "strange"], "no metric in common"),
        (["one", "strange", "--metric", "odd"], "--metric odd: not measured in one"),
        (["one", "--group", "two"], "expected NAME=RUN,RUN"),
        (["one", "other", "--csv", "--json"], "exclude each other"),
        (["one", "other", "--html", "no/where.html"], "there is no folder no"),
    ],
)
def test_errors(several, monkeypatch, arguments, message):
    monkeypatch.chdir(several)
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 2 and message in done.stderr


def test_a_damaged_table_is_named(tmp_path):
    arms = two(tmp_path)
    path = tmp_path / "other" / "round-001" / "evaluate" / "takes.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"other/round-001/evaluate/takes\.parquet cannot be read"):
        compare(arms)


def test_the_command_writes_text_csv_json_and_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "one")
    record(tmp_path / "<b>other", gain=0.15, seed=1)
    run = ["compare", "one", "<b>other", "--round", "1", "--metric", "oracle_total"]
    rows = list(csv.DictReader(io.StringIO((done := CliRunner().invoke(app, [*run, "--csv"])).stdout)))
    assert [(row["metric"], row["round"], row["arm"]) for row in rows] == [
        ("oracle_total", "1", "one"),
        ("oracle_total", "1", "<b>other"),
    ]
    assert rows[1]["paired"] == "False" and float(rows[1]["difference"]) == pytest.approx(0.05)
    assert tuple(rows[0]) == COLUMNS and rows[0]["difference"] == ""
    assert "note: <b>other is not paired with one" in done.stderr  # nor does a CSV say it silently
    told = json.loads(CliRunner().invoke(app, [*run, "--json"]).stdout)
    assert told["first"] == "one" and told["rows"] == flat_rows(
        compare(arms_of(run[1:3], []), ["oracle_total"], [1])
    )
    done = CliRunner().invoke(app, ["compare", "one", "<b>other", "--html", "page.html"])
    page = (tmp_path / "page.html").read_text()
    assert done.exit_code == 0 and "open page.html" in done.stderr
    assert page.count("<svg") == 2 * 5 and "&lt;b&gt;other" in page  # five metrics, a chart a run
    assert "<b>" not in page and "<script" not in page and "http://" not in page and "https://" not in page
