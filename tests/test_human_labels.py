"""Pairs that people compared and that train nothing: which they are, what they calibrate and measure."""

import json
import logging
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from generator.clips import write_clip
from loop.config import CampaignConfig
from loop.held_out import HeldOut
from loop.precision import filter_precision
from loop.progress import Display
from loop.stages import StageContext
from loop.steps import judge_gate
from loop.steps.common import write_table
from loop.steps.given_pairs import Given, human_preferences
from loop.steps.human_labels import human_questions, set_aside
from loop.steps.judging import JudgeAtHand
from loop.steps.prepare import ANCHORS, HUMAN_PAIRS, PROMPTS
from reward.calibration import load
from reward.config import CertaintyConfig, JudgeConfig
from reward.question import Ask, Reply, Vote, vote_of
from reward.voting import DimensionVerdict, Verdict

PROMPTS_OF = {"p calibrate": "calibrate", "p gate": "gate", "p report": "report", "p train": "train"}


def config(**certainty) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": "test",
            "data": {"human_pairs": "pairs.csv"},
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {
                "type": "python",
                "target": f"{__name__}:Brighter",
                "dimensions": ["motion", "overall"],
            },
            "known_answers": {"num_calibrate": 0},
            "label": {"voting": {"num_ballots": 1}},
            "certainty": certainty,
        }
    )


def pair(number: int, prompt: str, label: str = "A", **other) -> dict:
    row = {"pair_id": f"{number}", "prompt_id": prompt, "prompt": prompt, "category": "", "label": label}
    for side in "AB":
        name = f"{number}{side}"
        row |= {f"clip_{side}": name, f"file_{side}": f"human/{name}.mp4", f"sha256_{side}": name}
    return {**row, **other}


PROMPT_ROWS = [{"text": t, "part": part} for t, part in PROMPTS_OF.items()]
ANCHOR_ROWS = [{"sha256": "held", "part": "report", "caption": ""}]
HELD = HeldOut.of(ANCHOR_ROWS, PROMPT_ROWS)


def test_prompts_of_the_calibrate_part_and_a_share_of_the_others_are_set_aside():
    rows = [pair(i, p) for i, p in enumerate(["P  Calibrate", "p gate", "p report", "p train"])]
    rows += [pair(i, f"other {i // 2}") for i in range(10, 410)]
    rows += [pair(999, "p calibrate", sha256_A="held")]
    assert set_aside(rows, HELD, config()) == []
    found = set_aside(rows, HELD, config(human_share=0.25))
    names = {row["pair_id"] for row in found}
    assert "0" in names and not names & {"1", "2", "999"}
    others = [row for row in found if row["prompt"].startswith("other")]
    assert 0.15 < len(others) / 400 < 0.35
    assert all(n == 2 for n in Counter(row["prompt"] for row in others).values())  # a prompt's pairs together
    again = set_aside(rows[::-1], HELD, config(human_share=0.25))
    assert {row["pair_id"] for row in again} == names


def test_what_is_set_aside_trains_nothing_nor_do_its_clips():
    rows = [pair(0, "p calibrate"), pair(1, "p train"), pair(2, "p train", sha256_B="0A")]
    settings = config(human_share=1e-9)
    drops: Counter = Counter()
    given = Given(1, (), HELD, rows)
    found = list(human_preferences(given, 3, settings, drops))
    assert [p.winner_id for p in found] == ["1A"]
    assert drops == Counter({("human", "set_aside_to_calibrate"): 2})


def test_answers_are_in_the_questions_order(tmp_path):
    rows = [pair(i, "x", label) for i, label in enumerate(["A", "B", "same"] * 20)]
    questions, answers = human_questions(rows, tmp_path, config())
    sides = Counter()
    for row, q, answer in zip(rows, questions, answers, strict=True):
        best = {"first": q.first, "second": q.second}.get(answer["overall"])
        sides[answer["overall"]] += 1
        assert best is None if row["label"] == "same" else best.clip_id == row[f"clip_{row['label']}"]
    assert sides["tie"] == 20 and min(sides.values()) > 5  # the better clip has no usual place


class Brighter:
    """Prefers the brighter clip, whatever the order."""

    def __init__(self, config: JudgeConfig) -> None:
        pass

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        return [self._one(ask) for ask in asks]

    def _one(self, ask: Ask) -> Vote:
        one, other = (clip().pixels.mean() for clip in ask.shown)
        said = dict.fromkeys(ask.question.dimensions, "first" if one > other else "second")
        return vote_of(ask, Reply(said, "", None))

    def identity(self) -> str:
        return "brighter"

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """80 pairs, of the calibrate part's prompt; people prefer the brighter clip in 60 of them."""
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "human").mkdir()
    frames = {"bright": np.full((5, 32, 32, 3), 180, np.uint8), "dark": np.full((5, 32, 32, 3), 60, np.uint8)}
    for name, pixels in frames.items():
        write_clip(folder / "human" / f"{name}.mp4", pixels, 8)
    rows = []
    for i in range(80):
        bright = "AB"[i % 2]
        files = {f"file_{s}": f"human/{'bright' if s == bright else 'dark'}.mp4" for s in "AB"}
        label = bright if i < 60 else "AB"[1 - i % 2]
        rows.append(pair(i, "p calibrate", label, prompt_id=f"group {i % 16}", **files))
    write_table(folder / "human_pairs.parquet", rows, HUMAN_PAIRS)
    write_table(folder / "anchors.parquet", [], ANCHORS)
    prompts = [{"prompt_id": t, "text": t, "category": "", "part": p} for t, p in PROMPTS_OF.items()]
    write_table(folder / "prompts.parquet", prompts, PROMPTS)
    return folder


def calibrated(prepared, out, **certainty):
    out.mkdir()
    progress = Display(1).stage(1, "judge_gate")
    log = logging.getLogger("retake")
    ctx = StageContext(config(**certainty), 1, {"prepare": prepared}, out, 0, progress, log, "judge_gate")
    with JudgeAtHand(ctx) as judges:
        judge_gate.calibrate(ctx, judges, None)
    return load(out / "calibrators.json")


def test_people_calibrate_take_against_take_overall(prepared, tmp_path):
    found = calibrated(prepared, tmp_path / "on", human_share=0.1, min_labels=30)
    assert set(found) == {"take_take"} and set(found["take_take"].slopes) == {"overall"}
    unanimous = DimensionVerdict(1.0, 0.0, 0.0, 1.0, "first", 0.0, 0.0)
    p = found["take_take"].probability("overall", unanimous, 2)
    assert p == pytest.approx(60 / 80, abs=0.005)  # the only score there is, right in 60 of 80
    report = json.loads((tmp_path / "on" / "human.json").read_text())
    assert report["num_pairs"] == 80
    kept = report["uncalibrated"]["kept"]  # every vote is unanimous, so margins keep all
    assert (kept["value"], kept["num"]) == (0.75, 80) and kept["low"] < 0.75 < kept["high"]
    # .75 or so is above min_probability, whichever half the calibrator comes from
    assert report["calibrated"]["reasons"] == {"kept": 80}
    strict = calibrated(prepared, tmp_path / "strict", human_share=0.1, min_labels=30, target_precision=0.9)
    assert strict == found
    report = json.loads((tmp_path / "strict" / "human.json").read_text())
    assert report["calibrated"]["reasons"] == {"below_target_precision": 80}


def test_too_few_labels_or_no_share_calibrate_nothing(prepared, tmp_path, caplog):
    assert calibrated(prepared, tmp_path / "few", human_share=0.1, min_labels=81) == {}
    assert "take_take stays uncalibrated: the judge answered 80 human pairs" in caplog.text
    assert json.loads((tmp_path / "few" / "human.json").read_text())["calibrated"] is None
    assert calibrated(prepared, tmp_path / "off") == {}
    assert not (tmp_path / "off" / "human.json").exists()


def test_a_share_without_pairs_is_an_error_that_says_what_to_do():
    settings = config(human_share=0.1).model_dump()
    with pytest.raises(
        ValueError, match=r"certainty\.human_share is set, but data\.human_pairs names no file"
    ):
        CampaignConfig.model_validate({**settings, "data": {}})


def test_precision_of_what_is_kept_and_dropped_is_the_hand_computed_one():
    def verdict(score, certainty):
        found = DimensionVerdict(
            score, 1 - score, 0.0, score, "first" if score > 0.5 else "second", 0, 0, certainty
        )
        return Verdict("q", "take_take", None, "", {"overall": found}, 4, 0)

    verdicts = [verdict(1.0, 1.0), verdict(0.0, 1.0), verdict(1.0, 1.0), verdict(0.7, 0.4), verdict(0.5, 0.0)]
    truth = [{"overall": a} for a in ("first", "first", "tie", "first", "second")]
    found = filter_precision(verdicts, truth, list("abcde"), CertaintyConfig(min_margin=0.5))
    assert found["reasons"] == {"kept": 3, "uncertain": 1, "tie": 1} and found["num"] == 5
    assert (found["kept"]["value"], found["kept"]["num"], found["kept"]["num_true_ties"]) == (0.5, 2, 1)
    assert (found["dropped"]["value"], found["dropped"]["num"]) == (1.0, 1)
    nothing = filter_precision([], [], [], CertaintyConfig())
    assert nothing["kept"]["value"] is None and math.isfinite(nothing["kept"]["num"])
