"""Judges with a vice are caught within a round on the embedded world; an honest one raises no alarm.

The thresholds are those of loop/alarm_config.py, which were committed before any of these judges was run.
`make test-planted` runs all of them on three seeds.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loop.campaign import run_campaign
from loop.config_file import load_config
from loop.steps import judging, prepare
from loop.store import Store
from reward.probes import CAPTION, FLAWS, make_probes
from reward.sides import Source
from tests.planted_rounds import PLANTED, config_of, judged, run
from tests.test_presets import TINY

FEW = ("judge_gate.num_questions=12", "known_answers.num_calibrate=8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    return run(prepare, tmp_path_factory.mktemp("gate") / "prepare", config_of(None, 0, *FEW), 0)


@pytest.mark.parametrize("judge", PLANTED)
def test_a_planted_judge_is_named_in_its_first_round(judge, prepared, tmp_path):
    found = judged(tmp_path, prepared, config_of(judge, 0, *FEW))
    names = {alarm["name"] for alarm in found["alarms"]}
    assert PLANTED[judge] in names
    if judge == "Quality":  # whose other answers are right
        assert names == {"ignores_caption"}
        assert {kind: of["accuracy"] for kind, of in found["probes"].items()} == {
            "frozen": 1, "saturated": 1, "blurred": 1, "wrong_caption": 0.5,
        }  # fmt: skip


def test_the_embedded_judge_raises_no_alarm(prepared, tmp_path):
    """As it is shipped, and asked a little; `make test-planted` trains it as quickstart does."""
    found = judged(tmp_path, prepared, config_of(None, 0, *FEW, "train_judge={num_steps: 0}"))
    assert found["alarms"] == []
    assert {kind: of["num"] for kind, of in found["probes"].items()} == {
        "frozen": 24, "saturated": 24, "blurred": 24, "wrong_caption": 48,
    }  # fmt: skip


def test_a_campaign_rolls_back_what_a_judge_that_loves_frozen_clips_taught(tmp_path):
    overrides = [
        *TINY,
        "name=planted",
        "data.num_anchors={train: 4, calibrate: 1, gate: 12, report: 1}",
        "data.split={train: 2, calibrate: 1, gate: 12, report: 1}",
        "judge={type: python, target: 'tests.planted_judges:LovesFrozen'}",
        "held_out_judge={model: embedded:tiny-judge, instructions: compare, num_segment_frames: 5, "
        "frame_size: 32, time_stamps: false, max_new_tokens: 48, batch_size: 64}",
        "train_judge={num_steps: 0}",
        "gate={num_seeds: 1, num_ballots: 1, margin: 0.5}",  # which any update would clear
        "alarms={}",
    ]
    run_campaign(load_config("quickstart", overrides), Store(tmp_path / "run"))
    found = json.loads((tmp_path / "run/round-001/gate/gate.json").read_text())
    assert found["low"] > 0 and (found["keep"], found["action"]) == (False, "roll_back")
    assert found["reason"].startswith("rolled back: alarm")
    assert "loves_frozen: the judge prefers the clip with this flaw" in found["reason"]
    judge_gate = json.loads((tmp_path / "run/round-001/judge_gate/gate.json").read_text())
    named = [alarm["name"] for alarm in judge_gate["alarms"]]
    assert "loves_frozen" in named and [a["name"] for a in found["alarms"]][: len(named)] == named
    # the judge that labels was asked about the gate's clips, too
    assert (tmp_path / "run/round-001/gate/verdicts-training.parquet").is_file()


def test_probes_are_balanced_the_same_every_time_and_skip_what_a_flaw_cannot_change():
    import numpy as np

    from reward.question import Frames

    class Reader:
        def __init__(self, key: str, pixels: np.ndarray) -> None:
            self.key, self.pixels = key, pixels

        def __call__(self) -> Frames:
            return Frames(self.pixels, 8)

    moving = np.zeros((9, 32, 32, 3), np.uint8)
    for t in range(9):
        moving[t, 8:20, 2 * t : 2 * t + 10] = (200, 90, 60)
    still = np.repeat(moving[:1], 9, axis=0)
    sources = [Source(f"m{i}", f"caption {i}", f"g{i}", Reader(f"m{i}", moving)) for i in range(6)]
    sources.append(Source("still", "caption 6", "g6", Reader("still", still)))
    probes = make_probes(sources, 5, 1, ("overall",))
    again = make_probes(sources, 5, 1, ("overall",))
    assert [p.question.id for p in probes] == [p.question.id for p in again]
    of = {vice: [p for p in probes if p.vice == vice] for vice in (*FLAWS, CAPTION)}
    assert {vice: len(some) for vice, some in of.items()} == {
        "frozen": 5, "saturated": 5, "blurred": 5, CAPTION: 10,
    }  # fmt: skip
    assert "g6" not in {p.question.group for p in of["frozen"]}  # a still cannot freeze
    assert [p.better_first for p in of["frozen"]] == [True, False, True, False, True]
    for p in of["frozen"]:
        clean, flawed = p.question.first, p.question.second
        if not p.better_first:
            clean, flawed = flawed, clean
        assert np.array_equal(clean().pixels, moving) and (flawed().pixels[-1] == flawed().pixels[4]).all()
    # each pair of captions once, the same two clips with the caption of either
    pairs: dict[str, list] = {}
    for p in of[CAPTION]:
        pairs.setdefault(p.question.group, []).append(p)
    for one, other in pairs.values():
        assert {one.question.first.key, one.question.second.key} == {
            other.question.first.key, other.question.second.key,
        }  # fmt: skip
        assert one.question.prompt != other.question.prompt
    assert make_probes(sources, 0, 1, ("overall",)) == [] == make_probes([], 5, 1, ("overall",))


def test_a_judge_that_is_asked_for_several_things_is_loaded_once(prepared, tmp_path, monkeypatch):
    loaded: list[str] = []
    load = judging.load_judge
    monkeypatch.setattr(judging, "load_judge", lambda config: (loaded.append(config.model), load(config))[1])
    config = config_of(None, 0, *FEW, "alarms.num_probes=1", "train_judge={num_steps: 1}")
    judged(tmp_path, prepared, config)
    # the parent, then the candidate: for its accuracy, its calibration and the probes
    assert [Path(model).parent.name for model in loaded] == ["embedded", "train_judge"]
