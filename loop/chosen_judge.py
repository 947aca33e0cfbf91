"""The judge that a command names with --judge, and clips of any format as its campaign shows them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.clips import probe, read_conformed
from loop.config import CampaignConfig, ClipConfig
from loop.config_file import load_config, load_judge_config
from loop.errors import JudgeFailed, UserError
from loop.launchers import quieten_libraries
from loop.models import check_judge, trained_folder, with_weights
from loop.status import judge_in_force
from reward.calibration import Calibrator, load
from reward.config import JudgeConfig, without_transport
from reward.judge import Judge, PlugInFailed, check_votes, load_judge
from reward.judges.server import ServerUnavailable
from reward.question import Ask, Frames, Vote

KIND = "given"  # of questions about clips that a user gave


@dataclass(frozen=True)
class ChosenJudge:
    """A campaign's judge. `judge` has its weights resolved; `calibrators` is empty where nothing measured it.

    name: what to call it in messages.
    """

    config: CampaignConfig
    judge: JudgeConfig
    calibrators: dict[str, Calibrator]
    name: str

    def ballots(self, given: int | None) -> int:
        return self.config.label.voting.num_ballots if given is None else given


@dataclass(frozen=True)
class GivenClip:
    """A lazy reader of a video file of any format, at the size and rate of `data.clip`.

    whole: all of it, and not the first data.clip.num_frames frames.
    """

    path: Path
    clip: ClipConfig
    whole: bool = False

    @property
    def key(self) -> str:
        return str(self.path)

    def __call__(self) -> Frames:
        """Raises ValueError naming the file if it cannot be read or is too short."""
        clip, num_frames = self.clip, self.clip.num_frames
        if self.whole:
            info = probe(self.path)
            num_frames = max(1, int(info.num_frames / info.fps * clip.fps))
        pixels = read_conformed(
            self.path, num_frames=num_frames, height=clip.height, width=clip.width, target_fps=clip.fps
        )
        return Frames(pixels, clip.fps)


def how_shown(chosen: ChosenJudge, whole: bool) -> str:
    """What a judge is shown of a clip, in words."""
    clip, judge = chosen.config.data.clip, chosen.judge
    size = f"{clip.height}x{clip.width} at {clip.fps:g} fps"
    part = "whole clips" if whole else f"the first {clip.num_frames / clip.fps:.1f} s of each clip"
    return f"{part} ({size}), at most {judge.num_frames} frames of it"


def choose_judge(source: str, overrides: Sequence[str] = ()) -> ChosenJudge:
    """The judge of a config (a file, or a shipped one's name), or the one in force in a run directory.

    Of a config the sections about the generator and training are not needed: see load_judge_config.

    Raises UserError for a config that is not valid and for a judge that cannot be loaded.
    """
    run = Path(source).expanduser()
    is_run = (run / "resolved.json").is_file()
    loaded = load_config(run / "resolved.json", overrides) if is_run else load_judge_config(source, overrides)
    config = loaded.config
    check_judge(config.judge)
    judge, name = config.judge, f"{config.judge.model or config.judge.target}"
    trained, calibrators = _in_force(run, judge) if is_run else (None, {})
    if trained_folder(judge, trained) is not None:
        name = f"{name} as trained in {trained}"
    judge = with_weights(judge, trained)
    # what measured the judge on known answers is all that is known about other questions, too
    by_kind = {KIND: calibrators["known"]} if "known" in calibrators else {}
    return ChosenJudge(config, judge, by_kind, f"{name} ({judge.type}, of {source})")


def _in_force(run: Path, judge: JudgeConfig) -> tuple[Path | None, dict[str, Calibrator]]:
    """What the run trained and calibrated, as far as it is about `judge`, which --set may have changed."""
    found, own = judge_in_force(run), load_config(run / "resolved.json").config.judge
    if any(getattr(judge, key) != getattr(own, key) for key in ("type", "model", "target")):
        return None, {}
    if found.calibrators is None or _votes_by(judge) != _votes_by(own):
        return found.trained, {}
    return found.trained, load(found.calibrators)


def _votes_by(judge: JudgeConfig) -> dict[str, Any]:
    """The settings that decide votes, and so what was calibrated."""
    settings = judge.model_dump(exclude={"batch_size"})
    if settings["server"] is not None:
        settings["server"] = without_transport(settings["server"])
    if judge.vllm is not None:
        settings["vllm"] = judge.vllm.deciding
    return settings


@contextlib.contextmanager
def opened(chosen: ChosenJudge) -> Iterator[Judge]:
    """The judge, loaded, and closed at the end. Raises UserError if it cannot be loaded, JudgeFailed."""
    if chosen.judge.type in ("transformers", "scorer"):
        import torch

        if chosen.config.threads is not None:
            torch.set_num_threads(chosen.config.threads)
        quieten_libraries()
    try:
        judge = load_judge(chosen.judge)
    except (ValueError, OSError) as error:
        raise UserError(f"the judge {chosen.name} cannot be loaded: {error}") from None
    except PlugInFailed as error:
        raise JudgeFailed(f"the judge failed: {error}") from error
    try:
        yield judge
    finally:
        judge.close()


def ask_judge(judge: Judge, asks: Sequence[Ask]) -> list[Vote]:
    """One vote for each ask. Raises JudgeFailed where the judge cannot answer, or answers another ask."""
    try:
        return check_votes(asks, judge.vote(asks), type(judge).__name__)
    except (ValueError, ServerUnavailable, PlugInFailed) as error:
        raise JudgeFailed(f"the judge failed: {error}") from error


def identity_of(judge: Judge) -> str:
    """The judge's identity; for a server it asks. Raises JudgeFailed."""
    try:
        return judge.identity()
    except (ValueError, ServerUnavailable, PlugInFailed) as error:
        raise JudgeFailed(f"the judge failed: {error}") from error


def to_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
