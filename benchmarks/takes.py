"""A campaign's takes, its verdicts on them and what the embedded world's oracle says: for reports alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from generator.clips import read_clip
from loop.config import CampaignConfig
from loop.embedded import oracle
from loop.statistics import Interval, bootstrap_mean
from loop.steps.common import read_table, verdicts_of
from loop.steps.pair import make_preferences
from reward.config import CertaintyConfig
from reward.question import Answer
from reward.voting import Verdict

CLEAR = 0.05  # of the oracle's total, as in the evaluate stage: below, two takes are as good as each other
Truth = Mapping[str, Answer]


class Takes:
    """One round's verdicts on takes ("overall") and what the oracle says of them."""

    def __init__(self, run: Path, round_number: int, config: CampaignConfig) -> None:
        folder = run / f"round-{round_number:03d}"
        self.config, self.folder = config, folder
        self.rows = [
            v for v in read_table(folder / "label" / "verdicts.parquet") if v["dimension"] == "overall"
        ]
        self.takes = {t["take_id"]: t for t in read_table(folder / "sample" / "takes.parquet")}
        self.facts = json.loads((run / "round-000" / "prepare" / "clip.json").read_text())
        self.totals = {
            i: oracle.score(read_clip(folder / "sample" / t["file"])[0], t["prompt"])["total"]
            for i, t in self.takes.items()
        }

    def truth(self, first: str, second: str) -> Answer:
        difference = self.totals[first] - self.totals[second]
        return "tie" if abs(difference) <= CLEAR else "first" if difference > 0 else "second"

    def verdicts(self) -> tuple[list[Verdict], list[Truth], list[str]]:
        """Those of take against take, their truth, and the prompts that they are about."""
        rows = [v for v in self.rows if v["kind"] == "take_take"]
        verdicts = verdicts_of(rows)
        truth: list[Truth] = [{"overall": self.truth(v["first_id"], v["second_id"])} for v in rows]
        groups = [self.takes[v["first_id"]]["prompt_id"] for v in rows]
        return [verdicts[v["question_id"]] for v in rows], truth, groups

    def choice_of_pairs(self) -> dict[str, Interval]:
        """Precision of the pairs of fresh takes that were trained on, and of those kept out.

        Kept out are those that the same strategy would make without thresholds of certainty and rank. Pairs
        of takes that are as good as each other are in neither.
        """
        sources = self.config.pair.sources
        everything = self.config.model_copy(
            update={
                "certainty": CertaintyConfig(min_probability=0.5, min_margin=0, min_votes=1),
                "pair": self.config.pair.model_copy(
                    update={
                        "min_rank_gap": 0.0,
                        "control": "none",
                        "weights": "equal",
                        "sources": sources.model_copy(
                            update={"fresh": sources.fresh.model_copy(update={"max": None})}
                        ),
                    }
                ),
            }
        )
        found, _ = make_preferences(self.rows, self.takes, self.facts["latent_segments"], everything, seed=0)
        trained = {p["pair_id"] for p in read_table(self.folder / "pair" / "pairs.parquet")}
        right: dict[str, list[tuple[float, str]]] = {"kept": [], "dropped": []}
        for p in found:
            truth = self.truth(p.winner_id, p.loser_id) if p.source == "fresh" else "tie"
            if truth != "tie":
                where = "kept" if p.pair_id in trained else "dropped"
                right[where].append((float(truth == "first"), p.prompt_id))
        return {
            where: bootstrap_mean([r for r, _ in rows], [g for _, g in rows], seed=0)
            for where, rows in right.items()
        }
