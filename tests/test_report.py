"""report.html: what it holds, that half a run or hostile text does it no harm, that a browser plays it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loop.errors import UserError
from loop.report import write_report
from loop.report.charts import Point, curve, histogram, interval, number
from loop.report.markup import Html, data_block, element
from loop.stages import plan
from loop.store import Store
from tests.fabricated_run import fabricate

HOSTILE = "<script>window.caught = 1</script><img src=x onerror='window.caught = 2'>\"&amp;"
ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """Elements with their attributes and the text outside scripts; asserts that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + "\n"

    def block(self, name: str) -> str:
        """What a data block for the script holds."""
        found = re.search(
            rf'<script type="application/json" id="{name}">(.*?)</script>', self.source, re.DOTALL
        )
        assert found, name
        return found[1]

    def running(self) -> list[dict[str, str | None]]:
        """Scripts that a browser would run; data blocks have a type that no browser runs."""
        return [script for script in self.all("script") if "type" not in script]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("report"), num_prompts=7)


@pytest.fixture(scope="module")
def complete(run: Path) -> Page:
    """The page of a complete run of three rounds, the second rolled back."""
    return Page(write_report(run))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return fabricate(tmp_path, rounds=1, num_prompts=2)


def test_a_complete_run_shows_every_section(complete: Page) -> None:
    page = complete
    assert [s["id"] for s in page.all("section")] == [
        *("clips", "curves", "categories", "gates", "verdicts", "judge", "pairs", "data", "time"),
        "configuration",
    ]
    assert "After 3 rounds, 2 kept, the oracle total rose from" in page.text
    assert "0.062 (0.012 to 0.11)" in page.text and "0.41 (0.36 to 0.46)" in page.text
    assert "real clips score 0.93" in page.text and "real oracle total" not in page.text
    assert "permanence fell by 0.19" in page.text
    assert "segments disagree · guided" in page.text
    assert '"model": "embedded:tiny-wan"' in page.text
    # 6 prompts × (real, base, 3 rounds), the player, and 3 rounds of 60 verdicts of two clips
    assert len(page.all("video")) == 6 * 5 + 2 + 3 * 60 * 2
    assert "nan" not in page.text.lower().split()


def test_clips_travel_inside_and_nothing_comes_from_elsewhere(run: Path, complete: Page) -> None:
    page = complete
    for _, attributes in page.elements:
        for key in ("src", "href", "poster", "srcset", "action"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:video/mp4;base64,")), value[:80]
    assert not re.search(r"url\(|@import|https?://", page.source)
    stored = {hashlib.sha256(path.read_bytes()).digest() for path in run.rglob("*.mp4")}
    carried = [base64.b64decode((v["src"] or "").partition(",")[2]) for v in page.all("video") if "src" in v]
    blocks = re.findall(r'<script type="text/plain" id="clip-c\d+">(.*?)</script>', page.source)
    shown = [hashlib.sha256(clip).digest() for clip in [*carried, *map(base64.b64decode, blocks)]]
    assert blocks and carried and set(shown) <= stored
    assert len(shown) == len(set(shown)), "a clip lies in the page twice"


def test_every_clip_that_a_video_or_the_player_names_is_there(complete: Page) -> None:
    page = complete
    there = {v["data-clip"] for v in page.all("video") if "src" in v}
    there |= {(s["id"] or "").removeprefix("clip-") for s in page.all("script") if "id" in s}
    named = {v["data-clip"] for v in page.all("video") if "data-clip" in v}
    told = json.loads(page.block("player-data"))
    named |= {name for cell in told["cells"] for name in cell["clips"].values()}
    assert named <= there and len(told["cells"]) == 7
    assert (
        told["before"] == "0" and told["after"] == "3" and list(told["sides"]) == ["0", "1", "2", "3", "real"]
    )
    assert told["cells"][0]["marks"]["3"].keys() >= {"oracle_total", "flicker"}


def test_only_our_own_script_may_run(complete: Page) -> None:
    page = complete
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", page.source, flags=re.DOTALL)
    assert len(script) == 1 and len(page.running()) == 1
    assert {s["type"] for s in page.all("script") if "type" in s} == {"text/plain", "application/json"}
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_a_changing_judge_is_labelled(complete: Page) -> None:
    cards = re.findall(r'<figure class="card.*?</figure>', complete.source, flags=re.DOTALL)
    labelled = {
        re.findall(r'class="title">([^<]*)', card)[0] for card in cards if "judge changes every round" in card
    }
    # not those of the held-out judge, whatever its name
    assert labelled == {"Win rate against base", "Win rate against previous", "Fool rate"}


@pytest.mark.parametrize("stop", plan(1), ids=lambda step: f"{step[0]}-{step[1]}")
def test_a_run_of_any_age_has_a_report(tmp_path: Path, stop: tuple[int, str]) -> None:
    page = Page(write_report(fabricate(tmp_path, rounds=1, num_prompts=2, stop_before=stop)))
    assert f"stopped, next is round {stop[0]}, {stop[1].replace('_', ' ')}" in page.text


def test_no_kept_round_is_said_so(small: Path) -> None:
    decision = small / "round-001/gate/gate.json"
    decision.write_text(decision.read_text().replace('"keep": true', '"keep": false'))
    text = Page(write_report(small)).text
    assert "After 1 round no update was kept and the base is still in force" in text


def test_pairs_that_a_supervised_round_left_alone_are_said_so(small: Path) -> None:
    said = "Round 1 learned from real clips alone and was not trained on its pairs."
    assert said not in Page(write_report(small)).text
    metrics = small / "round-001" / "update" / "metrics.json"
    metrics.write_text(json.dumps({"num_pairs": 0, "skipped": "no preference pairs"}))
    assert said not in Page(write_report(small)).text
    metrics.write_text(json.dumps({"num_pairs": 0}))
    assert said in Page(write_report(small)).text


def test_clips_that_could_not_be_used_are_counted_and_named(small: Path) -> None:
    assert "2 real clips are anchors: 2 report. None was left out." in Page(write_report(small)).text
    skips = [{"file": f"<b>{n}.mp4", "reason": f"line {n + 2}: too short"} for n in range(25)]
    (small / "round-000" / "prepare" / "skips.json").write_text(json.dumps(skips))
    text = Page(write_report(small)).text
    assert "25 could not be used" in text and "<b>0.mp4" in text and "line 2: too short" in text
    assert "<b>19.mp4" in text and "<b>20.mp4" not in text and "5 more" in text


def test_categories_have_a_table_where_there_are_two(complete: Page, small: Path) -> None:
    page = complete
    text = page.text[page.text.index("Means over the prompts of one category") :]
    assert "ring" in text and "square" in text and "oracle total" in text
    metrics = small / "round-000" / "evaluate" / "metrics.parquet"
    for folder in ("round-000", "round-001"):
        metrics = small / folder / "evaluate" / "metrics.parquet"
        rows = [r for r in pq.read_table(metrics).to_pylist() if r["category"] != "ring"]
        pq.write_table(pa.Table.from_pylist(rows), metrics)
    assert "Means over the prompts of one category" not in Page(write_report(small)).text


def test_overlapping_intervals_are_no_rise(small: Path) -> None:
    path = small / "round-001/evaluate/metrics.parquet"
    table = pq.ParquetFile(path).read()
    rows = [row | {"low": 0.05} if row["metric"] == "oracle_total" else row for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    text = Page(write_report(small)).text
    assert "the oracle total went from" in text and "the two intervals overlap" in text


def test_markup_in_captions_and_reasoning_is_text(tmp_path: Path) -> None:
    page = Page(write_report(fabricate(tmp_path, rounds=1, num_prompts=2, markup=HOSTILE)))
    assert len(page.running()) == 1 and page.all("img") == []
    assert page.text.count(HOSTILE) >= 6  # prompts, reasonings, the gate's reason, campaign.yaml
    assert HOSTILE in json.loads(page.block("player-data"))["cells"][0]["prompt"]
    assert any(HOSTILE in (card["data-fate"] or "") for card in page.all("article"))  # a reason for a drop
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_lost_and_oversized_clips_are_counted(small: Path) -> None:
    for clip in (small / "round-000/evaluate/clips").iterdir():
        clip.unlink()
    page = Page(write_report(small))
    assert "file is gone" in page.text and "clip files are gone, the first is" in page.text
    page = Page(write_report(small, clip_budget=1000))
    assert "left out for size" in page.text and [v for v in page.all("video") if "data-clip" in v] == []


def test_bad_runs_are_named(tmp_path: Path, small: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path / "other")
    before = write_report(small).read_bytes()
    (small / "round-001/label/votes.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match=r"round-001/label/votes\.parquet: not readable"):
        write_report(small)
    assert (small / "report.html").read_bytes() == before
    assert not list(small.glob(".report*"))


def test_the_report_needs_no_torch(small: Path) -> None:
    code = (
        "import sys, pathlib; from loop.report import write_report; write_report(pathlib.Path(sys.argv[1]));"
        "heavy = {'torch', 'transformers', 'diffusers', 'pandas', 'sklearn'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(small)], check=True, timeout=180, cwd=ROOT)


def test_charts_wear_the_colours_of_the_page_and_tell_their_points() -> None:
    points = [Point(0, 0.3, 0.2, 0.4, 144), Point(1, 0.5, 0.4, 0.6, 144, kept=False)]

    def drawn() -> str:
        return curve(points, "total <b>", num_rounds=2, real=0.94, reference=0.5, large=True)

    assert drawn() == drawn()
    assert "var(--colour)" in drawn() and "var(--soft)" in drawn() and "#c0ffe" not in drawn()
    assert "<title>base: 0.30, 95 % interval 0.20 to 0.40, 144 clips</title>" in drawn()
    assert "144 clips, rolled back</title>" in drawn() and "real clips 0.94" in drawn()
    assert "&lt;b&gt;" in drawn() and "<b>" not in drawn() and "<style" not in drawn()
    bars = histogram({"a": [1, 2], "b": [0, 3]}, "certainty", {"a": 1, "b": 2})
    assert "<title>0.5 to 1: 3 of 5, b</title>" in bars and "var(--orange)" in bars


def test_a_single_kept_point_shows_its_interval() -> None:
    """A band needs two points: without a bar the interval of the only promotion would be nowhere."""
    points = [Point(1, 0.6, 0.4, 0.8, kept=False), Point(2, 0.7, 0.5, 0.9)]
    assert curve(points, "t", num_rounds=2).count('class="interval"') == 1  # of round 2
    banded = curve([*points, Point(3, 0.7, 0.5, 0.9)], "t", num_rounds=3)
    assert banded.count('class="interval"') == 1  # the band of rounds 2 and 3


def test_groups_of_measurements_are_tables_and_not_json(small: Path) -> None:
    gate = small / "round-001" / "judge_gate" / "gate.json"
    probes = {"blurred": {"accuracy": 2 / 3, "num": 12}, "frozen": {"accuracy": 0.5, "num": 9, "low": 0.4}}
    power = {"detectable": 0.5780916383, "measured": True}
    gate.write_text(json.dumps(json.loads(gate.read_text()) | {"probes": probes, "power": power}))
    text = " ".join(Page(write_report(small)).text.split())
    assert "blurred 0.67 12" in text and "detectable 0.58 measured yes" in text
    measured = text[text.index("All that the gates measured") :]
    assert '{"' not in measured[: measured.index("Verdicts")]


def test_a_data_block_cannot_be_left() -> None:
    text = "</script><!--<script>\"'&\u2028"
    block = data_block("x", {text: [text]})
    assert block.count("<") == 2 and json.loads(block[block.index(">") + 1 : block.rindex("<")]) == {
        text: [text]
    }


def test_unknown_metrics_are_grouped_by_their_first_word(complete: Page) -> None:
    page = complete
    charts = page.source[page.source.index('id="curves"') :]
    groups = re.findall(
        r'<div class="group"><h3>([^<]*)</h3>(.*?)(?=<div class="group">|</section>)', charts, re.DOTALL
    )
    titles = {name: re.findall(r'class="title">([^<]*)', body) for name, body in groups}
    assert titles["Update measures"] == ["Update implicit accuracy", "Update margin"]
    assert titles["Other measures"] == ["Novelty"]
    assert titles["Held-out judge"] == ["Win rate against base", "Win rate against previous"]
    assert {"Takes told from real clips", "Subject drift"} <= set(titles["Motion and drift"])


def test_alarms_of_a_gate_are_shown_with_what_follows(complete: Page) -> None:
    text = complete.text
    assert (
        "judge up motion down" in text and "the training judge rose by 0.03 while motion fell by 0.09" in text
    )
    assert "permanence fell by 0.19; then: refresh pairs" in text
    assert "power num prompts 96 detects 0.08" in " ".join(text.split())


def test_the_bounds_of_a_generator_are_those_of_its_error(complete: Page) -> None:
    assert "(each at α\u00a0=\u00a00.030)" in complete.text and "interval" in complete.text


def test_time_lost_and_money_are_told_apart(small: Path) -> None:
    text = Page(write_report(small)).text
    assert "stopped or failed attempts" not in text and "cost at" not in text
    assert "votes asked" in text and "480" in text
    store = Store(small)
    store.event("stage_started", round=1, stage="update", log="")  # killed
    store.event("stage_started", round=1, stage="update", log="")
    store.event("stage_stopped", round=1, stage="update", seconds=90.0)
    text = Page(write_report(small, price_per_hour=36.0)).text
    assert "stopped or failed attempts" in text and "1 min 30 s" in text
    assert "Attempts that were killed, which leaves no time of theirs: 1." in text
    assert "cost at 36.00 an hour" in text and "0.90" in text  # 90 s


def test_the_state_of_the_code_is_shown(small: Path) -> None:
    assert "588b76c0d1e2 with changes" in Page(write_report(small)).text
    events = (small / "events.jsonl").read_text()
    (small / "events.jsonl").write_text(events.replace('"git"', '"older"'))
    text = Page(write_report(small)).text
    assert "588b76c0d1e2" not in text and "unknown" in text


def test_without_scripts_what_needs_one_is_hidden(complete: Page) -> None:
    page = complete
    for name in ("player", "switches", "filters", "pager"):
        [found] = [a for _, a in page.elements if a.get("id") == name]
        assert "hidden" in found, name
    before_the_template = page.source[: page.source.index("<template")]
    assert before_the_template.count("<article") == 6 and page.source.count("<article") == 180
    assert all("controls" in v and v["preload"] == "none" for v in page.all("video") if "src" in v)


def test_numbers_and_markup() -> None:
    assert [number(v) for v in (0, 0.0624, 0.41, -0.5, 1, 66.66, 12345, 0.00001)] == [
        *("0.00", "0.062", "0.41", "−0.50", "1.00", "66.7", "12,345", "1.0e−05")
    ]
    assert interval(None, 1.0) == ""
    assert (
        element("p", "<b>", Html("<i></i>"), _class='"x"') == '<p class="&quot;x&quot;">&lt;b&gt;<i></i></p>'
    )
