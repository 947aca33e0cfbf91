"""The metrics that the page knows by name: titles, groups, axes, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

UNIT = (0.0, 1.0)
REAL = "real_"  # before a metric's name: the same measure on the held-out real clips
HELD_OUT = "held_out"  # before a metric's name: measured by a judge that no training here touches


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
            Metric("fool_rate", "Fool rate", "higher", UNIT, 0.5, "takes preferred to a real clip"),
        ),
        colour=2,
    ),
    Group(
        "Held-out judge",
        "The same questions to a judge that no training of this campaign touches; ties count half.",
        (
            Metric("held_out_win_rate_vs_base", "Win rate against base", "higher", UNIT, 0.5),
            Metric("held_out_win_rate_vs_previous", "Win rate against previous", "higher", UNIT, 0.5),
            Metric("held_out_fool_rate", "Fool rate", "higher", UNIT, 0.5, "takes preferred to a real clip"),
        ),
        colour=6,
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
                "drift_from_base",
                "Drift from the base",
                "lower",
                note="mean squared difference of predictions",
            ),
            Metric(
                "two_sample_auc",
                "Takes told from real clips",
                "lower",
                UNIT,
                0.5,
                "by a line on pixel features; ½ cannot, 1 always",
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

BY_NAME = {metric.name: metric for group in GROUPS for metric in group.metrics}
