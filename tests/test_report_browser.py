"""report.html in a real headless Chromium: clips play in step, switches and filters work, markup is text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loop.report import write_report
from tests.browser import execute, needs_browser, open_browser, wait_for
from tests.fabricated_run import fabricate
from tests.test_report import HOSTILE

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser with the report of two rounds, the second rolled back; each test finds it as it opens."""
    folder = tmp_path_factory.mktemp("browser")
    run = fabricate(folder, rounds=2, num_prompts=2, num_questions=30, markup=HOSTILE)
    scores = run / "round-001" / "evaluate" / "scores.parquet"
    rows = [row | {"flicker": 0.9 * row["flicker"]} for row in pq.ParquetFile(scores).read().to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), scores)
    report = write_report(run)
    with open_browser(folder / "profile", size=(700, 1600)) as browser:
        browser("POST", "/url", url=report.as_uri())
        yield browser


@pytest.fixture(autouse=True)
def quiet(page: Any) -> Iterator[None]:
    """No test may leave an error in the console or let a caption run."""
    page("POST", "/refresh")
    execute(page, "document.documentElement.style.scrollBehavior = 'auto'")
    yield
    assert page("POST", "/se/log", type="browser") == []
    assert execute(page, "return window.caught === undefined")


def look(page: Any, selector: str) -> Any:
    execute(page, f"document.querySelector({selector!r}).scrollIntoView()")


def choose(page: Any, name: str, value: str, within: str = "#filters") -> None:
    """As a person would: the field gets its value and says so."""
    execute(
        page,
        f"const field = document.querySelector({within!r}).querySelector('[name={name}]');"
        f"field.value = {json.dumps(value)};"
        "for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, { bubbles: true }))",
    )


def click(page: Any, selector: str) -> None:
    execute(page, f"document.querySelector({selector!r}).click()")


def times(page: Any, videos: str) -> list[tuple[int, float]]:
    script = f"return [...document.querySelectorAll({videos!r})].map(v => [v.readyState, v.currentTime])"
    return [(ready, time) for ready, time in execute(page, script)]


def test_the_grid_plays_in_step(page: Any) -> None:
    look(page, ".watch")
    videos = ".watch video"
    wait_for(lambda: all(ready >= 2 for ready, _ in times(page, videos)))
    before = times(page, videos)
    assert len(before) == 4 * 4  # 2 prompts at 2 seeds; real, base, rounds 1 and 2
    wait_for(lambda: all(b[1] != a[1] for a, b in zip(before, times(page, videos), strict=True)))
    click(page, ".toolbar .play")
    assert execute(page, "return [...document.querySelectorAll('.watch video')].every(v => v.paused)")
    execute(
        page,
        "const scrub = document.querySelector('.toolbar .scrub');"
        "scrub.value = 500; scrub.dispatchEvent(new Event('input'))",
    )
    # half of 17 frames at 8 a second; paused clips show the same moment
    wait_for(lambda: all(0.9 < time < 1.2 for _, time in times(page, videos)))
    assert execute(page, "return document.documentElement.scrollWidth <= innerWidth")


def test_the_player_compares_any_two_rounds_of_a_prompt(page: Any) -> None:
    look(page, "#player")
    videos = "#player video"
    wait_for(lambda: all(ready >= 2 for ready, _ in times(page, videos)))
    before = times(page, videos)
    wait_for(lambda: all(b[1] != a[1] for a, b in zip(before, times(page, videos), strict=True)))
    captions = "return [...document.querySelectorAll('#player figcaption')].map(c => c.textContent)"
    assert execute(page, captions) == ["base", "round 1"]  # the last one kept
    sources = "return [...document.querySelectorAll('#player video')].map(v => v.src)"
    old = execute(page, sources)
    choose(page, "before", "2", "#player")
    choose(page, "after", "real", "#player")
    assert execute(page, captions) == ["round 2 (rolled back)", "real clip"]
    assert execute(page, sources)[1] != old[1]
    said = "return document.querySelector('#player .said').textContent"
    first = execute(page, said)
    for _ in range(2):
        click(page, "#player .next")
    assert execute(page, said) != first and HOSTILE in execute(page, said)
    choose(page, "before", "0", "#player")
    choose(page, "after", "1", "#player")
    rows = execute(page, "return [...document.querySelectorAll('.marks tbody tr')].map(r => r.innerText)")
    assert len(rows) == 6 and rows[0].startswith("Oracle total")


def test_a_change_is_small_only_against_its_values(page: Any) -> None:
    """Flicker lies in thousandths: what moves its second digit is not "0"."""
    cells = (
        "return [...document.querySelectorAll('.marks tbody tr')].map(row => [...row.children]"
        ".map(cell => cell.textContent))"
    )
    [(old, new, change)] = [row[1:] for row in execute(page, cells) if row[0] == "Flicker"]
    assert old != new and change.startswith("−0.000")


def test_the_player_steps_by_frames_and_wipes(page: Any) -> None:
    look(page, "#player")
    wait_for(lambda: all(ready >= 2 for ready, _ in times(page, "#player video")))
    click(page, "#player .play")
    execute(page, "document.querySelectorAll('#player video').forEach(v => v.currentTime = 0.5)")
    click(page, "#player .forward")  # 8 frames a second
    wait_for(lambda: all(abs(time - 0.625) < 0.01 for _, time in times(page, "#player video")))
    click(page, "#player .back")
    wait_for(lambda: all(abs(time - 0.5) < 0.01 for _, time in times(page, "#player video")))
    click(page, "#player input[value=wipe]")
    execute(
        page,
        "const wipe = document.querySelector('#player input.wipe');"
        "wipe.value = 30; wipe.dispatchEvent(new Event('input'))",
    )
    cut = "return getComputedStyle(document.querySelector('#player .before .video')).clipPath"
    assert execute(page, cut) == "inset(0px 70% 0px 0px)"
    # both names are whole wherever the cut is, and stand beside each other
    names = execute(
        page,
        "return [...document.querySelectorAll('#player figcaption')].map(caption => {"
        "const words = document.createRange(); words.selectNodeContents(caption);"
        "const box = words.getBoundingClientRect(); return [box.left, box.right, box.top] })",
    )
    (_, before_ends, before_top), (after_begins, _, after_top) = names
    assert before_ends < after_begins and before_top == after_top
    boxes = "return [...document.querySelectorAll('#player video')].map(v => v.getBoundingClientRect().left)"
    left, right = execute(page, boxes)
    assert left == right
    click(page, "#player input[value=beside]")
    left, right = execute(page, boxes)
    assert left < right


def test_on_a_phone_everything_is_legible_and_nothing_sticks_out(page: Any) -> None:
    def cdp(command: str, **params: Any) -> None:
        page("POST", "/goog/cdp/execute", cmd=command, params=params)

    cdp("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    try:
        assert execute(page, "return document.documentElement.scrollWidth") == 390
        words = "[...document.querySelectorAll('.hero svg text')]"
        heights = execute(page, f"return {words}.map(text => text.getBoundingClientRect().height)")
        assert min(heights) > 9  # pixels
        # the reasons of the gates are in view without scrolling sideways
        reasons = execute(
            page,
            "return [...document.querySelectorAll('.decisions td:last-child')].map(cell => {"
            "const box = cell.getBoundingClientRect(); return [box.left, box.right] })",
        )
        assert reasons and all(left >= 0 and right <= 390 for left, right in reasons)
    finally:
        cdp("Emulation.clearDeviceMetricsOverride")


def test_switches_of_the_curves(page: Any) -> None:
    shown = (
        "const all = s => [...document.querySelectorAll('#curves ' + s)];"
        "const on = s => all(s).filter(e => e.getClientRects().length).length;"
        "return {cards: on('.card'), intervals: on('.interval'), back: on('.back'), laid: on('.dot')}"
    )
    all_on = execute(page, shown)
    assert all_on["intervals"] > 10 and all_on["back"] > 10 and all_on["laid"] == 0
    # by keyboard alone: the space bar on a focused box
    [element] = page("POST", "/elements", using="css selector", value="#switches [name=intervals]")[
        0
    ].values()
    page("POST", f"/element/{element}/value", text=" ")
    assert execute(page, shown)["intervals"] == 0
    page("POST", f"/element/{element}/value", text=" ")
    assert execute(page, shown) == all_on
    click(page, "#switches [name=back]")
    assert execute(page, shown)["back"] == 0
    choose(page, "category", "ring", "#switches")
    laid = execute(page, shown)["laid"]
    assert laid > 10
    choose(page, "category", "", "#switches")
    assert execute(page, shown)["laid"] == 0
    choose(page, "judge", "training judge", "#switches")
    keys = (
        "const cards = [...document.querySelectorAll('#curves .card')];"
        "return cards.filter(c => !c.hidden).map(c => c.dataset.key)"
    )
    assert execute(page, keys) == [
        f"{name}/report/training judge" for name in ("win_rate_vs_base", "win_rate_vs_previous", "fool_rate")
    ]
    choose(page, "judge", "", "#switches")
    click(page, "#switches .hide-all")
    assert execute(page, shown)["cards"] == 0
    assert execute(page, "return !document.querySelector('#curves .nothing').hidden")
    click(page, "#switches [value='flicker/report/']")
    assert execute(page, keys) == ["flicker/report/"]


def test_a_category_is_laid_where_its_values_belong(page: Any) -> None:
    choose(page, "category", "ring", "#switches")
    places = execute(
        page,
        "const svg = document.querySelector('.card[data-key=\"oracle_shape/report/\"] svg');"
        "const at = (dot, name) => Number(dot.getAttribute(name));"
        "return [...svg.querySelectorAll('.dot')].map(dot => [at(dot, 'cx'), at(dot, 'cy')])",
    )
    # 320 wide and 168 high with axes from 36 to 306 and 14 to 146; rounds -0.04 to 2.04, values 0 to 1
    for round_, value in enumerate((0.75, 0.8, 0.82)):
        assert places[round_] == pytest.approx(
            (36 + 270 * (round_ + 0.04) / 2.08, 14 + 132 * (1 - value)), abs=0.01
        )


def test_filters_and_pages_of_the_verdicts(page: Any) -> None:
    look(page, "#verdict-cards")
    cards = "return [...document.querySelectorAll('#verdict-cards article')].map(c => ({...c.dataset}))"
    place = "return document.querySelector('#pager .place').textContent"
    assert len(execute(page, cards)) == 6 and execute(page, place) == "1–6 of 60"
    videos = "#verdict-cards video"
    wait_for(lambda: all(ready >= 2 for ready, _ in times(page, videos)[:2]))
    first = execute(page, cards)
    click(page, "#pager .next")
    assert execute(page, place) == "7–12 of 60" and execute(page, cards) != first
    # clips of a page that was not there before are fetched from their blocks, and play
    wait_for(lambda: all(ready >= 2 for ready, _ in times(page, videos)[:2]))
    click(page, "#pager .previous")
    assert execute(page, cards) == first
    wait_for(lambda: all(ready >= 2 for ready, _ in times(page, videos)[:2]))

    choose(page, "round", "1")
    choose(page, "kind", "take_real")
    assert execute(page, place) == "1–6 of 10 found among 60"
    assert {(c["round"], c["kind"]) for c in execute(page, cards)} == {("1", "take_real")}
    choose(page, "winner", "real")
    assert all("real" in c["winner"].split() for c in execute(page, cards))
    click(page, "#filters .reset")
    assert execute(page, place) == "1–6 of 60"
    choose(page, "fate", "kept")
    assert {c["fate"] for c in execute(page, cards)} == {"kept"}
    choose(page, "fate", "dropped")
    assert all(c["fate"].startswith("dropped ") for c in execute(page, cards))
    choose(page, "fate", f"dropped tie{HOSTILE}")  # a reason is text, too
    assert [c["fate"] for c in execute(page, cards)] == [f"dropped tie{HOSTILE}"] * 2
    click(page, "#filters .reset")
    choose(page, "least", "0.9")
    choose(page, "order", "low")
    found = [float(c["certainty"]) for c in execute(page, cards)]
    assert found == sorted(found) and found[0] >= 0.9
    click(page, "#filters .reset")
    choose(page, "text", "NO SUCH WORDS")
    wait_for(lambda: execute(page, "return !document.querySelector('#verdicts .nothing').hidden"))
    choose(page, "text", "STUTTERS")
    wait_for(lambda: len(execute(page, cards)) > 0)
    quotes = "return [...document.querySelectorAll('#verdict-cards article')].map(c => c.textContent)"
    assert all("stutters" in text for text in execute(page, quotes))


def test_markup_in_a_reasoning_is_text(page: Any) -> None:
    quotes = (
        "const quotes = [...document.querySelectorAll('#verdict-cards q')];"
        "return quotes.map(q => [q.textContent, q.children.length])"
    )
    assert all(HOSTILE in text and not children for text, children in execute(page, quotes))
