"""pair: verdicts become preferences. Every verdict or take that makes none is counted with its reason."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from loop.config import CampaignConfig
from loop.stages import StageContext, derive_seed
from loop.steps.common import read_table, verdicts_of, write_json, write_table
from loop.steps.given_pairs import Given, human_preferences, real_winners
from loop.steps.preference import DROPPED, DROPS, PAIRS, Drops, Preference, worth_of
from reward.certainty import least_certainties, why_not_confident
from reward.config import CertaintyConfig


def run(ctx: StageContext) -> None:
    columns = ("take_id", "kind", "prompt_id", "prompt", "anchor_id")
    takes = {t["take_id"]: t for t in read_table(ctx.inputs["sample"] / "takes.parquet", columns)}
    write_preferences(ctx, read_verdicts(ctx), takes)


def read_verdicts(ctx: StageContext) -> list[dict[str, Any]]:
    """The rows of verdicts.parquet that preferences are made of."""
    return read_table(ctx.inputs["label"] / "verdicts.parquet", where={"dimension": "overall"})


def write_preferences(
    ctx: StageContext, verdicts: list[dict[str, Any]], takes: dict[str, dict[str, Any]]
) -> None:
    """pairs.parquet, drops.parquet with dropped.parquet, and metrics.json of a round."""
    latent_segments = json.loads((ctx.inputs["prepare"] / "clip.json").read_text())["latent_segments"]
    preferences, drops = make_preferences(
        verdicts, takes, latent_segments, ctx.config, ctx.seed, Given.read(ctx)
    )
    rows = [{**vars(p), "pair_id": p.pair_id} for p in preferences]
    write_table(ctx.out / "pairs.parquet", rows, PAIRS)
    counted = [{"source": s, "reason": r, "count": n} for (s, r), n in sorted(drops.items())]
    write_table(ctx.out / "drops.parquet", counted, DROPS)
    write_table(ctx.out / "dropped.parquet", drops.rows, DROPPED)
    kept = Counter(p.source for p in preferences)
    write_json(ctx.out / "metrics.json", {"kept": dict(sorted(kept.items())), "dropped": sum(drops.values())})


def make_preferences(
    verdicts: list[dict[str, Any]],
    takes: dict[str, dict[str, Any]],
    latent_segments: list[int],
    config: CampaignConfig,
    seed: int,
    given: Given | None = None,
) -> tuple[list[Preference], Drops]:
    """All preferences of a round, and how many were dropped by (source, reason).

    A pair's weight is that of its source, times what its certainty is worth where `pair.weights` says so.
    """
    drops = Drops()
    given = given or Given()
    found = [
        *_fresh(verdicts, takes, len(latent_segments), config, drops),
        *_guided(verdicts, takes, latent_segments, config, drops),
        *_real(verdicts, takes, len(latent_segments), config, drops),
        *real_winners(takes, given, len(latent_segments), config),
        *human_preferences(given, len(latent_segments), config, drops),
    ]
    kept: list[Preference] = []
    for source in ("fresh", "guided", "real", "human"):
        settings = getattr(config.pair.sources, source)
        rows = sorted((p for p in found if p.source == source), key=lambda p: (-p.certainty, p.pair_id))
        most = len(rows) if settings.max is None else settings.max
        for p in rows[most:]:
            drops.clips(source, "over_the_source_limit", p.winner_id, p.loser_id)
        for p in rows[:most]:
            weight = settings.weight * (p.worth if config.pair.weights == "certainty" else 1.0)
            if weight > 0:
                kept.append(replace(p, weight=weight))
            else:
                reason = "source_switched_off" if settings.weight == 0 else "worth_nothing"
                drops.clips(source, reason, p.winner_id, p.loser_id)
    if config.pair.control == "random_labels":
        kept = _random_labels(kept, seed)
    return kept, drops


def _fresh(
    verdicts: list[dict], takes: dict, num_latents: int, config: CampaignConfig, drops: Drops
) -> Iterator[Preference]:
    by_prompt: dict[str, list[dict]] = defaultdict(list)
    for v in verdicts:
        if v["kind"] == "take_take" and takes[v["first_id"]]["kind"] == "fresh":
            by_prompt[takes[v["first_id"]]["prompt_id"]].append(v)
    if config.pair.strategy == "ranked":
        for asked in by_prompt.values():
            yield from _ranked(asked, takes, num_latents, config, drops)
        return
    candidates: list[dict] = []
    for asked in by_prompt.values():
        best = None if config.pair.strategy == "all" else _best_against_worst(asked)
        for v in asked:
            if best is None or v is best:
                candidates.append(v)
            else:
                drops.verdict("fresh", "not_best_against_worst", v)
    why_not = _why_not(candidates, config.certainty)
    for v in candidates:
        reason = why_not[v["question_id"]]
        if reason:
            drops.verdict("fresh", reason, v)
        else:
            yield _of_verdict("fresh", v, takes[v["first_id"]], num_latents)


def _ranks(asked: list[dict]) -> dict[str, float]:
    """Mean score of every take over all verdicts on it (a Borda count): more votes than any one pair has."""
    scores: dict[str, list[float]] = defaultdict(list)
    for v in asked:
        scores[v["first_id"]].append(v["score"])
        scores[v["second_id"]].append(1 - v["score"])
    return {take: float(np.mean(s)) for take, s in scores.items()}


def _best_against_worst(asked: list[dict]) -> dict:
    """The verdict between the takes of highest and lowest rank, or the widest one if not asked (Dual-IPO)."""
    rank = _ranks(asked)
    return max(asked, key=lambda v: (abs(rank[v["first_id"]] - rank[v["second_id"]]), v["question_id"]))


def _ranked(
    asked: list[dict], takes: dict, num_latents: int, config: CampaignConfig, drops: Drops
) -> Iterator[Preference]:
    """The best `pair.num_ranked` takes of a prompt against its worst, by rank.

    The gap in rank is the pair's certainty. A pair whose own verdict says the opposite is dropped.
    """
    rank = _ranks(asked)
    order = sorted(rank, key=lambda take: (-rank[take], take))
    num = min(config.pair.num_ranked, len(order) // 2)
    own = {frozenset((v["first_id"], v["second_id"])): v for v in asked}
    for winner in order[:num]:
        for loser in order[-num:]:
            gap = rank[winner] - rank[loser]
            verdict = own.get(frozenset((winner, loser)))
            if gap <= config.pair.min_rank_gap:
                drops.clips("fresh", "close_ranks", winner, loser)
            elif (
                verdict
                and verdict["score"] != 0.5
                and (verdict["score"] > 0.5) != (verdict["first_id"] == winner)
            ):
                drops.clips("fresh", "own_verdict_contradicts", winner, loser)
            else:
                take = takes[winner]
                question = verdict["question_id"] if verdict else asked[0]["question_id"]
                yield _whole_clip(
                    "fresh", take, winner, loser, num_latents, gap, question, worth_of(gap, False)
                )


def _guided(
    verdicts: list[dict], takes: dict, latent_segments: list[int], config: CampaignConfig, drops: Drops
) -> Iterator[Preference]:
    """Pairs of one anchor; each latent frame's sign is its segment's verdict (DenseDPO, section 4.2)."""
    by_pair: dict[tuple[str, str], list[dict]] = defaultdict(list)
    segments = [v for v in verdicts if v["kind"] == "segment"]
    why_not = _why_not(segments, config.certainty)
    for v in segments:
        by_pair[min(v["first_id"], v["second_id"]), max(v["first_id"], v["second_id"])].append(v)
    for (one, other), asked in by_pair.items():
        signs_of, certainties, worths = {}, [], []
        for v in asked:
            reason = why_not[v["question_id"]]
            if reason:
                drops.verdict("guided", f"segment_{reason}", v)
            else:
                signs_of[v["segment"]] = (1 if v["score"] > 0.5 else -1) * (1 if v["first_id"] == one else -1)
                certainties.append(v["certainty"])
                worths.append(_worth(v))
        signs = [signs_of.get(s, 0) for s in latent_segments]
        share = sum(s != 0 for s in signs) / len(signs)
        if share <= config.pair.min_signed_share:
            drops.clips("guided", "too_few_signed_segments", one, other)
            continue
        winner, loser = (one, other) if sum(signs) >= 0 else (other, one)
        take = takes[winner]
        yield Preference(
            "guided", take["prompt_id"], take["prompt"], winner, loser,
            [s if winner == one else -s for s in signs], 1.0, float(np.mean(certainties)),
            asked[0]["question_id"], float(np.mean(worths)),
        )  # fmt: skip


def _real(
    verdicts: list[dict], takes: dict, num_latents: int, config: CampaignConfig, drops: Drops
) -> Iterator[Preference]:
    """The real clip wins (RealDPO), where the blind judge agrees or, by `pair.real_wins`, does not object."""
    asked = [v for v in verdicts if v["kind"] == "take_real"]
    assert not asked or config.pair.real_wins != "always", "then no such question is asked"
    why_not = _why_not(asked, config.certainty)
    for v in asked:
        first_is_take = v["first_id"] in takes
        ids = v["first_id"], v["second_id"]
        take_id, anchor_id = ids if first_is_take else ids[::-1]
        reason = why_not[v["question_id"]]
        if reason is None and (v["score"] > 0.5) == first_is_take:
            reason = "judge_prefers_the_take"
        elif config.pair.real_wins == "unless_contradicted":
            reason = None
        if reason:
            drops.verdict("real", reason, v)
        else:
            supports: Literal[-1, 0, 1] = (
                0 if v["score"] == 0.5 else -1 if (v["score"] > 0.5) == first_is_take else 1
            )
            yield _whole_clip(
                "real", takes[take_id], anchor_id, take_id, num_latents, v["certainty"], v["question_id"],
                _worth(v, supports),
            )  # fmt: skip


def _of_verdict(source: str, v: dict, take: dict, num_latents: int) -> Preference:
    """The preference that one verdict states, with its certainty."""
    winner, loser = (v["first_id"], v["second_id"]) if v["score"] > 0.5 else (v["second_id"], v["first_id"])
    return _whole_clip(source, take, winner, loser, num_latents, v["certainty"], v["question_id"], _worth(v))


def _whole_clip(
    source: str,
    take: dict,
    winner: str,
    loser: str,
    num_latents: int,
    certainty: float,
    question_id: str,
    worth: float,
) -> Preference:
    signs = [1] * num_latents
    return Preference(
        source, take["prompt_id"], take["prompt"], winner, loser, signs, 1.0, certainty, question_id, worth
    )


def _worth(v: dict, supports: Literal[-1, 0, 1] = 1) -> float:
    return worth_of(v["certainty"], v["calibrated_for"] is not None, supports)


def _why_not(rows: list[dict], limits: CertaintyConfig) -> dict[str, str | None]:
    """By question why its row of verdicts.parquet is not certain enough to train on, or None.

    `rows` are all that compete: a target precision is that of those of them that are kept.
    """
    verdicts = verdicts_of(rows)
    least = least_certainties(verdicts.values(), "overall", limits)
    return {name: why_not_confident(v, "overall", limits, least) for name, v in verdicts.items()}


def _random_labels(rows: list[Preference], seed: int) -> list[Preference]:
    """The control arm: every pair's sign by coin, those of real clips and people included."""
    coins = np.random.default_rng(derive_seed(seed, "random labels")).integers(2, size=len(rows))
    return [
        replace(p, winner_id=p.loser_id, loser_id=p.winner_id) if coin else p
        for p, coin in zip(rows, coins, strict=True)
    ]
