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
from loop.report import sections
from loop.report.collect import Run, read_run
from loop.report.curves import curves
from loop.report.embed import DEFAULT_BUDGET, Clips
from loop.report.gates import decisions
from loop.report.judged import judge_statistics
from loop.report.markup import Html, element
from loop.report.spent import spent
from loop.report.verdicts import verdicts
from loop.report.watch import watch

__all__ = ["shown_clips", "write_report"]

SCRIPTS = ("playback.js", "player.js", "curves.js", "verdicts.js")  # one script of the page, in this order


def write_report(run: Path, clip_budget: int = DEFAULT_BUDGET, price_per_hour: float | None = None) -> Path:
    """Writes run/report.html in one rename and returns its path.

    Works for a run of any age: a stage that is not committed yet leaves its section out.
    clip_budget: bytes of mp4 files that may travel inside the page; clips beyond it are left out.
    price_per_hour: of all machines together; without it no cost in money is shown.
    Raises UserError naming the file if `run` is no run directory or a committed table cannot be read.
    """
    page = _page(read_run(run), Clips(clip_budget), price_per_hour)
    target = run / "report.html"
    temporary = run / f".report.html.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace") as file:
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
    _page(read_run(run), clips, None)
    return clips.shown


def _page(run: Run, clips: Clips, price_per_hour: float | None) -> str:
    style, script = _asset("style.css"), "\n".join(map(_asset, SCRIPTS))
    # only our own script runs and nothing is fetched, whatever a caption may hold
    trusted = b64encode(sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:; "
        f"script-src 'sha256-{trusted}'; base-uri 'none'; form-action 'none'"
    )
    made: list[tuple[str, str, Html]] = []
    parts: tuple[tuple[str, str, Callable[[Run], Html | None]], ...] = (
        ("clips", "Clips", partial(watch, clips=clips)),
        ("curves", "Curves", curves),
        ("categories", "Categories", sections.categories),
        ("gates", "Gates", decisions),
        ("verdicts", "Verdicts", partial(verdicts, clips=clips)),
        ("judge", "Judge", judge_statistics),
        ("pairs", "Pairs", sections.pairs),
        ("data", "Data", sections.data),
        ("time", "Time", partial(spent, price_per_hour=price_per_hour)),
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
        "html", head, element("body", main, clips.store(), element("script", Html(script))), lang="en"
    )


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
