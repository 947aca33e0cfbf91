"""The judge section: votes, abstentions, flips and certainty per round, and a few verdicts in its words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from loop.report import tables
from loop.report.charts import histogram, interval, number
from loop.report.collect import Row, Run, is_number
from loop.report.embed import Clips
from loop.report.markup import Child, Html, element, join

NUM_BINS = 10
KINDS = {
    "take_take": "take against take",
    "take_real": "take against real",
    "segment": "segment",
    "known": "known answer",
}
COLOURS = {kind: i + 1 for i, kind in enumerate(KINDS)}
_SIDES = {"first": "A", "second": "B", "tie": "tie"}
_TURNED = {"first": "second", "second": "first", "tie": "tie"}
MOST_VOTES = 4  # shown per question


def judge_statistics(run: Run) -> Html | None:
    """Counts over the votes of every labelled round and the certainty of its verdicts."""
    rounds = [r for r in run.rounds if run.artefact(r, "label")]
    if not rounds:
        return None
    rows: dict[str, dict[int, str]] = {
        name: {} for name in ("questions", "votes", "flip rate", "abstentions")
    }
    charts: list[Html] = []
    seen: set[str] = set()
    for r in rounds:
        verdicts, votes = _overall(run, r), run.arrow(r, "label", "votes.parquet", ("abstention",))
        num_votes = votes.num_rows if votes is not None else 0
        reasons = Counter(votes.column("abstention").to_pylist() if votes and votes.num_columns else [])
        del reasons[None]
        flips = [float(v["flip_rate"]) for v in verdicts if is_number(v.get("flip_rate"))]
        rows["questions"][r] = f"{len(verdicts):,}"
        rows["votes"][r] = f"{num_votes:,}"
        rows["flip rate"][r] = number(sum(flips) / len(flips)) if flips else "–"
        rows["abstentions"][r] = _part_of(reasons.total(), num_votes)
        for reason, num in sorted(reasons.items()):
            rows.setdefault(f"abstained: {reason.replace('_', ' ')}", {})[r] = _part_of(num, num_votes)
        bins = _certainty_bins(verdicts)
        seen |= set(bins)
        charts.append(_certainty_card(r, verdicts, bins))
    legend = [element("li", KINDS[kind], _class=f"colour-{COLOURS[kind]}") for kind in KINDS if kind in seen]
    lead = (
        "From 0, a coin toss, to 1. For a kind of question without labels, certainty is the vote margin and "
        "is not calibrated."
    )
    return element(
        "div",
        element("h3", "Certainty of the verdicts"),
        element("p", lead, _class="lead"),
        element("ul", *legend, _class="legend"),
        element("div", *charts, _class="charts"),
        element("h3", "Votes"),
        tables.plain(
            ("", *(f"round {r}" for r in rounds)),
            [[name, *(row.get(r, "0") for r in rounds)] for name, row in rows.items()],
            numeric=range(1, len(rounds) + 1),
        ),
        _class="group",
    )


def _certainty_card(r: int, verdicts: list[Row], bins: dict[str, list[int]]) -> Html:
    calibrated = sum(1 for verdict in verdicts if verdict.get("calibrated_for"))
    caption = element(
        "figcaption",
        element("span", f"Round {r}", _class="title"),
        element("span", f"{calibrated:,} of {len(verdicts):,} calibrated", _class="note right"),
    )
    return element("figure", caption, histogram(bins, f"certainty in round {r}", COLOURS), _class="card")


def examples(run: Run, clips: Clips) -> Html | None:
    """The most certain, a typical and the least certain question of the last labelled round."""
    labelled = [r for r in run.rounds if run.artefact(r, "label") and run.artefact(r, "sample")]
    if not labelled:
        return None
    r = labelled[-1]
    ranked = sorted(
        (v for v in _overall(run, r) if is_number(v.get("certainty")) and v["kind"] != "known"),
        key=lambda v: (-float(v["certainty"]), str(v["question_id"])),
    )
    if not ranked:
        return None
    places = dict.fromkeys([0, len(ranked) // 2, len(ranked) - 1])
    names = ["Most certain", "Typical", "Least certain"] if len(places) == 3 else ["Verdict"] * len(places)
    files = _files(run, r)
    # by clips, not by question: the pair of a guided take rests on several questions, one a segment
    fate = {
        frozenset((pair["winner_id"], pair["loser_id"])): pair
        for pair in run.table(r, "pair", "pairs.parquet", ("winner_id", "loser_id", "weight"))
    }
    wanted = {ranked[i]["question_id"] for i in places}
    votes = _votes(run, r, wanted)
    cards = [
        _example(
            name,
            ranked[i],
            files,
            [v for v in votes if v["question_id"] == ranked[i]["question_id"]],
            fate.get(frozenset((ranked[i]["first_id"], ranked[i]["second_id"]))),
            run.artefact(r, "pair") is not None,
            clips,
        )
        for name, i in zip(names, places, strict=True)
    ]
    return element(
        "div",
        element("h3", "What it said"),
        element("p", f"From the {len(ranked):,} questions of round {r}, ranked by certainty.", _class="lead"),
        element("div", *cards, _class="examples"),
        _class="group",
    )


def _example(
    name: str,
    verdict: Row,
    files: dict[str, Path],
    votes: list[Row],
    pair: Row | None,
    paired: bool,
    clips: Clips,
) -> Html:
    first, second = str(verdict["first_id"]), str(verdict["second_id"])
    if pair is not None:
        winner = "A" if pair.get("winner_id") == first else "B"
        became = f"became a pair, {winner} the winner, weight {number(float(pair.get('weight') or 0))}"
    else:
        became = "did not become a pair" if paired else "not paired yet"
    kind = KINDS.get(str(verdict["kind"]), str(verdict["kind"]))
    segment = verdict.get("segment")
    shown: list[Child] = [_vote(vote) for vote in votes[:MOST_VOTES]]
    if len(votes) > MOST_VOTES:
        shown.append(element("li", f"and {len(votes) - MOST_VOTES} more votes", _class="note"))
    return element(
        "article",
        element(
            "header",
            element("span", name, _class="title"),
            element(
                "span",
                kind + (f" {segment}, whole clips shown" if segment is not None else ""),
                _class="note right",
            ),
        ),
        element("p", verdict.get("prompt") or "", _class="prompt"),
        element(
            "div",
            *(
                element(
                    "figure",
                    clips.video(files.get(i), f"{side}, {verdict.get('prompt')}"),
                    element("figcaption", side),
                    _class="shot",
                )
                for side, i in (("A", first), ("B", second))
            ),
            _class="duel",
        ),
        element("p", _scale(verdict), _class="odds"),
        element(
            "p",
            f"certainty {number(float(verdict['certainty']))}, flip rate "
            f"{number(float(verdict.get('flip_rate') or 0))}; {became}",
            _class="note",
        ),
        element("ol", *shown, _class="votes"),
        _class="card",
    )


def _scale(verdict: Row) -> Html:
    """P(A better), tie and P(B better) as one bar."""
    shares = [("A", verdict.get("p_first")), ("tie", verdict.get("p_tie")), ("B", verdict.get("p_second"))]
    return join(
        *(
            element(
                "span",
                f"{name} {100 * float(p):.0f} %" if float(p) >= 0.16 else "",
                title=f"P({name}) = {number(float(p))}",
                _class=f"odd {name.lower()}",
                style=f"flex-grow:{float(p):.3f}",
            )
            for name, p in shares
            if is_number(p) and float(p) > 0
        )
    )


def _vote(vote: Row) -> Html:
    order = "B then A" if vote.get("swapped") else "A then B"
    if vote.get("abstention"):
        answer = f"abstained: {str(vote['abstention']).replace('_', ' ')}"
    else:
        said = str((json.loads(vote["answers"]) if vote.get("answers") else {}).get("overall", "–"))
        # answers are stored in the order shown
        answer = _SIDES.get(_TURNED.get(said, said) if vote.get("swapped") else said, said)
    return element(
        "li",
        element("b", answer),
        element("small", f"shown {order}"),
        element("q", (vote.get("reasoning") or "").strip()),
    )


def _votes(run: Run, r: int, wanted: set[str]) -> list[Row]:
    """The votes of a few questions; only their rows become Python objects."""
    table = run.arrow(
        r,
        "label",
        "votes.parquet",
        ("question_id", "swapped", "ballot", "answers", "reasoning", "abstention"),
    )
    if table is None:
        return []
    ids = table.column("question_id").to_pylist()
    return [table.slice(i, 1).to_pylist()[0] for i, question_id in enumerate(ids) if question_id in wanted]


def _files(run: Run, r: int) -> dict[str, Path]:
    """Clip file by take or anchor id."""
    sample, prepare = run.artefact(r, "sample"), run.artefact(0, "prepare")
    files: dict[str, Path] = {}
    if prepare:
        rows = run.table(0, "prepare", "anchors.parquet", ("anchor_id", "file"))
        files |= {str(row["anchor_id"]): prepare / row["file"] for row in rows}
    if sample:
        rows = run.table(r, "sample", "takes.parquet", ("take_id", "file"))
        files |= {str(row["take_id"]): sample / row["file"] for row in rows}
    return files


def _overall(run: Run, r: int) -> list[Row]:
    columns = (
        "question_id",
        "kind",
        "segment",
        "prompt",
        "first_id",
        "second_id",
        "dimension",
        "p_first",
        "p_second",
        "p_tie",
        "flip_rate",
        "certainty",
        "calibrated_for",
    )
    return [v for v in run.table(r, "label", "verdicts.parquet", columns) if v.get("dimension") == "overall"]


def _certainty_bins(verdicts: list[Row]) -> dict[str, list[int]]:
    bins: dict[str, list[int]] = {}
    for v in verdicts:
        if is_number(v.get("certainty")):
            place = min(NUM_BINS - 1, int(float(v["certainty"]) * NUM_BINS))
            bins.setdefault(str(v["kind"]), [0] * NUM_BINS)[place] += 1
    return {kind: bins[kind] for kind in KINDS if kind in bins}


def _part_of(num: int, whole: int) -> str:
    return f"{num:,} ({100 * num / whole:.1f} %)" if num and whole else str(num)


def gate_interval(decision: Row) -> str:
    return interval(decision.get("low"), decision.get("high"))
