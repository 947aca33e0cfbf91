"""What a round needs to know of the one before it, where alarms, adaptation or patience ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop import power
from loop.config import CampaignConfig
from loop.store import read_manifest

if TYPE_CHECKING:
    from loop.runner import StageRunner

OUT_OF_PATIENCE = "out_of_patience"  # the event


class Past:
    """The artefacts of the round before. A stage is given only those that a key asks for: an input is part of
    its fingerprint, and campaigns without these keys keep the fingerprints that they have."""

    def __init__(self, config: CampaignConfig) -> None:
        self._watches = config.alarms is not None
        self._adapts = config.gate.adapt is not None
        self._judge_gate: Path | None = None
        self._pair: Path | None = None
        self._gate: Path | None = None
        self.rounds_without_promotion = 0

    @property
    def judge_gate(self) -> Path | None:
        """For this round's judge_gate: how the judge in force answered before."""
        return self._judge_gate if self._watches else None

    @property
    def gate_of_update(self) -> Path | None:
        """For the update: what the last gate told it to change."""
        return self._gate if self._adapts else None

    def watched(self, judge: Path | None, judge_gate: Path, pair: Path) -> dict[str, Path | None]:
        """Inputs of the gate beside the two generators."""
        inputs: dict[str, Path | None] = {"earlier": self._gate if self._watches or self._adapts else None}
        if self._watches:
            inputs |= {"judge": judge, "judge_gate": judge_gate, "pair": pair, "earlier_pair": self._pair}
        return inputs

    def end_round(self, kept: bool, judge_gate: Path, pair: Path, gate: Path) -> None:
        self._judge_gate, self._pair, self._gate = judge_gate, pair, gate
        self.rounds_without_promotion = 0 if kept else self.rounds_without_promotion + 1


def out_of_patience(runner: StageRunner, round: int, rounds_without_promotion: int) -> bool:
    """Whether the campaign ends after `round`. What has begun already is not cut off."""
    patience, rounds = runner.config.patience, runner.config.rounds
    if patience is None or rounds_without_promotion < patience or round == rounds:
        return False
    if runner.store.last_round() > round:
        return False
    runner.store.event(OUT_OF_PATIENCE, round=round, patience=patience)
    runner.display.say(
        f"the campaign ends after round {round} of {rounds}: {rounds_without_promotion} rounds without a "
        f"promotion, and patience is {patience}; raise it and run the same command to go on"
    )
    return True


def ended_by_patience(events: Sequence[dict[str, Any]]) -> int | None:
    """The round after which the last launch ended for want of a promotion; None if it did not."""
    for event in reversed(events):
        if event["event"] == OUT_OF_PATIENCE:
            return int(event["round"])
        if event["event"] == "campaign_started":
            return None
    return None


def announce_power(runner: StageRunner, prepared: Path) -> None:
    """Before the first gate: what it will be able to see."""
    first, prompts = runner.store.artefact(1, "gate"), prepared / "prompts.parquet"
    if not runner.config.gate.enabled or not runner.config.rounds or not prompts.is_file():
        return
    if read_manifest(first) is None:
        import pyarrow.parquet  # slow to import, and `retake --help` comes through this file

        parts = pyarrow.parquet.ParquetFile(prompts).read(columns=["part"]).column("part").to_pylist()
        told = power.plan(runner.config, parts.count("gate"))
        runner.display.say(f"before anything is measured: {told}")
