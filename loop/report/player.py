"""The before/after player: one prompt and seed, any two rounds, in step, with what was measured of both.

The script fills it from a data block; without the script it is hidden and the grid below it stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop.report.collect import Run, is_number
from loop.report.embed import Clips
from loop.report.known_metrics import BY_NAME
from loop.report.markup import Html, data_block, element, join
from loop.report.switches import choice

MOST_MARKS = 9  # rows of the table
_FPS = 8.0  # for steps of one frame, where an old run does not say


@dataclass(frozen=True)
class Shot:
    """One generated clip: its file, and what was measured of it by name (scores.parquet)."""

    file: Path
    marks: Mapping[str, float]

    @property
    def score(self) -> float | None:
        return self.marks.get("oracle_total")


@dataclass(frozen=True)
class Cell:
    """One prompt and seed in all rounds, and a real clip of the same caption if there is one."""

    prompt: str
    seed: object
    real: Path | None
    shots: dict[int, Shot]  # by round


def player(run: Run, cells: Sequence[Cell], rounds: Sequence[int], clips: Clips) -> Html | None:
    """None where there are not two clips of anything to compare."""
    sides = [(str(r), _name(run, r)) for r in rounds]
    if any(cell.real for cell in cells):
        sides.append(("real", "real clip"))
    if len(sides) < 2:
        return None
    names = dict.fromkeys(name for cell in cells for shot in cell.shots.values() for name in shot.marks)
    marks = sorted(names, key=lambda name: (name != "oracle_total", name not in BY_NAME))[:MOST_MARKS]
    kept = run.last_kept()
    after = str(kept if kept in rounds and kept != rounds[0] else rounds[-1])
    fps = run.config.get("data", {}).get("clip", {}).get("fps")
    told = {
        "fps": fps if is_number(fps) and fps > 0 else _FPS,
        "sides": dict(sides),
        "marks": [
            {"name": n, "title": _title(n), "better": BY_NAME[n].better if n in BY_NAME else ""}
            for n in marks
        ],
        "cells": [
            {
                "prompt": cell.prompt,
                "seed": str(cell.seed),
                "clips": {
                    **{str(r): clips.name(shot.file) for r, shot in cell.shots.items()},
                    "real": clips.name(cell.real),
                },
                "marks": {
                    str(r): {n: float(f"{shot.marks[n]:.4g}") for n in marks if n in shot.marks}
                    for r, shot in cell.shots.items()
                },
            }
            for cell in cells
        ],
        "before": str(rounds[0]),
        "after": after if len(rounds) > 1 else "real",
    }
    return join(_shell(cells, sides), data_block("player-data", told))


def _shell(cells: Sequence[Cell], sides: Sequence[tuple[str, str]]) -> Html:
    prompts = [(str(i), f"{cell.prompt} · seed {cell.seed}") for i, cell in enumerate(cells)]
    picker = element(
        "div",
        element("button", "‹", type="button", _class="previous", aria_label="previous prompt"),
        choice("prompt", "Prompt and seed", prompts),
        element("button", "›", type="button", _class="next", aria_label="next prompt"),
        _class="picker",
    )
    views = [
        element(
            "label",
            element("input", type="radio", name="view", value=value, checked=value == "beside"),
            element("span", says),
            _class="tick",
        )
        for value, says in (("beside", "Side by side"), ("wipe", "Slider"))
    ]
    marks = element(
        "table",
        element(
            "thead",
            element("tr", *(element("th", h, scope="col") for h in ("", "before", "after", "change"))),
        ),
        element("tbody"),
        _class="marks",
    )
    return element(
        "div",
        element(
            "div",
            element("div", _side("before"), _side("after"), _class="pair"),
            element(
                "input", type="range", _class="wipe", min=0, max=100, value=50, autocomplete="off",
                aria_label="share of the picture that shows the first clip", hidden=True,
            ),
            controls(frame_steps=True),
            _class="stage",
        ),
        element(
            "div",
            element("p", _class="said"),
            picker,
            element(
                "div", choice("before", "Before", sides), choice("after", "After", sides), _class="sides"
            ),
            element("div", *views, _class="views", role="radiogroup", aria_label="how to compare"),
            marks,
            _class="panel",
        ),
        _class="player card",
        id="player",
        hidden=True,
    )  # fmt: skip


def _side(name: str) -> Html:
    video = element("video", _class="video", muted=True, playsinline=True, preload="none")
    return element("figure", video, element("figcaption"), _class=f"shot {name}")


def controls(frame_steps: bool = False, hidden: bool = False) -> Html:
    """Play, position and speed of a group of clips, and steps of a frame where they are asked for.

    hidden: until playback.js shows it; without scripts clips stand still and nothing pretends otherwise.
    """
    steps = (
        element("button", "−1", type="button", _class="back", aria_label="one frame back"),
        element("button", "+1", type="button", _class="forward", aria_label="one frame on"),
    )
    return element(
        "div",
        element("button", "Pause", type="button", _class="play", aria_pressed="true"),
        *(steps if frame_steps else ()),
        element(
            "input",
            type="range",
            _class="scrub",
            min=0,
            max=1000,
            value=0,
            aria_label="position in the clips",
        ),
        element("button", "1×", type="button", _class="speed", aria_label="playback speed"),
        _class="controls",
        hidden=hidden,
    )


def _name(run: Run, r: int) -> str:
    name = "base" if r == 0 else f"round {r}"
    return f"{name} (rolled back)" if run.kept(r) is False else name


def _title(name: str) -> str:
    known = BY_NAME.get(name)
    return known.title if known else name.replace("_", " ").capitalize()
