"""The curves section: one chart per metric over rounds, grouped by what they tell about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loop.report.charts import Point, curve, interval, number
from loop.report.collect import Row, Run, is_number
from loop.report.markup import Html, element, join

UNIT = (0.0, 1.0)
# a judge that stays the same for the whole campaign is named so in the metrics' judge column
FROZEN_JUDGE = ("frozen", "held")
HELD_OUT = "held_out_"  # or in the metric's
TRAINING = "training judge"
REAL = "real_"  # before a metric's name: the same measure on the held-out real clips


@dataclass(frozen=True)
class Metric:
    name: str
    title: str
    better: str  # "higher", "lower" or "" where neither is
    bounds: tuple[float, float] | None = None
    reference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Group:
    title: str
    lead: str
    metrics: tuple[Metric, ...]
    colour: int
    about_judge: bool = False  # then a rolled-back generator says nothing about the point


GROUPS = (
    Group(
        "Oracle",
        "Measured from pixels on held-out prompts. It scores the rounds and trains nothing.",
        (
            Metric("oracle_total", "Oracle total", "higher", note="all five parts must be right at once"),
            Metric("oracle_colour", "Colour", "higher", UNIT),
            Metric("oracle_shape", "Shape", "higher", UNIT),
            Metric("oracle_direction", "Direction", "higher", UNIT),
            Metric("oracle_smoothness", "Smoothness", "higher", UNIT),
            Metric("oracle_permanence", "Permanence", "higher", UNIT),
        ),
        colour=1,
    ),
    Group(
        "Preference",
        "Win rates count ties half; one half means no difference.",
        (
            Metric("win_rate_vs_base", "Win rate against base", "higher", UNIT, 0.5),
            Metric("win_rate_vs_previous", "Win rate against previous", "higher", UNIT, 0.5),
            Metric(
                "held_out_win_rate_vs_base", "Win rate against base", "higher", UNIT, 0.5, "held-out judge"
            ),
            Metric(
                "held_out_win_rate_vs_previous",
                "Win rate against previous",
                "higher",
                UNIT,
                0.5,
                "held-out judge",
            ),
            Metric("fool_rate", "Fool rate", "higher", UNIT, 0.5, "takes preferred to a real clip"),
        ),
        colour=2,
    ),
    Group(
        "Motion and drift",
        "Optical flow of the clips, and how far the policy’s predictions have moved from the base’s.",
        (
            Metric("motion_magnitude", "Motion magnitude", "", note="share of the diagonal a frame"),
            Metric("motion_smoothness", "Motion smoothness", "higher"),
            Metric("flicker", "Flicker", "lower"),
            Metric("subject_drift", "Subject drift", "lower", UNIT, None, "change of the subject’s colours"),
            Metric(
                "two_sample_auc",
                "Takes told from real clips",
                "lower",
                UNIT,
                0.5,
                "by a line on pixel features; ½ cannot, 1 always",
            ),
            Metric(
                "drift_from_base",
                "Drift from the base",
                "lower",
                note="mean squared difference of predictions",
            ),
            Metric(
                "probe_auc_pixels",
                "Line between real and made, pixels",
                "",
                UNIT,
                0.5,
                "how well coarse statistics tell anchors from takes",
            ),
            Metric(
                "probe_auc_latents",
                "Line between real and made, latents",
                "",
                UNIT,
                0.5,
                "near 1 while takes look right: look for a leak",
            ),
        ),
        colour=3,
    ),
    Group(
        "Judge",
        "How good the judge itself is, on questions whose answer is known or measured.",
        (
            Metric("judge_accuracy", "Accuracy on known answers", "higher", UNIT, 0.5),
            Metric(
                "judge_flip_rate",
                "Flip rate",
                "lower",
                UNIT,
                None,
                "answers that change with the order shown",
            ),
            Metric("judge_oracle_agreement", "Agreement with the oracle", "higher", UNIT, 0.5),
            Metric(
                "judge_oracle_agreement_vs_base", "Agreement with the oracle", "higher", UNIT, 0.5, "vs base"
            ),
            Metric(
                "judge_oracle_agreement_vs_previous",
                "Agreement with the oracle",
                "higher",
                UNIT,
                0.5,
                "vs previous",
            ),
            *(
                Metric(
                    f"pair_precision_{source}",
                    f"Pair precision, {source}",
                    "higher",
                    UNIT,
                    0.5,
                    "kept pairs whose winner the oracle prefers",
                )
                for source in ("fresh", "guided")
            ),
        ),
        colour=4,
        about_judge=True,
    ),
)


def curves(run: Run) -> Html | None:
    """Every metric found, in the groups above; names that no group knows come last."""
    rows = run.metrics
    if not rows:
        return None
    reals = {row["metric"]: float(row["value"]) for row in rows if row["metric"].startswith(REAL)}
    known = {metric.name for group in GROUPS for metric in group.metrics}
    strangers = sorted({row["metric"] for row in rows} - known - set(reals))
    others = Group(
        "Other", "", tuple(Metric(name, name.replace("_", " "), "") for name in strangers), colour=5
    )
    told = "Bands and bars are 95 % intervals. The bold number belongs to the last round kept."
    if any(row["kept"] is False for row in rows):
        told += " A hollow point is a candidate that was rolled back."
    return join(
        element("p", told, _class="lead"), *(_group(run, group, rows, reals) for group in (*GROUPS, others))
    )


def points_of(rows: Sequence[Row], about_judge: bool = False) -> list[Point]:
    """Metric rows of one curve as points, by round."""
    return [
        Point(
            round=int(row["round"]),
            value=float(row["value"]),
            low=float(row["low"]) if is_number(row.get("low")) else None,
            high=float(row["high"]) if is_number(row.get("high")) else None,
            num_clips=row.get("num_clips"),
            kept=True if about_judge else row["kept"],
        )
        for row in sorted(rows, key=lambda row: row["round"])
    ]


def _group(run: Run, group: Group, rows: Sequence[Row], reals: Mapping[str, float]) -> Html | None:
    cards: list[Html] = []
    for metric in group.metrics:
        lines: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row["metric"] == metric.name:
                lines.setdefault((row.get("part") or "", _measured_by(row)), []).append(row)
        several = len({part for part, _ in lines}) > 1
        cards += [
            _card(
                run,
                group,
                metric,
                line,
                judge,
                f"{part} part" if several else "",
                reals.get(REAL + metric.name),
            )
            for (part, judge), line in sorted(lines.items())
        ]
    if not cards:
        return None
    lead = element("p", group.lead, _class="lead") if group.lead else None
    kind = "charts with-hero" if group.metrics[0].name == "oracle_total" else "charts"
    return element(
        "div",
        element("h3", group.title),
        lead,
        element("div", *cards, _class=f"{kind} colour-{group.colour}"),
        _class="group",
    )


def _measured_by(row: Row) -> str:
    """Empty for no judge, the name of a frozen one, TRAINING for whichever judge was in force then."""
    judge = str(row.get("judge") or "")
    frozen = judge.startswith(FROZEN_JUDGE) or str(row["metric"]).startswith(HELD_OUT)
    return judge if not judge or frozen else TRAINING


def _card(
    run: Run, group: Group, metric: Metric, rows: Sequence[Row], judge: str, part: str, real: float | None
) -> Html:
    points = points_of(rows, group.about_judge)
    large = metric.name == "oracle_total"
    # a rolled-back candidate is not what the campaign has now
    last = next((point for point in reversed(points) if point.kept is not False), points[-1])
    told = [metric.note, part, f"{metric.better} is better" if metric.better else ""]
    latest = "base" if last.round == 0 else f"round {last.round}"
    bounds95 = interval(last.low, last.high)
    changes = judge == TRAINING
    return element(
        "figure",
        element(
            "figcaption",
            element("span", metric.title, _class="title"),
            element("span", number(last.value), _class="latest"),
            element("span", ", ".join(word for word in told if word), _class="note"),
            element("span", f"{latest}{', ' if bounds95 else ''}{bounds95}", _class="note right"),
        ),
        curve(
            points,
            metric.title,
            num_rounds=max(run.rounds, default=0),
            bounds=metric.bounds,
            reference=metric.reference,
            real=real,
            large=large,
        ),
        element("p", "judge changes every round", _class="warning", title="measured by the training judge")
        if changes
        else None,
        element("p", f"frozen judge: {judge}", _class="note") if judge and not changes else None,
        _class="card hero" if large else "card",
    )
