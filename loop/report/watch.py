"""The clips section: a player of two rounds, and a grid of the same prompts and seeds, one column a round."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

from loop.report.charts import number
from loop.report.collect import Run, is_number
from loop.report.embed import Clips
from loop.report.markup import Html, element
from loop.report.player import Cell, Shot, controls, player

T = TypeVar("T")
Key = tuple[str, str, object]  # prompt id, prompt, seed
MOST_ROWS = 6  # of the grid
MOST_ROUNDS = 6  # columns of the grid besides the real clip
MOST_CELLS = 24  # to choose from in the player
MOST_TO_COMPARE = 12  # rounds in the player
SHARE = 0.6  # of the page's bytes for clips; the rest is for the verdicts


def watch(run: Run, clips: Clips) -> Html | None:
    """The player and the grid with its controls, or None while nothing has been evaluated."""
    rounds = [index for index in run.rounds if run.artefact(index, "evaluate")]
    by_round = {index: _shots(run, index) for index in rounds}
    if not any(by_round.values()):
        return None
    # a comparison needs the same prompt and seed in every round; fresh gate seeds, say, have no counterpart
    shared = set.intersection(*(set(shots) for shots in by_round.values()))
    keys = sorted(shared or set.union(*(set(shots) for shots in by_round.values())), key=str)
    kept = run.last_kept()
    compared = sorted({*_spread(rounds, MOST_TO_COMPARE), *({kept} & set(rounds))})
    offered = _spread(_one_seed_a_prompt(keys), MOST_CELLS)
    reals = _real_clips(run, {prompt for _, prompt, _ in offered})
    shown = _spread(offered, MOST_ROWS)
    cells: dict[Key, Cell] = {}
    planned: list[Path] = []
    for key in [*shown, *(key for key in offered if key not in shown)]:  # cut short, they are still spread
        _, prompt, seed = key
        shots = {r: by_round[r][key] for r in compared if key in by_round[r]}
        cell = Cell(prompt, seed, reals.get(prompt), shots)
        files = [shot.file for shot in shots.values()] + ([cell.real] if cell.real else [])
        if cells and not clips.fits(planned + files, SHARE):
            break
        cells[key] = cell
        planned += files
    grid = _grid(run, [cells[key] for key in shown if key in cells], _spread(compared, MOST_ROUNDS), clips)
    chosen = [cells[key] for key in offered if key in cells]
    note = f"{len(chosen)} of {len(keys)} cells (prompt and seed), evenly spaced, not picked by quality."
    if len(compared) < len(rounds):
        note += f" Of {len(rounds)} rounds {len(compared)} can be compared."
    if any(cell.real for cell in chosen):
        note += " A real clip has the same caption, not the same start."
    return element(
        "div",
        player(run, chosen, compared, clips),
        element("h3", "Round by round"),
        element(
            "div",
            element("p", note + _scored(chosen), _class="lead"),
            controls(hidden=True),
            _class="toolbar",
        ),
        grid,
        _class="clips",
    )


def _scored(cells: Sequence[Cell]) -> str:
    scored = any(shot.score is not None for cell in cells for shot in cell.shots.values())
    return " The number below a clip is its oracle total." if scored else ""


def _grid(run: Run, cells: Sequence[Cell], columns: Sequence[int], clips: Clips) -> Html:
    with_real = any(cell.real for cell in cells)
    heads = [element("div", _class="corner")]
    heads += [element("div", "real clip", _class="head")] if with_real else []
    heads += [_head(run, r) for r in columns]
    body = [child for cell in cells for child in _cells(cell, columns, with_real, clips)]
    return element("div", *heads, *body, _class="watch", style=f"--columns:{len(columns) + with_real}")


def _head(run: Run, index: int) -> Html:
    back = run.kept(index) is False
    return element(
        "div",
        "base" if index == 0 else f"round {index}",
        element("small", "rolled back") if back else None,
        _class="head back" if back else "head",
    )


def _cells(row: Cell, columns: Sequence[int], with_real: bool, clips: Clips) -> list[Html]:
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


def _shots(run: Run, index: int) -> dict[Key, Shot]:
    """This round's evaluation takes by prompt and seed, with what was measured of each."""
    folder = run.artefact(index, "evaluate")
    if folder is None:
        return {}
    marks = {
        row["take_id"]: {name: float(value) for name, value in row.items() if is_number(value)}
        for row in run.table(index, "evaluate", "scores.parquet")
        if "take_id" in row
    }
    takes = run.table(index, "evaluate", "takes.parquet", ("take_id", "prompt_id", "prompt", "file", "seed"))
    return {
        (str(take["prompt_id"]), str(take["prompt"]), take["seed"]): Shot(
            folder / take["file"], marks.get(take["take_id"], {})
        )
        for take in takes
    }


def _real_clips(run: Run, captions: Collection[str]) -> dict[str, Path]:
    """One stored anchor for each of these captions, from the report part where there is one."""
    folder = run.artefact(0, "prepare")
    columns = ("anchor_id", "file", "caption", "part")
    anchors = list(run.rows_of(0, "prepare", "anchors.parquet", columns, {"caption": captions}))
    anchors.sort(key=lambda row: (row.get("part") == "report", str(row["anchor_id"])))
    return {row["caption"]: folder / row["file"] for row in anchors} if folder else {}


def _one_seed_a_prompt(cells: Sequence[Key]) -> list[Key]:
    """A cell per prompt, and all cells only where the prompts alone would leave rows free."""
    first: dict[str, Key] = {}
    for cell in cells:
        first.setdefault(cell[1], cell)
    return list(first.values()) if len(first) >= MOST_ROWS else list(cells)


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
