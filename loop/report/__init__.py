"""report.html: one file that opens offline and shows what a campaign did, however far it got."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from loop.pruned import pruned_in
from loop.report import judged, sections
from loop.report.collect import Run, read_run
from loop.report.curves import curves
from loop.report.embed import DEFAULT_BUDGET, Clips
from loop.report.markup import Html, element, join
from loop.report.watch import watch

__all__ = ["shown_clips", "write_report"]


def write_report(run: Path, clip_budget: int = DEFAULT_BUDGET) -> Path:
    """Writes run/report.html in one rename and returns its path.

    Works for a run of any age: a stage that is not committed yet leaves its section out.
    clip_budget: bytes of mp4 files that may travel inside the page; rows of clips beyond it are left out.
    Raises UserError naming the file if `run` is no run directory or a committed table cannot be read.
    """
    page = _page(read_run(run), Clips(clip_budget))
    target = run / "report.html"
    temporary = run / f".report.html.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def shown_clips(run: Path) -> list[Path]:
    """The clip files that a report of the run as it stands would hold."""
    clips = Clips()
    _page(read_run(run), clips)
    return clips.shown


def _page(run: Run, clips: Clips) -> str:
    style, script = _asset("style.css"), _asset("app.js")
    # only our own script runs and nothing is fetched, whatever a caption may hold
    trusted = b64encode(sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:; "
        f"script-src 'sha256-{trusted}'"
    )
    made: list[tuple[str, str, Html]] = []
    parts: tuple[tuple[str, str, Callable[[Run], Html | None]], ...] = (
        ("clips", "Clips", partial(watch, clips=clips)),
        ("curves", "Curves", curves),
        ("categories", "Categories", sections.categories),
        ("gates", "Gates", sections.decisions),
        ("judge", "Judge", partial(_judge, clips=clips)),
        ("pairs", "Pairs", sections.pairs),
        ("data", "Data", sections.data),
        ("time", "Time", sections.time),
        ("configuration", "Configuration", sections.configuration),
    )
    for anchor, title, make in parts:
        content = make(run)
        if content is not None:
            made.append((anchor, title, content))
    navigation = element(
        "nav", *(element("a", title, href=f"#{anchor}") for anchor, title, _ in made), aria_label="sections"
    )
    body = [element("section", element("h2", title), content, id=anchor) for anchor, title, content in made]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.name} · retake"),
        element("style", Html(style)),
    )
    main = element(
        "main", sections.header(run), sections.summary(run), navigation, *body, _left_out(run, clips)
    )
    return "<!doctype html>\n" + element(
        "html", head, element("body", main, element("script", Html(script))), lang="en"
    )


def _judge(run: Run, clips: Clips) -> Html | None:
    parts = [part for part in (judged.judge_statistics(run), judged.examples(run, clips)) if part is not None]
    return join(*parts) if parts else None


def _left_out(run: Run, clips: Clips) -> Html | None:
    """What could not be shown is said, not swallowed."""
    told = []
    if pruned := pruned_in(run.path):
        shown = f"; {len(clips.pruned)} clips of this page are among them" if clips.pruned else ""
        told.append(f"Pruned: {pruned}{shown}.")
    if clips.missing:
        told.append(f"{len(clips.missing)} clip files are gone, the first is {clips.missing[0]}.")
    if clips.too_large:
        told.append(
            f"{len(clips.too_large)} clips were left out for size, the first is {clips.too_large[0]}."
        )
    return element("footer", " ".join(told), _class="lead") if told else None


def _asset(name: str) -> str:
    return files("loop.report").joinpath(name).read_text(encoding="utf-8")
