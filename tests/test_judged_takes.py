"""Win rates by the judge in force and by the held-out judge, on takes that no round changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from generator.clips import write_clip
from loop.config import CampaignConfig
from loop.progress import Display
from loop.stages import StageContext
from loop.steps.common import write_table
from loop.steps.evaluate import plan
from loop.steps.judged_takes import judge_takes, real_counterparts
from loop.steps.judging import has_held_out_judge_in_force
from loop.steps.metrics import Rows
from loop.steps.prepare import ANCHORS, PROMPTS
from reward.config import JudgeConfig
from reward.question import Ask, Reply, Vote, vote_of

DIMENSIONS = ("overall",)
PREPARED = [("report", "a", 2), ("report", "b", 1), ("report", "c", 0), ("gate", "d", 1), ("train", "e", 1)]


class Brighter:
    """Prefers the brighter clip in both orders; equally bright ones tie."""

    asked = 0
    sign = 1

    def __init__(self, config: JudgeConfig) -> None:
        pass

    def vote(self, asks: Sequence[Ask]) -> list[Vote]:
        type(self).asked += len(asks)
        return [self._one(ask) for ask in asks]

    def _one(self, ask: Ask) -> Vote:
        one, other = (float(clip().pixels.mean()) * self.sign for clip in ask.shown)
        word = "tie" if abs(one - other) < 3 else "first" if one > other else "second"
        return vote_of(ask, Reply(dict.fromkeys(ask.question.dimensions, word), "", None))

    def identity(self) -> str:
        return "0123456789abcdef" * 4

    def close(self) -> None:
        pass


class Darker(Brighter):
    asked = 0
    sign = -1


class Half(Brighter):
    """Answers about prompt a alone."""

    def _one(self, ask: Ask) -> Vote:
        if ask.question.prompt != "text a":
            return vote_of(ask, Reply(None, "", "empty"))
        return super()._one(ask)


def judge(name: str) -> dict:
    return {"type": "python", "target": f"tests.test_judged_takes:{name}", "dimensions": DIMENSIONS}


@pytest.fixture
def prepared(tmp_path) -> Path:
    folder = tmp_path / "prepare"
    (folder / "clips").mkdir(parents=True)
    anchors, prompts = [], []
    for part, name, num in PREPARED:
        prompts.append({"prompt_id": name, "text": f"text {name}", "category": f"of {part}", "part": part})
        for n in range(num):
            anchor = dict.fromkeys(ANCHORS.names, f"{name}{n}") | {"part": part, "caption": f"text {name}"}
            anchors.append(anchor | {"file": f"clips/{name}{n}.mp4"})
            write_clip(folder / anchors[-1]["file"], np.full((5, 32, 32, 3), 250, np.uint8), 8)
    write_table(folder / "anchors.parquet", anchors, ANCHORS)
    write_table(folder / "prompts.parquet", prompts, PROMPTS)
    return folder


def context(out: Path, inputs: dict[str, Path], round: int = 2, seed: int = 0, **sections) -> StageContext:
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "generator": {"model": "g"},
            "judge": judge("Brighter"),
            "known_answers": {"num_report": 0},
            **sections,
            "evaluate": {"num_seeds": 3, "num_judged": 6, "num_ballots": 1, **sections.get("evaluate", {})},
        }
    )
    out.mkdir(exist_ok=True)
    progress = Display(2).stage(round, "evaluate")
    return StageContext(config, round, inputs, out, seed, progress, logging.getLogger("retake"), "evaluate")


def filmed(folder: Path, prepared: Path, brightness: int) -> Path:
    """Another round's evaluation: the same takes, all as bright."""
    (folder / "clips").mkdir(parents=True)
    takes = plan(context(folder, {"prepare": prepared}))
    for t in takes:
        write_clip(folder / t.file, np.full((5, 32, 32, 3), brightness, np.uint8), 8)
    rows = [{"take_id": t.take_id, "oracle_total": brightness / 255} for t in takes]
    import pyarrow as pa

    write_table(folder / "scores.parquet", rows, pa.Table.from_pylist(rows).schema)
    return folder


def measured(ctx: StageContext, brightness: float = 100.0) -> tuple[dict[str, dict], int, int]:
    """The rows over all prompts by metric, and how many questions either judge answered."""
    Brighter.asked = Darker.asked = 0
    rows, takes = Rows(ctx), plan(ctx)
    judge_takes(ctx, takes, [brightness / 255] * len(takes), rows)
    by_name = {row["metric"]: row for row in rows.rows if not row["category"]}
    return by_name, Brighter.asked // 2, Darker.asked // 2


def test_prompts_seeds_and_anchors_are_those_of_every_round(prepared, tmp_path):
    rounds = [context(tmp_path / f"{k}", {"prepare": prepared}, k, seed=k) for k in range(4)]
    takes = [plan(ctx) for ctx in rounds]
    assert [t.take_id for t in takes[0]] == [f"{p}-{n}" for p in "abc" for n in range(3)]  # the report part
    assert len({t.seed for t in takes[0]}) == 9 and all(other == takes[0] for other in takes[1:])
    beside = [[(t.take_id, a["anchor_id"]) for t, a in real_counterparts(ctx, takes[0])] for ctx in rounds]
    # six of nine takes are judged; those of prompt c have no anchor, a's two take turns
    assert beside[0] == [("a-0", "a0"), ("a-1", "a1"), ("b-0", "b0"), ("b-1", "b0")]
    assert all(other == beside[0] for other in beside[1:])


def test_the_held_out_judge_has_its_own_win_rates(prepared, tmp_path):
    base = filmed(tmp_path / "base", prepared, 60)
    previous = filmed(tmp_path / "previous", prepared, 100)  # as bright as this round's
    inputs = {"prepare": prepared, "base": base, "previous": previous}
    out = filmed(tmp_path / "out", prepared, 100)
    ctx = context(out, inputs, held_out_judge=judge("Darker"), evaluate={"num_held_out_judged": 4})
    rows, asked, asked_held_out = measured(ctx)
    names = ("win_rate_vs_base", "win_rate_vs_previous")
    assert [rows[n]["value"] for n in names] == [1, 0.5]
    assert [rows[f"held_out_{n}"]["value"] for n in names] == [0, 0.5]
    assert {rows[n]["judge"] for n in (*names, "fool_rate")} == {
        "python:tests.test_judged_takes:Brighter:0123456789ab"
    }
    assert {rows[f"held_out_{n}"]["judge"] for n in names} == {
        "python:tests.test_judged_takes:Darker:0123456789ab"
    }
    assert [rows[n]["num_clips"] for n in (names[0], f"held_out_{names[0]}")] == [6, 4]
    assert (asked, asked_held_out) == (6 + 6 + 4, 4 + 4)  # four takes stand beside a real clip
    assert (rows["fool_rate"]["value"], rows["judge_oracle_agreement_vs_base"]["value"]) == (0, 1)
    assert (out / "verdicts-held_out_win_rate_vs_base.parquet").exists()


def test_no_question_is_asked_twice(prepared, tmp_path):
    base = filmed(tmp_path / "base", prepared, 60)
    inputs = {"prepare": prepared, "base": base, "previous": base}
    out = filmed(tmp_path / "out", prepared, 100)
    # the judge in force is the held-out one: its answers are taken over
    rows, asked, _ = measured(context(out, inputs))
    assert asked == 6 + 6 + 4
    for name in ("win_rate_vs_base", "win_rate_vs_previous"):
        assert rows[f"held_out_{name}"] == rows[name] | {"metric": f"held_out_{name}"}
    # in round 1 the previous generator is the base
    again = filmed(tmp_path / "again", prepared, 100)
    rows, _, asked = measured(context(again, inputs, held_out_judge=judge("Darker")))
    assert asked == 6
    assert rows["held_out_win_rate_vs_previous"]["value"] == rows["held_out_win_rate_vs_base"]["value"] == 0
    assert rows["held_out_win_rate_vs_previous"]["num_clips"] == 6


def test_none_asked_is_no_row_and_the_base_has_no_win_rate(prepared, tmp_path):
    base = filmed(tmp_path / "base", prepared, 60)
    out = filmed(tmp_path / "out", prepared, 100)
    inputs = {"prepare": prepared, "base": base, "previous": base}
    held = {"held_out_judge": judge("Darker")}
    rows, _, asked = measured(context(out, inputs, **held, evaluate={"num_held_out_judged": 0}))
    assert asked == 0 and not any(name.startswith("held_out") for name in rows)
    rows, _, asked = measured(context(base, {"prepare": prepared}, round=0, **held), 60)
    assert asked == 0 and set(rows) == {"fool_rate"}
    nobody = filmed(tmp_path / "nobody", prepared, 100)
    rows, _, _ = measured(context(nobody, inputs, evaluate={"num_judged": 0}))
    assert (rows["win_rate_vs_base"]["value"], rows["win_rate_vs_base"]["num_clips"]) == (None, 0)


def test_a_question_without_an_answer_is_no_tie(prepared, tmp_path, caplog):
    inputs = {"prepare": prepared, "base": filmed(tmp_path / "base", prepared, 60)}
    ctx = context(filmed(tmp_path / "out", prepared, 100), inputs, judge=judge("Half"))
    rows, _, _ = measured(ctx)
    # six takes are judged, two of each prompt; a beats its base and loses to its anchors
    found = rows["win_rate_vs_base"]
    assert (found["value"], found["num_clips"]) == (1, 2)
    assert (rows["fool_rate"]["value"], rows["fool_rate"]["num_clips"]) == (0, 2)
    agreement = rows["judge_oracle_agreement_vs_base"]
    assert (agreement["value"], agreement["num_clips"]) == (1, 2)
    assert "win_rate_vs_base could not be measured on 4 of 6 clips, which are left out" in caplog.messages


def test_a_trained_judge_is_no_held_out_judge(tmp_path):
    (tmp_path / "trained" / "judge").mkdir(parents=True)
    (tmp_path / "untrained").mkdir()
    own = {"judge": {"model": "embedded:tiny-judge"}}
    ctx = context(tmp_path / "out", {}, **own)
    assert has_held_out_judge_in_force(ctx, None)
    assert has_held_out_judge_in_force(ctx, tmp_path / "untrained")  # train_judge left it as it came
    assert not has_held_out_judge_in_force(ctx, tmp_path / "trained")
    other = context(tmp_path / "out", {}, **own, held_out_judge=judge("Darker"))
    assert not has_held_out_judge_in_force(other, None)
