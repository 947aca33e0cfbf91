"""What judge_gate looks at beside accuracy: vices of the judge in force, and its drift over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from loop.alarms import Answered, as_rows, by_kind, drift_alarms, judge_alarms
from loop.stages import StageContext
from loop.statistics import bootstrap_mean
from loop.steps.common import read_table, write_table
from loop.steps.judging import JudgeAtHand, known_sources
from reward.calibration import load
from reward.certainty import apply
from reward.config import VotingConfig
from reward.known_answers import KnownAnswer
from reward.probes import Probe, make_probes
from reward.voting import Verdict

WATCHED = "watched.parquet"
_ROWS = pa.schema(
    [
        ("question_id", pa.string()),
        ("probe", pa.bool_()),
        ("kind", pa.string()),
        ("group", pa.string()),
        ("score", pa.float64()),
        ("flip_rate", pa.float64()),
        ("confidence", pa.float64()),
    ]
)


def watch(
    ctx: StageContext,
    judges: JudgeAtHand,
    judge: Path | None,
    known: Sequence[KnownAnswer],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """Asks the judge in force the probes; `verdicts` are its own on `known`. Returns what joins gate.json.

    Writes watched.parquet, with which the next round's judge is compared.
    """
    settings = ctx.config.alarms
    assert settings is not None
    probes = make_probes(
        known_sources(ctx, "gate"), settings.num_probes, ctx.config.seed, ctx.config.judge.dimensions
    )
    voting = VotingConfig(num_ballots=settings.num_ballots)
    asked = judges.answer(judge, [probe.question for probe in probes], voting, "probes")
    probed = [_of_probe(p, v) for p, v in zip(probes, asked, strict=True)]
    calibrators = load(ctx.out / "calibrators.json")
    answered = [
        _of_known(k, apply(v, calibrators))
        for k, v in zip(known, verdicts, strict=True)
        if k.answers["overall"] != "tie"
    ]
    rows = [{**vars(a), "probe": True} for a in probed] + [{**vars(a), "probe": False} for a in answered]
    write_table(ctx.out / WATCHED, rows, _ROWS)
    alarms = [*judge_alarms(probed, answered, settings), *drift_alarms(answered, _before(ctx), settings)]
    for alarm in alarms:
        ctx.log.warning("alarm %s: %s", alarm.name, alarm.reason)
    return {
        "alarms": as_rows(alarms),
        "probes": _accuracies(ctx, probed),
        "accuracy_by_corruption": _accuracies(ctx, answered),
    }


def _of_probe(probe: Probe, verdict: Verdict) -> Answered:
    found, q = verdict.dimensions["overall"], probe.question
    score = found.score if probe.better_first else 1 - found.score
    return Answered(q.id, probe.vice, q.group, score, found.flip_rate)


def _of_known(known: KnownAnswer, verdict: Verdict) -> Answered:
    found, q = verdict.dimensions["overall"], known.question
    score = found.score if known.answers["overall"] == "first" else 1 - found.score
    confidence = found.certainty if found.calibrated_for is not None else None
    return Answered(q.id, known.corruption, q.group, score, found.flip_rate, confidence)


def _before(ctx: StageContext) -> list[Answered]:
    """The known answers of the judge that was in force a round ago; none where no alarms were configured."""
    file = ctx.inputs["earlier"] / WATCHED if "earlier" in ctx.inputs else None
    if file is None or not file.is_file():
        return []
    rows = [row for row in read_table(file) if not row.pop("probe")]
    return [Answered(**row) for row in rows]


def _accuracies(ctx: StageContext, answers: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """By kind the share of votes for the better clip, ties half, with a 95 % interval over clips."""
    found = {}
    for kind, of in by_kind(answers).items():
        interval = bootstrap_mean([a.score for a in of], [a.group for a in of], ctx.seed)
        found[kind] = {"accuracy": interval.value, "low": interval.low, "high": interval.high, "num": len(of)}
    return found
