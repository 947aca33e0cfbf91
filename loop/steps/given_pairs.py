"""Pairs whose winner no judge decides: real clips that always win, and what people preferred."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loop.config import CampaignConfig
from loop.stages import StageContext
from loop.steps.common import human_pairs, read_table
from loop.steps.preference import Preference
from loop.steps.sample import draw

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Given:
    """What prepare knows that a judge need not be asked about: rows of anchors, prompts and human_pairs."""

    round: int = 1
    anchors: Rows = field(default=())
    prompts: Rows = field(default=())
    human: Rows = field(default=())

    @staticmethod
    def read(ctx: StageContext) -> Given:
        folder: Path = ctx.inputs["prepare"]
        anchors, prompts = (read_table(folder / f"{name}.parquet") for name in ("anchors", "prompts"))
        return Given(ctx.round, anchors, prompts, human_pairs(folder))


def real_winners(
    takes: Mapping[str, dict[str, Any]], given: Given, num_latents: int, config: CampaignConfig
) -> Iterator[Preference]:
    """RealDPO: the first `label.against_real` fresh takes of a prompt lose against one anchor of its caption.

    Anchors are those of the train part. All takes of a prompt and round share one, so that an update may
    compute the winner once for its N losers (update.losers_per_winner); with sample.first_frame it is the one
    that they begin with.
    """
    if config.pair.real_wins != "always":
        return
    by_caption: dict[str, list[dict]] = defaultdict(list)
    for anchor in given.anchors:
        if anchor["part"] == "train":
            by_caption[anchor["caption"]].append(dict(anchor))
    by_prompt: dict[str, list[dict]] = defaultdict(list)
    for take in takes.values():
        if take["kind"] == "fresh" and take["prompt"] in by_caption:
            by_prompt[take["prompt_id"]].append(take)
    for prompt_id, losers in by_prompt.items():
        own = by_caption[losers[0]["prompt"]]
        [drawn] = draw(own, 1, given.round, config.seed, f"real {prompt_id}")
        for take in losers[: config.label.against_real]:
            winner = take["anchor_id"] or drawn["anchor_id"]
            yield Preference(
                "real", prompt_id, take["prompt"], winner, take["take_id"], [1] * num_latents, 1.0, 1.0, None
            )


def human_preferences(
    given: Given, num_latents: int, config: CampaignConfig, drops: Counter[tuple[str, str]]
) -> Iterator[Preference]:
    """What people preferred, with certainty 1; ties are drops, and so is all that would leak.

    It leaks where its prompt, but for case and spaces, is one of a part that is held out (calibrate, gate,
    report), or where one of its clips is, byte for byte as stored, an anchor of such a part. With
    `pair.sources.human.max` every round draws its own, none again before all have been.
    """
    held_prompts = {plain(p["text"]) for p in given.prompts if p["part"] != "train"}
    held_clips = {a["sha256"] for a in given.anchors if a["part"] != "train"}
    usable: list[dict] = []
    for row in given.human:
        if row["label"] == "same":
            drops["human", "tie"] += 1
        elif plain(row["prompt"]) in held_prompts:
            drops["human", "leaks_a_held_out_prompt"] += 1
        elif held_clips & {row["sha256_A"], row["sha256_B"]}:
            drops["human", "leaks_a_held_out_clip"] += 1
        else:
            usable.append(dict(row))
    most = config.pair.sources.human.max
    if most is not None and most < len(usable):
        drops["human", "over_the_source_limit"] += len(usable) - most
        usable = draw(usable, most, given.round, config.seed, "human pairs")
    for row in usable:
        winner, loser = ("A", "B") if row["label"] == "A" else ("B", "A")
        yield Preference(
            "human", row["prompt_id"], row["prompt"], row[f"clip_{winner}"], row[f"clip_{loser}"],
            [1] * num_latents, 1.0, 1.0, None,
        )  # fmt: skip


def plain(text: str) -> str:
    """A prompt as it is compared with others: case and spaces do not count."""
    return " ".join(text.casefold().split())
