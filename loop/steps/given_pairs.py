"""Pairs whose winner no judge decides: real clips that always win, and what people preferred."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loop.config import CampaignConfig
from loop.held_out import HeldOut, TrainingAnchor, held_out, training_anchors
from loop.stages import StageContext
from loop.steps.common import human_pairs
from loop.steps.human_labels import set_aside
from loop.steps.preference import Preference
from loop.steps.sample import draw

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Given:
    """What prepare knows that a judge need not be asked about: anchors, and rows of human_pairs.parquet."""

    round: int = 1
    anchors: Sequence[TrainingAnchor] = ()
    held: HeldOut = field(default_factory=lambda: HeldOut({}, {}))
    human: Rows = ()

    @cached_property
    def by_caption(self) -> Mapping[str, Sequence[TrainingAnchor]]:
        found: dict[str, list[TrainingAnchor]] = defaultdict(list)
        for anchor in self.anchors:
            found[anchor["caption"]].append(anchor)
        return found

    @staticmethod
    def read(ctx: StageContext) -> Given:
        return Given(ctx.round, training_anchors(ctx), held_out(ctx), human_pairs(ctx.inputs["prepare"]))


def real_winners(
    takes: Mapping[str, dict[str, Any]], given: Given, num_latents: int, config: CampaignConfig
) -> Iterator[Preference]:
    """RealDPO: the first `label.against_real` fresh takes of a prompt lose against one anchor of its caption.

    All takes of a prompt and round share one, so that an update may
    compute the winner once for its N losers (update.losers_per_winner); with sample.first_frame it is the one
    that they begin with.
    """
    if config.pair.real_wins != "always":
        return
    by_prompt: dict[str, list[dict]] = defaultdict(list)
    for take in takes.values():
        if take["kind"] == "fresh" and take["prompt"] in given.by_caption:
            by_prompt[take["prompt_id"]].append(take)
    for prompt_id, losers in by_prompt.items():
        own = given.by_caption[losers[0]["prompt"]]
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
    report), or where one of its clips is, byte for byte as stored, an anchor of such a part. Pairs that are
    set aside to calibrate the judge (certainty.human_share) train nothing, nor do others with their clips.
    With `pair.sources.human.max` every round draws its own, none again before all have been.
    """
    held = given.held
    aside = set_aside(given.human, held, config)
    aside_clips = {row[f"sha256_{side}"] for row in aside for side in "AB"}
    usable: list[dict] = []
    for row in given.human:
        if aside_clips & {row["sha256_A"], row["sha256_B"]}:
            drops["human", "set_aside_to_calibrate"] += 1
        elif row["label"] == "same":
            drops["human", "tie"] += 1
        elif held.part_of(row["prompt"]) is not None:
            drops["human", "leaks_a_held_out_prompt"] += 1
        elif row["sha256_A"] in held.clips or row["sha256_B"] in held.clips:
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
