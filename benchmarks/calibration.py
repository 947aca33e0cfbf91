"""Is a verdict's certainty what it says, and what does the filter of verdicts reach?

    python benchmarks/calibration.py RUN [--questions 2000] [--labels 400 1200] [--targets 0.8 0.9]
                                     [--dimension overall] [--out DIR] [--plot FILE.svg]

Asks the judge in force of a campaign known answers made from the report part's anchors, by label.voting, and
measures its certainty: as voted (the score as a probability), with the campaign's own calibrators, and with
slopes and with curves fitted on other numbers of questions of the calibrate part (--labels). With --out, a
folder for this run alone, finished shards are kept and not asked again.

One JSON row a kind (all known answers, those of whole clips, those of segments) and calibrator: ECE in ten
bins of the probability that the preferred clip is better; Brier skill over always saying ½; the share of
right ones among the 20, 40 … 100 % most certain; and, for each target precision, the share that such a filter
keeps and the precision that it reaches. A true tie, or a verdict without a side, is half right.

On the embedded world there are rows on the campaign's takes, whose truth is the oracle's, for reports alone:
the precision of what the filter of verdicts and the choice of pairs kept and dropped, and what certainties
are worth there: as voted, of known answers, and of calibrators fitted on the oracle's answers about the other
half of the prompts, as people's answers would be. Two takes are as good as each other where their totals
differ by no more than 0.05. Brackets: bootstrap 95 % over anchors, for takes over prompts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.takes import Takes, Truth
from loop.config import CampaignConfig
from loop.precision import filter_precision
from loop.progress import LineProgress
from loop.stages import StageContext
from loop.statistics import Interval, bootstrap, bootstrap_mean
from loop.status import judge_in_force
from loop.steps.human_labels import cross_fitted
from loop.steps.judge_gate import known_answers
from loop.steps.judging import ask, fold_all, open_judge
from reward.calibration import KNOWN_SEGMENT, Calibrator, fit_known, kind_of, load
from reward.certainty import (
    apply,
    brier_skill,
    coverage_accuracy,
    ece,
    least_certainties,
    why_not_confident,
)
from reward.config import CertaintyConfig
from reward.judge import Judge
from reward.voting import Verdict

COVERAGES = (0.2, 0.4, 0.6, 0.8, 1.0)
Calibrators = Mapping[str, Calibrator]


def outcomes(
    verdicts: Sequence[Verdict], truth: Sequence[Truth], dimension: str
) -> tuple[np.ndarray, np.ndarray]:
    """Certainty [N] of the preferred side, and its outcome [N]: 1 right, 0 wrong, ½ where there is no side.

    That is what P(first) of the questions and of their mirror images says: ½ has as many right as wrong.
    """
    certainty, right = [], []
    for verdict, answers in zip(verdicts, truth, strict=True):
        found = verdict.dimensions[dimension]
        assert found.certainty is not None
        no_side = answers[dimension] == "tie" or found.score == 0.5 or found.certainty == 0.5
        named = "first" if found.score > 0.5 else "second"
        certainty.append(found.certainty)
        right.append(0.5 if no_side else float(named == answers[dimension]))
    return np.array(certainty), np.array(right)


def as_voted(verdict: Verdict) -> Verdict:
    """The score taken for a probability."""
    return replace(
        verdict,
        dimensions={
            name: replace(d, certainty=max(d.score, 1 - d.score), calibrated_for="score")
            for name, d in verdict.dimensions.items()
        },
    )


def measures(certainty: np.ndarray, right: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """The columns of one row."""
    return {
        "num": len(right),
        "ECE": show(bootstrap(lambda w: ece(certainty, right, weights=w), groups, seed=0)),
        "Brier skill": show(bootstrap(lambda w: brier_skill(certainty, right, weights=w), groups, seed=0)),
        "mean certainty": round(float(certainty.mean()), 3),
        "right": show(bootstrap_mean(right.tolist(), groups, seed=0)),
        "right among the most certain": {
            f"{share:.0%}": round(value, 3)
            for share, value in zip(COVERAGES, coverage_accuracy(certainty, right, COVERAGES), strict=True)
        },
    }


def target_row(
    verdicts: Sequence[Verdict], truth: Sequence[Truth], groups: Sequence[str], target: float, dimension: str
) -> dict[str, Any]:
    """What a filter by target precision keeps of these verdicts, and the precision that it reaches."""
    limits = CertaintyConfig(target_precision=target, min_votes=1)
    least = least_certainties(verdicts, dimension, limits)
    certainty, right = outcomes(verdicts, truth, dimension)
    kept = np.array([why_not_confident(v, dimension, limits, least) is None for v in verdicts])
    return {
        "kept": round(float(kept.mean()), 3),
        "promised": round(float(certainty[kept].mean()), 3) if kept.any() else None,
        "reached": show(bootstrap_mean(right[kept].tolist(), np.array(groups)[kept].tolist(), seed=0)),
    }


def on_known_answers(
    verdicts: Sequence[Verdict],
    truth: Sequence[Truth],
    by_name: Mapping[str, Callable[[Verdict], Verdict]],
    targets: Sequence[float],
    dimension: str,
) -> Iterator[dict[str, Any]]:
    """A row for each kind and each way to get a certainty from a verdict."""
    for kind in ("all", "known", KNOWN_SEGMENT):
        of = [i for i, v in enumerate(verdicts) if kind in ("all", kind_of(v))]
        if not of:
            continue
        answers, groups = [truth[i] for i in of], [verdicts[i].group for i in of]
        for name, certain in by_name.items():
            found = [certain(verdicts[i]) for i in of]
            row = {"kind": kind, "certainty": name, **measures(*outcomes(found, answers, dimension), groups)}
            for target in targets if name != "as voted" else ():
                row[f"target {target}"] = target_row(found, answers, groups, target, dimension)
            yield row


def on_takes(
    run: Path, config: CampaignConfig, known: Calibrators, targets: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Rows on the takes of all rounds with pairs: what was kept, and what certainties are worth there."""
    verdicts: list[Verdict] = []
    truth: list[Truth] = []
    groups: list[str] = []
    for number in range(1, config.rounds + 1):
        if not (run / f"round-{number:03d}" / "pair").exists():
            continue
        takes = Takes(run, number, config)
        of = takes.verdicts()
        found = filter_precision(*of, config.certainty)
        row: dict[str, Any] = {"round": number, "takes": "filter of verdicts", "reasons": found["reasons"]}
        for where in ("kept", "dropped"):
            interval = Interval(**{k: found[where][k] for k in ("value", "low", "high", "num")})
            row[where] = _pairs(interval)
            row[f"{where}, true ties"] = found[where]["num_true_ties"]
        yield row
        chosen = takes.choice_of_pairs()
        yield {
            "round": number, "takes": "choice of pairs", **{w: _pairs(found) for w, found in chosen.items()}
        }  # fmt: skip
        verdicts += of[0]
        truth += of[1]
        groups += of[2]
    ways: dict[str, list[Verdict] | None] = {"as voted": [as_voted(v) for v in verdicts]}
    if "known" in known:
        ways["campaign's, of known answers"] = [apply(v, {"take_take": known["known"]}) for v in verdicts]
    for shape, least in (("slopes", None), ("curves", 1)):
        limits = config.certainty.model_copy(update={"isotonic_labels": least})
        ways[f"of takes, {shape}"] = cross_fitted(verdicts, truth, groups, limits)
    for name, certain in ways.items():
        if certain:
            row = {"rounds": "all", "takes": "certainty", "certainty": name}
            row |= measures(*outcomes(certain, truth, "overall"), groups)
            for target in targets if name != "as voted" else ():
                row[f"target {target}"] = target_row(certain, truth, groups, target, "overall")
            yield row


def examine(
    run: Path, num: int, labels: Sequence[int], targets: Sequence[float], dimension: str, out: Path
) -> Iterator[dict[str, Any]]:
    """All rows of a campaign."""
    config = CampaignConfig.model_validate_json((run / "resolved.json").read_text())
    found = judge_in_force(run)
    progress = LineProgress(run.name, Console(stderr=True))
    inputs = {"prepare": run / "round-000" / "prepare"}
    ctx = StageContext(config, 0, inputs, out, 0, progress, logging.getLogger("retake"), "evaluate")
    judge = open_judge(ctx, found.trained)
    by_name: dict[str, Callable[[Verdict], Verdict]] = {"as voted": as_voted}
    own: Calibrators = {}
    try:
        verdicts, truth = _judged(ctx, judge, "report", num)
        more = _judged(ctx, judge, "calibrate", max(labels, default=0))
    finally:
        judge.close()
    if found.calibrators is not None:
        own = load(found.calibrators)
        by_name["campaign"] = _with(own)
    limits = config.certainty
    for number in sorted(labels):
        for shape, least in (("slopes", None), ("curves", 1)):
            fitted = fit_known(more[0][:number], more[1][:number], limits.min_labels, least)
            by_name[f"{number} questions, {shape}"] = _with(fitted)
    yield from on_known_answers(verdicts, truth, by_name, targets, dimension)
    if config.data.anchors == "embedded":
        yield from on_takes(run, config, own, targets)


def _judged(ctx: StageContext, judge: Judge, part: str, num: int) -> tuple[list[Verdict], list[Truth]]:
    """Verdicts on known answers of a part, by label.voting, and their truth."""
    known = known_answers(ctx, part, num)
    asked = [k.question for k in known]
    name = f"{part}-{num}"  # the last shard of another number would lack questions
    verdicts = fold_all(asked, ask(ctx, judge, asked, ctx.config.label.voting, name)) if asked else []
    return verdicts, [k.answers for k in known]


def _with(calibrators: Calibrators) -> Callable[[Verdict], Verdict]:
    return lambda verdict: apply(verdict, calibrators)


def _pairs(found: Interval) -> str:
    return f"{show(found)}, {found.num} pairs"


def show(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" if found.num else "–"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The right ones among the most certain, by certainty, of all known answers and of takes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for row in rows:
        if row.get("kind") == "all" or row.get("takes") == "certainty":
            what = "known answers" if "kind" in row else "takes"
            curve = row["right among the most certain"]
            axes.plot(COVERAGES, list(curve.values()), marker=".", label=f"{what}: {row['certainty']}")
    axes.set(xlabel="share of the verdicts, most certain first", ylabel="right", ylim=(0.5, 1))
    axes.legend()
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--labels", type=int, nargs="*", default=[])
    parser.add_argument("--targets", type=float, nargs="*", default=[0.8, 0.9])
    parser.add_argument("--dimension", default="overall")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = []
        for row in examine(
            options.run, options.questions, options.labels, options.targets, options.dimension, out
        ):
            rows.append(row)
            print(json.dumps({"run": options.run.name, **row}, ensure_ascii=False), flush=True)
        if options.out:
            (out / "calibration.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        if options.plot:
            plot(rows, options.plot)


if __name__ == "__main__":
    main()
