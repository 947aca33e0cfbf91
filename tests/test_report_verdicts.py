"""The browser of verdicts in report.html: which are drawn, what became of each, what a large round costs."""

from __future__ import annotations

import json
import time
import tracemalloc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loop.report import cards, collect, write_report
from loop.report.collect import read_run
from loop.report.embed import Clips
from loop.report.fates import Fate, Fates
from loop.report.verdicts import draw
from tests.fabricated_run import fabricate
from tests.test_report import Page


def verdict(name: str, certainty: float | None = 0.5, kind: str = "take_take", **more: Any) -> dict[str, Any]:
    clips = {"first_id": f"{name}-a", "second_id": f"{name}-b", "p_first": 0.7, "p_second": 0.2, "p_tie": 0.1}
    return {"question_id": name, "kind": kind, "certainty": certainty, "prompt": "p", **clips, **more}


def test_the_draw_is_even_over_kinds_and_certainty() -> None:
    asked = [verdict(f"sure{i}", 0.99) for i in range(90)] + [verdict(f"unsure{i}", 0.1) for i in range(5)]
    asked += [verdict(f"real{i}", 0.5, "take_real") for i in range(5)]
    drawn = draw(asked, 12)
    by_stratum = Counter((v["kind"], v["certainty"]) for v in drawn)
    assert by_stratum == {("take_take", 0.99): 4, ("take_take", 0.1): 4, ("take_real", 0.5): 4}
    assert drawn[:6] == draw(asked, 6)  # a shorter list is the beginning of a longer one
    assert draw(asked[::-1], 12) == drawn  # by name, not by place
    assert {v["question_id"] for v in draw(asked, 1000)} == {v["question_id"] for v in asked}
    # what is rare runs out, the others fill up
    assert Counter(v["certainty"] for v in draw(asked, 20)) == {0.99: 10, 0.1: 5, 0.5: 5}


def test_a_verdict_without_certainty_is_drawn_with_the_least_certain() -> None:
    assert len(draw([verdict("a", None), verdict("b", float("nan")), verdict("c", 1.0)], 3)) == 3


@pytest.fixture
def fates(tmp_path: Path) -> Fates:
    pair = tmp_path / "round-001" / "pair"
    pair.mkdir(parents=True)
    (tmp_path / "resolved.json").write_text("{}")
    (pair / "manifest.json").write_text("{}")
    pairs = [
        {"winner_id": "kept-a", "loser_id": "kept-b", "weight": 0.8, "source": "fresh"},
        {"winner_id": "turned-b", "loser_id": "turned-a", "weight": 1.0, "source": "fresh"},
        {"winner_id": "part-a", "loser_id": "part-b", "weight": 1.0, "source": "guided"},
    ]
    pq.write_table(pa.Table.from_pylist(pairs), pair / "pairs.parquet")
    drops = [
        ("fresh", "tie", "tied", "tied-a", "tied-b"),
        ("fresh", "over_the_source_limit", None, "many-b", "many-a"),
        ("guided", "segment_tie", "part", "part-a", "part-b"),
    ]
    columns = ("source", "reason", "question_id", "first_id", "second_id")
    pq.write_table(
        pa.Table.from_pylist([dict(zip(columns, drop, strict=True)) for drop in drops]),
        pair / "dropped.parquet",
    )
    names = ("kept", "turned", "part", "tied", "many", "other")
    return Fates(read_run(tmp_path), 1, [verdict(name) for name in names])


def test_what_became_of_a_question(fates: Fates) -> None:
    assert fates.of(verdict("kept")) == Fate("kept", "pair, weight 0.80")
    assert fates.of(verdict("tied")) == Fate("dropped", "dropped: tie", "tie")
    # a pair is dropped by its clips, in whatever order the question named them
    assert fates.of(verdict("many")) == Fate(
        "dropped", "dropped: over the source limit", "over_the_source_limit"
    )
    assert fates.of(verdict("other")) == Fate("none", "no pair")
    assert fates.of(verdict("turned")).besides == "the pair's winner is B"
    part = fates.of(verdict("part", kind="segment"))
    assert part.state == "kept" and part.besides == "this segment was dropped: segment tie"


def test_a_run_of_an_older_version_knows_no_reasons(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text("{}")
    assert Fates(read_run(tmp_path), 1, [verdict("a")]).of(verdict("a")) == Fate("none", "not paired yet")


def test_the_winner_of_a_take_against_a_real_clip_is_named() -> None:
    assert cards.winners(verdict("a", real_sides=[])) == ["A"]
    assert cards.winners(verdict("a", kind="take_real", real_sides=["A"])) == ["A", "real"]
    assert cards.winners(verdict("a", kind="take_real", real_sides=["B"])) == ["A", "take"]
    assert cards.winners(verdict("a", p_first=0.2)) == ["tie"]
    assert cards.winners(verdict("a", p_first=None)) == []


def test_answers_are_turned_to_the_clips_and_long_reasonings_cut() -> None:
    answers = json.dumps({"overall": "first", "motion": "tie"})
    votes = [
        {"swapped": True, "answers": answers, "reasoning": "x" * 1600, "abstention": None},
        *[{"swapped": False, "answers": answers, "reasoning": "short", "abstention": None}] * 8,
    ]
    shown = verdict("a", real_sides=[], flip_rate=0.1, num_votes=9)
    html = cards.card(1, shown, {}, votes, Fate("none", "no pair"), Clips(), on_demand=False)
    assert "All votes <small>B A A A A A A A</small>" in html and "and 1 more votes in votes.parquet" in html
    assert "<b>B</b><small>shown B then A · motion tie</small>" in html
    assert "x" * 1500 + "… (100 more letters in votes.parquet)" in html and "x" * 1501 not in html
    assert '<q class="first">short</q>' in html  # "first" in its words is A


def test_a_round_of_5000_verdicts_makes_no_large_page(tmp_path: Path) -> None:
    run = fabricate(tmp_path, rounds=1, num_prompts=2, num_questions=5000)
    began = time.process_time()
    path = write_report(run)
    assert time.process_time() - began < 20
    page = Page(path)
    assert "60 of 5,000 verdicts, at most 60 a round." in page.text and len(page.all("article")) == 60
    assert path.stat().st_size < 1_000_000
    kinds = Counter(card["data-kind"] for card in page.all("article"))
    assert set(kinds) == {"take_take", "take_real", "segment"} and min(kinds.values()) >= 15


def test_a_draw_keeps_no_more_than_may_be_drawn() -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Followed(dict[str, Any]):
        """A row that a weak reference can follow."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    def asked() -> Any:
        nonlocal most
        for i in range(3000):
            row = Followed(verdict(f"v{i}", (i % 5) / 5 + 0.1))
            alive.add(row)
            yield row
            most = max(most, len(alive))

    assert len(draw(asked(), 10)) == 10
    assert most <= 5 * 2 * 10 + 2


def test_tables_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fabricate(tmp_path, rounds=1, num_prompts=2, num_questions=50)
    whole = write_report(run).read_text(encoding="utf-8")
    monkeypatch.setattr(collect, "_ROWS_AT_ONCE", 7)  # of any table
    assert write_report(run).read_text(encoding="utf-8") == whole


def test_memory_is_flat_in_the_number_of_verdicts(tmp_path: Path) -> None:
    run = fabricate(tmp_path, rounds=1, num_prompts=2, num_questions=100)

    def peak() -> int:
        tracemalloc.start()
        write_report(run)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak()  # what is imported once
    small = peak()
    for path in (run / "round-001").glob("*/*.parquet"):
        if path.parent.name != "evaluate":
            table = pq.ParquetFile(path).read()
            copies = [_renamed(table, f"-{i}") for i in range(100)]
            pq.write_table(pa.concat_tables([table, *copies]).combine_chunks(), path)
    assert peak() < small + 12_000_000  # bytes; whole tables take 40 million more


def _renamed(table: pa.Table, mark: str) -> pa.Table:
    """The same rows about other questions, takes and pairs."""
    for i, name in enumerate(table.schema.names):
        if name.endswith("_id"):
            values = [None if value is None else value + mark for value in table.column(name).to_pylist()]
            table = table.set_column(i, name, pa.array(values, table.schema.field(i).type))
    return table


def test_a_manifest_is_read_as_far_as_its_versions(tmp_path: Path) -> None:
    folder = tmp_path / "round-001" / "sample"
    folder.mkdir(parents=True)
    (tmp_path / "resolved.json").write_text("{}")
    manifest = {"config": {"environment": {"x": 1}}, "environment": {"torch": "2.0", "trl": None}}
    text = json.dumps(manifest | {"files": {}}, indent=1, sort_keys=True)
    (folder / "manifest.json").write_text(text.replace('"files": {}', '"files": {this is not looked at'))
    assert read_run(tmp_path).versions() == {"torch": "2.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))  # not as retake writes it
    assert read_run(tmp_path).versions() == {"torch": "2.0"}
