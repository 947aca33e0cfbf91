"""The judge section: votes, abstentions, flips and certainty per round."""

from __future__ import annotations

from collections import Counter

from loop.report import tables
from loop.report.charts import histogram, number
from loop.report.collect import Row, Run, is_number
from loop.report.markup import Html, element

NUM_BINS = 10
KINDS = {
    "take_take": "take against take",
    "take_real": "take against real",
    "segment": "segment",
    "known": "known answer",
}
COLOURS = {kind: i + 1 for i, kind in enumerate(KINDS)}


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
        verdicts, votes = overall_verdicts(run, r), run.arrow(r, "label", "votes.parquet", ("abstention",))
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


def overall_verdicts(run: Run, r: int) -> list[Row]:
    """The judge's verdict on every question of a round, over all dimensions."""
    columns = (
        *("question_id", "kind", "segment", "prompt", "first_id", "second_id", "dimension", "p_first"),
        *("p_second", "p_tie", "mode", "flip_rate", "certainty", "calibrated_for", "num_votes"),
        "num_abstentions",
    )
    rows = run.table(r, "label", "verdicts.parquet", columns)
    return [row for row in rows if row["dimension"] == "overall"]


def _certainty_bins(verdicts: list[Row]) -> dict[str, list[int]]:
    bins: dict[str, list[int]] = {}
    for v in verdicts:
        if is_number(v.get("certainty")):
            place = min(NUM_BINS - 1, int(float(v["certainty"]) * NUM_BINS))
            bins.setdefault(str(v["kind"]), [0] * NUM_BINS)[place] += 1
    return {kind: bins[kind] for kind in KINDS if kind in bins}


def _part_of(num: int, whole: int) -> str:
    return f"{num:,} ({100 * num / whole:.1f} %)" if num and whole else str(num)
