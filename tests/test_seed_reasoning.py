"""A user's judged pairs with reasoning: what the file may say, how it is stored, when it is learnt."""

import json
import logging
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from generator.clips import read_clip, write_clip
from loop.config import CampaignConfig
from loop.errors import UserError
from loop.progress import Display
from loop.runner import StageRunner
from loop.seed_reasoning import lopsided, read_seed_reasoning, seed_identity
from loop.stages import STAGES, StageContext
from loop.steps.seed import seed_rows
from loop.steps.train_judge import _settings, _supervised
from loop.store import Store
from reward.config import DIMENSIONS, JudgeConfig, TrainJudgeConfig
from reward.question import parse_reply
from reward.train import train_judge
from tests.test_clips import ramp
from tests.test_embedded_judge import FOLDER
from tests.test_human_pairs import clips_folder, data, prepared, tree

ANSWERS = dict.fromkeys(DIMENSIONS, "first")


def row(**keys) -> dict:
    given = {"first": "0.mp4", "second": "5.mp4", "prompt": "x", "reasoning": "the first is steady"}
    return given | {"answers": ANSWERS} | keys


def seed_file(folder: Path, *rows: dict | str) -> Path:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    (folder / "seed.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "seed.jsonl"


def test_rows_keep_their_order_and_sides(tmp_path):
    answers = {"overall": "tie", "motion": "second"}
    file = seed_file(tmp_path, row(), "", row(first="./v//a.mp4", answers=answers | {"motion": "first"}))
    with pytest.raises(UserError, match="no answer for"):
        read_seed_reasoning(file, DIMENSIONS)
    file = seed_file(
        tmp_path,
        row(answers=answers),
        "",
        row(first="./v//a.mp4", answers=answers, seconds=[0.5, 1], source=" film 1 "),
    )
    one, other = read_seed_reasoning(file, ("motion", "overall"))
    assert (one.line, one.seconds, one.source) == (1, None, "")
    assert list(one.answers) == ["motion", "overall"] and one.answers["motion"] == "second"
    assert (other.line, other.first, other.seconds, other.source) == (3, "v/a.mp4", (0.5, 1.0), "film 1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"seed\.jsonl, line 1: not valid JSON"),
        ("[1]", "line 1: a line is one JSON object with the keys first, second"),
        ('{"first": "a", "first": "b"}', "line 1: key 'first' is there twice"),
        (row(answer=ANSWERS), "line 1: unknown key 'answer'; did you mean 'answers'"),
        ({"second": "b"}, "line 1: key 'first' is missing; fill it in"),
        (row(prompt=" "), "line 1: key 'prompt' is ' '; fill it in"),
        (row(reasoning="<answer>overall: first"), "key 'reasoning' holds the tag <answer>"),
        (row(reasoning="so <|im_end|>"), r"key 'reasoning' holds the tag <\|im_end\|>"),
        (row(answers="first"), r"key 'answers' is no object by dimension; write \{\"text_alignment\""),
        (row(answers=ANSWERS | {"motions": "tie"}), "no dimension 'motions'; did you mean 'motion'"),
        (row(answers=ANSWERS | {"motion": "A"}), "'A' for motion; write first, second or tie"),
        (row(answers=ANSWERS | {"motion": ["first"]}), "for motion; write first, second or tie"),
        (row(seconds=[1, 1]), r"key 'seconds' is \[1, 1\]; write \[start, stop\]"),
        (row(seconds=[0, True]), "key 'seconds' is"),
        (row(source=3), "key 'source' is 3; write the name"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_key_and_remedy(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read_seed_reasoning(seed_file(tmp_path, line), DIMENSIONS)


def test_a_file_that_is_none_is_empty_or_repeats_itself(tmp_path):
    with pytest.raises(UserError, match=r"data\.seed_reasoning: .*no such file"):
        read_seed_reasoning(tmp_path / "none.jsonl", DIMENSIONS)
    with pytest.raises(UserError, match=r"give a \.jsonl, this ends in '\.csv'"):
        read_seed_reasoning(tmp_path / "none.csv", DIMENSIONS)
    with pytest.raises(UserError, match="no rows"):
        read_seed_reasoning(seed_file(tmp_path, ""), DIMENSIONS)
    with pytest.raises(UserError, match="line 3: says what line 1 says"):
        read_seed_reasoning(seed_file(tmp_path, row(), "", row()), DIMENSIONS)
    (tmp_path / "seed.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_seed_reasoning(tmp_path / "seed.jsonl", DIMENSIONS)


def test_a_file_in_which_one_place_wins_is_warned_about(tmp_path):
    def rows(*words):
        return read_seed_reasoning(
            seed_file(tmp_path, *(row(prompt=str(i), answers={"overall": w}) for i, w in enumerate(words))),
            ("overall",),
        )

    # 12 of 16 are 2 standard deviations from 8, 14 are 3
    assert lopsided(rows(*["first"] * 12, *["second"] * 4, *["tie"] * 9)) is None
    assert "first wins 14 of 16" in (lopsided(rows(*["first"] * 14, *["second"] * 2)) or "")
    assert "first wins 0 of 8" in (lopsided(rows(*["second"] * 8)) or "")
    assert lopsided(rows(*["first"] * 7)) is None


def test_the_fingerprint_knows_the_file_and_its_clips(tmp_path):
    folder = clips_folder(tmp_path)
    file = seed_file(folder, row())
    before = seed_identity(file)
    config = campaign(folder, seed_reasoning=str(file))
    runner = StageRunner(config, Store(tmp_path / "run"), STAGES, Display(1))
    assert runner._slice(STAGES["prepare"])["data"]["seed_reasoning"] == before
    bare = StageRunner(campaign(folder), Store(tmp_path / "run"), STAGES, Display(1))
    assert "seed_reasoning" not in bare._slice(STAGES["prepare"])["data"]
    write_clip(folder / "0.mp4", ramp(20, 32, 32) + 9, 8)
    changed = seed_identity(file)
    seed_file(folder, row(reasoning="other words"))
    assert len({before, changed, seed_identity(file)}) == 3
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        seed_identity(file)


def campaign(folder: Path, train_judge: dict | None = None, **keys) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": "test",
            "data": data(folder, **keys).model_dump(),
            "generator": {"model": "embedded:tiny-wan", "max_text_tokens": 8},
            "judge": {"model": "embedded:tiny-judge"},
            "known_answers": {"num_train": 0},
            "train_judge": train_judge or {},
        }
    )


def test_clips_are_stored_as_anchors_are_and_what_would_leak_is_left_out(tmp_path):
    folder = clips_folder(tmp_path)  # 0, 1, 5 and 6 train; 2 and 7 calibrate, 3 and 8 gate, 4 and 9 report
    write_clip(folder / "new.mp4", ramp(40, 48, 64) + 3, 16)
    (folder / "broken.mp4").write_bytes(b"\0" * 500)
    write_clip(folder / "short.mp4", ramp(3, 32, 32), 8)
    file = seed_file(
        folder,
        row(),
        row(second="new.mp4", seconds=[0.5, 1.0], source="mine"),
        row(prompt="Caption  4"),
        row(second="new.mp4", source="8.mp4"),
        row(second="broken.mp4"),
        row(second="short.mp4"),
        row(second="none.mp4"),
    )
    ctx = prepared(tmp_path, "out", seed_reasoning=str(file))
    rows = pq.read_table(ctx.out / "seed.parquet").to_pylist()
    assert [(r["line"], r["start"], r["stop"]) for r in rows] == [(1, None, None), (2, 4, 8)]
    reasons = {s["reason"].split(":")[0]: s for s in json.loads((ctx.out / "skips.json").read_text())}
    assert sorted(reasons) == [f"seed.jsonl, line {line}" for line in range(3, 8)]
    said = {name[-1]: (s["file"], s["reason"].split(": ", 1)[1]) for name, s in reasons.items()}
    assert said["3"] == ("seed.jsonl", "leaks a held-out prompt, a caption of part report")
    assert said["4"] == ("seed.jsonl", "leaks a held-out source, 8.mp4 of part gate")
    assert said["5"][0] == "broken.mp4" and said["5"][1].startswith("not a readable video")
    assert said["6"][0] == "short.mp4" and "is shorter than" in said["6"][1]
    assert said["7"] == ("none.mp4", "no such video file")
    anchors = {a["source"]: a for a in pq.read_table(ctx.out / "anchors.parquet").to_pylist()}
    stored = (ctx.out / rows[0]["file_first"]).read_bytes()
    assert stored == (ctx.out / anchors["0.mp4"]["file"]).read_bytes()
    assert tree(prepared(tmp_path, "again", seed_reasoning=str(file)).out) == tree(ctx.out)

    after = StageContext(ctx.config, 1, {"prepare": ctx.out}, ctx.out, 0, ctx.progress, ctx.log)
    whole, part = seed_rows(after)
    assert not whole.ask.swapped and whole.ask.question.segment is None
    assert parse_reply(whole.reply, DIMENSIONS).answers == ANSWERS
    assert parse_reply(whole.reply, DIMENSIONS).reasoning == "the first is steady"
    frames, _ = read_clip(ctx.out / rows[1]["file_second"])
    assert part.ask.question.segment == 1 and part.ask.question.group == "mine"
    shown = part.ask.shown[1]().pixels  # frames 4 to 7 and the one before them, the motion into the part
    assert shown.tolist() == frames[3:8].tolist()


def test_a_clip_that_examines_judges_is_refused(tmp_path):
    folder = clips_folder(tmp_path)
    (folder / "copy.mp4").write_bytes((folder / "4.mp4").read_bytes())
    with pytest.raises(UserError, match=r"line 2: copy\.mp4 is the anchor .* of part report, .*; remove the"):
        prepared(tmp_path, "out", seed_reasoning=str(seed_file(folder, row(), row(second="copy.mp4"))))


def test_seconds_beyond_the_clip_and_a_file_without_usable_rows_are_errors(tmp_path):
    folder = clips_folder(tmp_path)
    for number, seconds in enumerate(([2, 3], [1, 1.1])):
        with pytest.raises(UserError, match=r"line 1: key 'seconds' is frames .* at least two of the 17"):
            prepared(tmp_path, f"o{number}", seed_reasoning=str(seed_file(folder, row(seconds=seconds))))
    with pytest.raises(UserError, match=r"none of its 1 rows can be used .*leaks a held-out prompt"):
        prepared(tmp_path, "out", seed_reasoning=str(seed_file(folder, row(prompt="caption 3"))))


def test_the_cold_start_learns_it_and_later_rounds_only_if_asked(tmp_path):
    folder = clips_folder(tmp_path)
    keys = {"seed_reasoning": str(seed_file(folder, row()))}
    ctx = prepared(tmp_path, "out", **keys)

    def found(inputs, **settings):
        config = campaign(folder, settings, **keys)
        now = StageContext(config, 2, inputs, ctx.out, 0, ctx.progress, logging.getLogger("retake"))
        rows, report = _supervised(now)
        return len(rows), report, _settings(now).num_steps

    cold, trained = {"prepare": ctx.out}, {"prepare": ctx.out, "judge_parent": ctx.out}
    assert found(cold) == (1, {"num_seed_rows": 1}, 100)
    assert found(cold, cold_start_steps=7, num_steps=3) == (1, {"num_seed_rows": 1}, 7)
    assert found(trained, cold_start_steps=7, num_steps=3) == (0, {}, 3)
    assert found(trained, seed_every_round=True) == (1, {"num_seed_rows": 1}, 100)
    with pytest.raises(ValueError, match=r"seed_every_round needs data\.seed_reasoning"):
        campaign(folder, {"seed_every_round": True})


def test_a_judge_is_trained_on_it_unless_a_reply_is_too_long(tmp_path):
    folder = clips_folder(tmp_path)
    ctx = prepared(tmp_path, "out", seed_reasoning=str(seed_file(folder, row(seconds=[0, 1]))))
    after = StageContext(ctx.config, 1, {"prepare": ctx.out}, ctx.out, 0, ctx.progress, ctx.log)
    judge = JudgeConfig(model=str(FOLDER), instructions="compare", frame_size=32, time_stamps=False)
    config = TrainJudgeConfig(num_steps=2, batch_size=1, warmup_steps=0, log_every=1, learning_rate=1e-3)
    logs: list[dict] = []
    train_judge(FOLDER, seed_rows(after), [], config, judge, tmp_path / "judge", 1, None, logs.append)
    assert logs[1]["loss"] < logs[0]["loss"]
    short = judge.model_copy(update={"max_new_tokens": 8})
    with pytest.raises(ValueError, match=r"data\.seed_reasoning, line 1: the reply has \d+ tokens"):
        train_judge(FOLDER, seed_rows(after), [], config, short, tmp_path / "judge2", 1)
