"""The judge section: votes, abstentions, flips and certainty per round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
        counted = _count(run, r)
        num_votes = run.num_rows(r, "label", "votes.parquet") or 0
        reasons = run.counts(r, "label", "votes.parquet", "abstention")
        del reasons[None]
        rows["questions"][r] = f"{counted.num:,}"
        rows["votes"][r] = f"{num_votes:,}"
        rows["flip rate"][r] = number(counted.flips / counted.num_flips) if counted.num_flips else "–"
        rows["abstentions"][r] = _part_of(reasons.total(), num_votes)
        for reason, num in sorted(reasons.items()):
            rows.setdefault(f"abstained: {reason.replace('_', ' ')}", {})[r] = _part_of(num, num_votes)
        bins = {kind: counted.bins[kind] for kind in KINDS if kind in counted.bins}
        seen |= set(bins)
        charts.append(_certainty_card(r, counted, bins))
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


def _certainty_card(r: int, counted: _Counted, bins: dict[str, list[int]]) -> Html:
    caption = element(
        "figcaption",
        element("span", f"Round {r}", _class="title"),
        element("span", f"{counted.num_calibrated:,} of {counted.num:,} calibrated", _class="note right"),
    )
    return element("figure", caption, histogram(bins, f"certainty in round {r}", COLOURS), _class="card")


_ALL = (
    *("question_id", "kind", "segment", "prompt", "first_id", "second_id", "p_first", "p_second", "p_tie"),
    *("mode", "flip_rate", "certainty", "calibrated_for", "num_votes", "num_abstentions"),
)


def overall_verdicts(run: Run, r: int, columns: Sequence[str] = _ALL) -> Iterator[Row]:
    """The judge's verdict on every question of a round, over all dimensions, one after the other."""
    for batch in run.batches(r, "label", "verdicts.parquet", ("dimension", *columns)):
        yield from (row for row in batch.to_pylist() if row["dimension"] == "overall")


@dataclass
class _Counted:
    """Of a round's verdicts. bins: numbers of verdicts by certainty, for each kind."""

    num: int = 0
    num_calibrated: int = 0
    flips: float = 0.0  # the sum of the flip rates
    num_flips: int = 0  # of the verdicts that have one
    bins: dict[str, list[int]] = field(default_factory=dict)


def _count(run: Run, r: int) -> _Counted:
    counted = _Counted()
    for v in overall_verdicts(run, r, ("kind", "flip_rate", "certainty", "calibrated_for")):
        counted.num += 1
        counted.num_calibrated += bool(v.get("calibrated_for"))
        if is_number(v.get("flip_rate")):
            counted.flips += float(v["flip_rate"])
            counted.num_flips += 1
        if is_number(v.get("certainty")):
            place = min(NUM_BINS - 1, int(float(v["certainty"]) * NUM_BINS))
            counted.bins.setdefault(str(v["kind"]), [0] * NUM_BINS)[place] += 1
    return counted


def _part_of(num: int, whole: int) -> str:
    return f"{num:,} ({100 * num / whole:.1f} %)" if num and whole else str(num)
