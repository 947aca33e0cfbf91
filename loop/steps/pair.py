"""pair: verdicts become preferences. Every verdict or take that makes none is counted with its reason."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loop.config import CampaignConfig
from loop.stages import StageContext, derive_seed
from loop.steps.common import TableWriter, batches, iter_table, verdicts_of, write_json, write_table
from loop.steps.given_pairs import Given, human_preferences, real_winners
from loop.steps.preference import DROPPED, DROPS, PAIRS, Drops, Preference, Spool, worth_of
from loop.steps.sample import takes_together
from reward.certainty import least_certainties, why_not_confident
from reward.config import CertaintyConfig

_PROMPTS_AT_ONCE = 2**8
_COINS_AT_ONCE = 2**16


@dataclass(frozen=True)
class Chunk:
    """All takes of some prompts and anchors by id, and all verdicts on them (rows of verdicts.parquet)."""

    takes: dict[str, dict[str, Any]]
    verdicts: list[dict[str, Any]]


Chunks = Callable[[], Iterable[Chunk]]  # what is too much for memory is read again, not kept


def run(ctx: StageContext) -> None:
    write_preferences(ctx, lambda: read_chunks(ctx))


def read_chunks(ctx: StageContext) -> Iterator[Chunk]:
    """The round's takes with their verdicts, which stand in the same order (plan_questions).

    Raises ValueError for a verdict on no take of the round.
    """
    verdicts = read_verdicts(ctx)
    head = next(verdicts, None)
    for together in batches(takes_together(ctx.inputs["sample"]), _PROMPTS_AT_ONCE):
        chunk = Chunk({t["take_id"]: t for takes in together for t in takes}, [])
        while head and (head["first_id"] in chunk.takes or head["second_id"] in chunk.takes):
            chunk.verdicts.append(head)
            head = next(verdicts, None)
        yield chunk
    if head:
        raise ValueError(
            f"verdict {head['question_id']} is about {head['first_id']} and {head['second_id']}, of which "
            "the round filmed none, or not at this place: `retake verify` says whether a table was changed"
        )


def read_verdicts(ctx: StageContext) -> Iterator[dict[str, Any]]:
    """The rows of verdicts.parquet that preferences are made of."""
    return iter_table(ctx.inputs["label"] / "verdicts.parquet", where={"dimension": "overall"})


def write_preferences(ctx: StageContext, chunks: Chunks) -> None:
    """pairs.parquet, drops.parquet with dropped.parquet, and metrics.json of a round."""
    latent_segments = json.loads((ctx.inputs["prepare"] / "clip.json").read_text())["latent_segments"]
    kept: Counter[str] = Counter()
    with (
        TableWriter(ctx.out / "dropped.parquet", DROPPED) as dropped,
        TableWriter(ctx.out / "pairs.parquet", PAIRS) as pairs,
    ):
        drops = Drops(lambda row: dropped.add([row]))
        spool = Spool(ctx.scratch / "preferences.arrow")
        maker = Maker(ctx.config, ctx.seed, latent_segments, Given.read(ctx), drops, spool)
        for p in maker.preferences(chunks):
            kept[p.source] += 1
            pairs.add([{**vars(p), "pair_id": p.pair_id}])
    counted = [{"source": s, "reason": r, "count": n} for (s, r), n in sorted(drops.items())]
    write_table(ctx.out / "drops.parquet", counted, DROPS)
    write_json(ctx.out / "metrics.json", {"kept": dict(sorted(kept.items())), "dropped": sum(drops.values())})


def make_preferences(
    verdicts: list[dict[str, Any]],
    takes: dict[str, dict[str, Any]],
    latent_segments: list[int],
    config: CampaignConfig,
    seed: int,
    given: Given | None = None,
) -> tuple[list[Preference], Drops]:
    """All preferences of a round that fits into memory, and how many were dropped by (source, reason)."""
    drops = Drops()
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "preferences.arrow")
        maker = Maker(config, seed, latent_segments, given or Given(), drops, spool)
        return list(maker.preferences(lambda: [Chunk(takes, verdicts)])), drops


@dataclass(frozen=True)
class Maker:
    """Makes the preferences of a round: candidates chunk by chunk, which wait in `spool` to be put in order.

    A pair's weight is that of its source, times what its certainty is worth where `pair.weights` says so.
    """

    config: CampaignConfig
    seed: int
    latent_segments: list[int]
    given: Given
    drops: Drops
    spool: Spool

    def preferences(self, chunks: Chunks) -> Iterator[Preference]:
        """Those to train on, source by source, the most certain first."""
        self.spool.fill(self._candidates(chunks))
        if self.config.pair.control == "random_labels":
            yield from _random_labels(self._kept(), self.seed)
        else:
            yield from self._kept()

    def _candidates(self, chunks: Chunks) -> Iterator[Preference]:
        config, drops, num_latents = self.config, self.drops, len(self.latent_segments)
        least = {kind: self._least(chunks, of) for kind, of in _COMPETE.items()}
        for chunk in chunks():
            yield from _fresh(chunk, num_latents, config, least["fresh"], drops)
            yield from _guided(chunk, self.latent_segments, config, least["guided"], drops)
            yield from _real(chunk, num_latents, config, least["real"], drops)
            yield from real_winners(chunk.takes, self.given, num_latents, config)
        yield from human_preferences(self.given, num_latents, config, drops)

    def _least(
        self, chunks: Chunks, compete: Callable[[Chunk, CampaignConfig], list[dict]]
    ) -> dict[str, float]:
        """By calibrated kind the certainty to reach; a target precision is that of all that compete."""
        verdicts = (v for chunk in chunks() for v in verdicts_of(compete(chunk, self.config)).values())
        return least_certainties(verdicts, "overall", self.config.certainty)

    def _kept(self) -> Iterator[Preference]:
        for source in ("fresh", "guided", "real", "human"):
            settings = getattr(self.config.pair.sources, source)
            for number, p in enumerate(self.spool.most_certain_first(source)):
                if settings.max is not None and number >= settings.max:
                    self.drops.clips(source, "over_the_source_limit", p.winner_id, p.loser_id)
                    continue
                weight = settings.weight * (p.worth if self.config.pair.weights == "certainty" else 1.0)
                if weight > 0:
                    yield replace(p, weight=weight)
                else:
                    reason = "source_switched_off" if settings.weight == 0 else "worth_nothing"
                    self.drops.clips(source, reason, p.winner_id, p.loser_id)


def _fresh(
    chunk: Chunk, num_latents: int, config: CampaignConfig, least: dict[str, float], drops: Drops
) -> Iterator[Preference]:
    if config.pair.strategy == "ranked":
        for asked in _by_prompt(chunk):
            yield from _ranked(asked, chunk.takes, num_latents, config, drops)
        return
    candidates = _fresh_that_compete(chunk, config)
    chosen = {v["question_id"] for v in candidates}
    for asked in _by_prompt(chunk):
        for v in asked:
            if v["question_id"] not in chosen:
                drops.verdict("fresh", "not_best_against_worst", v)
    why_not = _why_not(candidates, config.certainty, least)
    for v in candidates:
        reason = why_not[v["question_id"]]
        if reason:
            drops.verdict("fresh", reason, v)
        else:
            yield _of_verdict("fresh", v, chunk.takes[v["first_id"]], num_latents)


def _by_prompt(chunk: Chunk) -> Iterable[list[dict]]:
    """The verdicts between fresh takes, prompt by prompt."""
    found: dict[str, list[dict]] = defaultdict(list)
    for v in chunk.verdicts:
        if v["kind"] == "take_take" and chunk.takes[v["first_id"]]["kind"] == "fresh":
            found[chunk.takes[v["first_id"]]["prompt_id"]].append(v)
    return found.values()


def _fresh_that_compete(chunk: Chunk, config: CampaignConfig) -> list[dict]:
    if config.pair.strategy == "ranked":
        return []
    if config.pair.strategy == "all":
        return [v for asked in _by_prompt(chunk) for v in asked]
    return [_best_against_worst(asked) for asked in _by_prompt(chunk)]


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
    chunk: Chunk, latent_segments: list[int], config: CampaignConfig, least: dict[str, float], drops: Drops
) -> Iterator[Preference]:
    """Pairs of one anchor; each latent frame's sign is its segment's verdict (DenseDPO, section 4.2)."""
    by_pair: dict[tuple[str, str], list[dict]] = defaultdict(list)
    segments = _segments(chunk, config)
    why_not = _why_not(segments, config.certainty, least)
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
        take = chunk.takes[winner]
        yield Preference(
            "guided", take["prompt_id"], take["prompt"], winner, loser,
            [s if winner == one else -s for s in signs], 1.0, float(np.mean(certainties)),
            asked[0]["question_id"], float(np.mean(worths)),
        )  # fmt: skip


def _segments(chunk: Chunk, config: CampaignConfig) -> list[dict]:
    return [v for v in chunk.verdicts if v["kind"] == "segment"]


def _real(
    chunk: Chunk, num_latents: int, config: CampaignConfig, least: dict[str, float], drops: Drops
) -> Iterator[Preference]:
    """The real clip wins (RealDPO), where the blind judge agrees or, by `pair.real_wins`, does not object."""
    asked, takes = _against_real(chunk, config), chunk.takes
    assert not asked or config.pair.real_wins != "always", "then no such question is asked"
    why_not = _why_not(asked, config.certainty, least)
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


def _against_real(chunk: Chunk, config: CampaignConfig) -> list[dict]:
    return [v for v in chunk.verdicts if v["kind"] == "take_real"]


# by source the verdicts among which a target precision is reached
_COMPETE: dict[str, Callable[[Chunk, CampaignConfig], list[dict]]] = {
    "fresh": _fresh_that_compete,
    "guided": _segments,
    "real": _against_real,
}


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


def _why_not(rows: list[dict], limits: CertaintyConfig, least: dict[str, float]) -> dict[str, str | None]:
    """By question why its row of verdicts.parquet is not certain enough to train on, or None.

    `least` is the certainty that a target precision asks for, by calibrated kind.
    """
    return {name: why_not_confident(v, "overall", limits, least) for name, v in verdicts_of(rows).items()}


def _random_labels(rows: Iterable[Preference], seed: int) -> Iterator[Preference]:
    """The control arm: every pair's sign by coin, those of real clips and people included."""
    rng = np.random.default_rng(derive_seed(seed, "random labels"))
    for some in batches(rows, _COINS_AT_ONCE):
        for p, coin in zip(some, rng.integers(2, size=len(some)), strict=True):
            yield replace(p, winner_id=p.loser_id, loser_id=p.winner_id) if coin else p
