"""The clips section: the same prompts and seeds, one column a round, beside the real clip if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loop.report.charts import number
from loop.report.collect import Row, Run, is_number
from loop.report.embed import Clips
from loop.report.markup import Html, element

T = TypeVar("T")
MOST_ROWS = 6
MOST_ROUNDS = 6  # columns besides the real clip


@dataclass(frozen=True)
class Shot:
    """One generated clip of the grid: its file, and the oracle's total where it was measured."""

    file: Path
    score: float | None


@dataclass(frozen=True)
class GridRow:
    prompt: str
    seed: object
    real: Path | None
    shots: dict[int, Shot]  # by round


def watch(run: Run, clips: Clips) -> Html | None:
    """The grid with its controls, or None while nothing has been evaluated."""
    rounds = [index for index in run.rounds if run.artefact(index, "evaluate")]
    by_round = {index: _shots(run, index) for index in rounds}
    if not any(by_round.values()):
        return None
    # a comparison needs the same prompt and seed in every round; fresh gate seeds, say, have no counterpart
    shared = set.intersection(*(set(shots) for shots in by_round.values()))
    cells = sorted(shared or set.union(*(set(shots) for shots in by_round.values())), key=str)
    columns = _spread(rounds, MOST_ROUNDS)
    reals = _real_clips(run)
    chosen: list[GridRow] = []
    planned: list[Path] = []
    for prompt_id, prompt, seed in _spread(_one_seed_a_prompt(cells), MOST_ROWS):
        key = (prompt_id, prompt, seed)
        row = GridRow(
            prompt, seed, reals.get(prompt), {r: by_round[r][key] for r in columns if key in by_round[r]}
        )
        files = [shot.file for shot in row.shots.values()] + ([row.real] if row.real else [])
        if chosen and not clips.fits(planned + files):
            break
        chosen.append(row)
        planned += files
    with_real = any(row.real for row in chosen)
    heads = [element("div", _class="corner")]
    heads += [element("div", "real clip", _class="head")] if with_real else []
    heads += [_head(run, r) for r in columns]
    body = [child for row in chosen for child in _cells(row, columns, with_real, clips)]
    note = f"{len(chosen)} of {len(cells)} cells (prompt and seed), evenly spaced, not picked by quality."
    if any(shot.score is not None for row in chosen for shot in row.shots.values()):
        note += " The number below a clip is its oracle total."
    if with_real:
        note += " The real clip has the same caption, not the same start."
    return element(
        "div",
        element("div", element("p", note, _class="lead"), _controls(), _class="toolbar"),
        element("div", *heads, *body, _class="watch", style=f"--columns:{len(columns) + with_real}"),
    )


def _head(run: Run, index: int) -> Html:
    back = run.kept(index) is False
    return element(
        "div",
        "base" if index == 0 else f"round {index}",
        element("small", "rolled back") if back else None,
        _class="head back" if back else "head",
    )


def _cells(row: GridRow, columns: Sequence[int], with_real: bool, clips: Clips) -> list[Html]:
    out = [
        element(
            "div",
            element("span", row.prompt, title=row.prompt),
            element("small", f"seed {row.seed}"),
            _class="prompt",
        )
    ]
    if with_real:
        out.append(
            element(
                "figure",
                clips.video(row.real, f"{row.prompt}, real clip"),
                _class="shot real",
            )
        )
    for r in columns:
        shot = row.shots.get(r)
        name = "base" if r == 0 else f"round {r}"
        score = number(shot.score) if shot and shot.score is not None else ""
        caption = [element("span", name), element("b", score, title="oracle total") if score else None]
        out.append(
            element(
                "figure",
                clips.video(shot.file if shot else None, f"{row.prompt}, {name}, seed {row.seed}"),
                element("figcaption", *caption),
                _class="shot",
            )
        )
    return out


def _controls() -> Html:
    return element(
        "div",
        element("button", "Pause", type="button", _class="play", aria_pressed="true"),
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
        hidden=True,  # app.js shows it; without scripts the clips stand still and nothing pretends otherwise
    )


def _shots(run: Run, index: int) -> dict[tuple[str, str, object], Shot]:
    """This round's evaluation takes by (prompt id, prompt, seed)."""
    folder = run.artefact(index, "evaluate")
    if folder is None:
        return {}
    scores = {
        row.get("take_id"): row.get("oracle_total")
        for row in run.table(index, "evaluate", "scores.parquet", ("take_id", "oracle_total"))
    }
    takes = run.table(index, "evaluate", "takes.parquet", ("take_id", "prompt_id", "prompt", "file", "seed"))
    return {
        (str(take["prompt_id"]), str(take["prompt"]), take["seed"]): Shot(
            folder / take["file"], score if is_number(score := scores.get(take["take_id"])) else None
        )
        for take in takes
    }


def _real_clips(run: Run) -> dict[str, Path]:
    """One stored anchor per caption, from the report part where there is one."""
    folder = run.artefact(0, "prepare")
    anchors: list[Row] = run.table(0, "prepare", "anchors.parquet", ("anchor_id", "file", "caption", "part"))
    anchors.sort(key=lambda row: (row.get("part") == "report", str(row["anchor_id"])))
    return {row["caption"]: folder / row["file"] for row in anchors} if folder else {}


def _one_seed_a_prompt(cells: Sequence[tuple[str, str, object]]) -> list[tuple[str, str, object]]:
    """A cell per prompt, and all cells only where the prompts alone would leave rows free."""
    first: dict[str, tuple[str, str, object]] = {}
    for cell in cells:
        first.setdefault(cell[1], cell)
    return list(first.values()) if len(first) >= MOST_ROWS else list(cells)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
