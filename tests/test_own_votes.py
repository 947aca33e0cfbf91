"""What SRPO learns from, and that known answers of a part read that part's clips alone."""

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from generator.clips import write_clip
from loop.config import PARTS, CampaignConfig
from loop.config_file import load_config
from loop.errors import UserError
from loop.models import check_training
from loop.progress import Display
from loop.stages import StageContext
from loop.steps import train_judge
from loop.steps.common import read_table, write_table
from loop.steps.judge_gate import known_answers
from loop.steps.judging import fold_all, judge_config, write_verdicts, write_votes
from loop.steps.label import plan_questions
from loop.steps.own_votes import known_paths, own_votes
from loop.steps.prepare import ANCHORS
from loop.steps.questions import StoredClip
from loop.steps.sample import TAKES
from loop.steps.train_judge import _questions_for_grpo, _supervised
from loop.store import SCRATCH
from reward.certainty import apply
from reward.known_answers import KnownAnswer
from reward.preferences import (
    PreferenceRow,
    known_preference_rows,
    make_preference_rows,
    mix_sources,
)
from reward.question import Ask, Vote, parse_reply, write_reply
from reward.sides import CorruptedReader, SegmentReader
from reward.voting import fold
from tests.reward_clips import COLOURS, BlockReader, question

DIMENSIONS = ("overall",)


def vote(q, swapped, ballot, answer, says=None):
    answers = None if answer is None else dict.fromkeys(q.dimensions, answer)
    reason = None if answers else "truncated"
    return Vote(q.id, swapped, ballot, 0, answers, says or f"path {ballot}", None, reason)


def known_of(answer="first", name="k0") -> KnownAnswer:
    q = question(name, dimensions=DIMENSIONS)
    return KnownAnswer(q, {"overall": answer}, "written from the flaw", "blur", 3)


def test_a_known_answer_is_right_whatever_most_votes_say():
    """Three of four paths say second; as pseudo-labels they would be right, by the truth they are wrong."""
    known = known_of("first")
    q = known.question
    votes = [
        vote(q, False, 0, "second"),
        vote(q, False, 1, "first"),
        vote(q, True, 0, "first"),  # shown swapped: this too names the question's second clip
        vote(q, True, 1, "first"),
    ]
    rows = known_preference_rows(known, votes)
    right, wrong = (write_reply(f"path {i}", {"overall": a}) for i, a in ((1, "first"), (0, "second")))
    assert rows == [PreferenceRow(Ask(q, False, 1), right, wrong, 1.0, "known")]
    voted = make_preference_rows(q, votes, fold(q, votes), 1.0)
    assert [(row.chosen, row.rejected) for row in voted] == [(wrong, right)]


def test_the_written_reply_stands_in_where_no_path_is_right():
    known = known_of("tie")
    q = known.question
    votes = [vote(q, s, b, "first") for b in (0, 1) for s in (False, True)]
    [row] = known_preference_rows(known, votes)  # not for the swapped order: its words would name other sides
    assert row.chosen == write_reply("written from the flaw", {"overall": "tie"})
    assert not row.ask.swapped and parse_reply(row.rejected, DIMENSIONS).answers == {"overall": "first"}
    assert known_preference_rows(known, [vote(q, False, 0, "tie"), vote(q, True, 0, "tie")]) == []
    assert known_preference_rows(known, [vote(q, False, 0, None)]) == []  # an abstention is no wrong path


def rows_of(**numbers):
    q = question("q", dimensions=DIMENSIONS)
    return [
        PreferenceRow(Ask(q, False, i), "a", "b", 1.0, source)
        for source, number in numbers.items()
        for i in range(number)
    ]


@pytest.mark.parametrize(
    ("numbers", "known_share", "real_share", "expected"),
    [
        ({"own": 6}, 0.0, None, {"own": 6}),
        ({"own": 6, "known": 9}, 0.25, None, {"own": 6, "known": 2}),
        ({"own": 6, "known": 9}, 0.5, None, {"own": 6, "known": 6}),
        ({"own": 6, "known": 1}, 0.5, None, {"own": 6, "known": 1}),
        ({"own": 6, "real": 9}, 0.0, 0.25, {"own": 6, "real": 2}),
        ({"own": 6, "real": 1}, 0.0, 0.25, {"own": 6, "real": 1}),
        ({"own": 6, "real": 9}, 0.0, 0.0, {"own": 6}),
        ({"own": 6, "real": 9, "known": 9}, 0.25, 0.25, {"own": 6, "real": 3, "known": 3}),
        # the cap holds where known answers are short: 2 of 8, not 3 of 9
        ({"own": 6, "real": 9, "known": 0}, 0.25, 0.25, {"own": 6, "real": 2}),
        ({"own": 0, "real": 9, "known": 9}, 0.25, 0.25, {}),
    ],
)
def test_shares_of_the_sources(numbers, known_share, real_share, expected):
    rows = rows_of(**numbers)
    mixed, report = mix_sources(rows, known_share, real_share)
    assert Counter(row.source for row in mixed) == expected
    assert [row for row in rows if row.source == "own"] == mixed[: expected.get("own", 0)]
    assert bool(report) == (set(numbers) != {"own"})


# --- stages, on a folder as prepare leaves it


def prepare_folder(folder: Path) -> Path:
    """Two renders of three captions in each part."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for i, part in enumerate(PARTS):
        for colour in COLOURS:
            for render in range(2):
                name = f"{part}-{colour}-{render}"
                reader = BlockReader(colour, 4 + 6 * i + render, num_frames=17, size=32, speed=1.2)
                write_clip(folder / "clips" / f"{name}.mp4", reader().pixels, 8)
                rows.append(
                    {
                        "anchor_id": name,
                        "file": f"clips/{name}.mp4",
                        "caption": f"a {colour} box in row {i}",
                        "source": name,
                        "category": "",
                        "part": part,
                        "sha256": name,
                    }
                )
    write_table(folder / "anchors.parquet", rows, ANCHORS)
    return folder


def context(tmp_path: Path, inputs: dict[str, Path], round_number=2, **sections) -> StageContext:
    config = CampaignConfig.model_validate(
        {
            "name": "test",
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {
                "model": "embedded:tiny-judge",
                "instructions": "compare",
                "num_segment_frames": 5,
                "frame_size": 32,
                "time_stamps": False,
                "max_new_tokens": 48,
            },
            "known_answers": {"num_train": 24, "segments": 4, "tie_share": 0.4},
            "certainty": {"min_margin": 0.0, "min_votes": 1},
            "label": {"segments": False, "against_real": 2},
            **sections,
        }
    )
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    progress = Display(2).stage(round_number, "train_judge")
    return StageContext(config, round_number, inputs, out, 7, progress, logging.getLogger("retake.test"))


def clips_read(reader) -> set[str]:
    if isinstance(reader, StoredClip):
        return {reader.clip_id}
    if isinstance(reader, SegmentReader):
        return clips_read(reader.base)
    assert isinstance(reader, CorruptedReader)
    return clips_read(reader.base) | (clips_read(reader.other) if reader.other else set())


def test_known_answers_of_a_part_never_read_another_parts_clips(tmp_path):
    ctx = context(tmp_path, {"prepare": prepare_folder(tmp_path / "prepare")})
    for part in PARTS:
        stage = {"train": "train_judge", "report": "evaluate"}.get(part, "judge_gate")
        known = known_answers(replace(ctx, stage=stage), part, 120)
        readers = [(k.question.first, k.question.second) for k in known]
        assert {name.split("-")[0] for pair in readers for r in pair for name in clips_read(r)} == {part}
        row = str(PARTS.index(part))
        assert {k.question.prompt[-1] for k in known} == {row}
        assert {words[-1] for k in known for words in k.reasoning.split(", ") if "row" in words} <= {row}
        # or the above would hold because nothing of this kind was drawn
        kinds = {k.corruption for k in known}
        assert {"wrong_caption", "splice", "tie_same", "tie_render", "tie_flaw"} <= kinds
        assert {k.question.segment for k in known} >= {None, 0, 3}
        assert {k.question.group.split("-")[0] for k in known} == {part}


def test_all_that_training_asks_is_of_the_train_part(tmp_path):
    ctx = context(
        tmp_path,
        {"prepare": prepare_folder(tmp_path / "prepare")},
        train_judge={"grpo_steps": 3, "grpo_batch_size": 16},
    )
    rows, _ = _supervised(ctx)
    grpo = _questions_for_grpo(ctx)
    assert len(rows) == 24 and len(grpo) == 6
    asked = [row.ask.question for row in rows] + [k.question for k in grpo]
    assert {n.split("-")[0] for q in asked for r in (q.first, q.second) for n in clips_read(r)} == {"train"}
    assert {k.question.id for k in grpo}.isdisjoint(row.ask.question.id for row in rows)


def labelled(tmp_path: Path, **train_judge) -> StageContext:
    """A round whose votes: takes against takes split 3 to 1, takes against real clips as `PREFERS` says."""
    prepared = prepare_folder(tmp_path / "prepare")
    sample = tmp_path / "sample"
    (sample / "clips").mkdir(parents=True)
    takes = []
    for colour in COLOURS:
        for i in range(2):
            name = f"take-{colour}-{i}"
            write_clip(sample / "clips" / f"{name}.mp4", BlockReader(colour, 20, 17, 32)().pixels, 8)
            takes.append(
                {
                    "take_id": name,
                    "kind": "fresh",
                    "prompt_id": f"p-{colour}",
                    "prompt": f"a {colour} box in row 0",
                    "category": "",
                    "file": f"clips/{name}.mp4",
                    "seed": 0,
                    "anchor_id": None,
                    "eta": None,
                    "pair_index": i,
                }
            )
    write_table(sample / "takes.parquet", takes, TAKES)
    label = tmp_path / "label"
    label.mkdir()
    ctx = context(tmp_path, {"prepare": prepared, "sample": sample, "label": label}, train_judge=train_judge)
    questions = list(plan_questions(ctx, 1))
    votes = []
    for q in questions:
        real = "first" if q.first.clip_id.startswith("train") else "second"
        better = "first" if q.kind == "take_take" or "red" in q.prompt else real
        if q.kind == "take_real" and "blue" in q.prompt:
            better = "second" if real == "first" else "first"  # fooled
        worse = "second" if better == "first" else "first"
        mirror = {"first": "second", "second": "first"}
        votes += [vote(q, False, b, better if b else worse) for b in range(3)]
        votes += [vote(q, True, b, mirror[better]) for b in range(3)]
    write_votes(label / "votes.parquet", questions, votes)
    write_verdicts(label / "verdicts.parquet", questions, [apply(v, {}) for v in fold_all(questions, votes)])
    return ctx


def test_without_a_share_takes_against_real_clips_are_votes_like_others(tmp_path):
    rows, drops = own_votes(labelled(tmp_path))
    kinds = Counter((row.ask.question.kind, row.source) for row in rows)
    assert kinds == {("take_take", "own"): 3, ("take_real", "own"): 6} and drops == {}


def test_votes_of_a_round_that_asked_otherwise_are_counted_not_used(tmp_path):
    """A branch may change `label`: what it would not ask it cannot show again."""
    ctx = labelled(tmp_path)
    label = {"segments": False, "against_real": 0}
    rows, drops = own_votes(context(tmp_path, ctx.inputs, label=label))
    assert {row.ask.question.kind for row in rows} == {"take_take"} and len(rows) == 3
    assert drops == {"asked_under_other_settings": 6}


def test_with_a_share_only_verdicts_for_the_real_clip_teach(tmp_path):
    rows, drops = own_votes(labelled(tmp_path, real_share=0.4))
    real = [row for row in rows if row.source == "real"]
    assert len([row for row in rows if row.source == "own"]) == 3
    assert drops == {"real_clip_not_preferred": 6 - len(real)} and drops["real_clip_not_preferred"] >= 2
    for row in real:
        q = row.ask.question
        anchor = "first" if q.first.clip_id.startswith("train") else "second"
        assert q.kind == "take_real" and "blue" not in q.prompt
        assert (
            parse_reply(row.chosen, q.dimensions).answers["overall"] == anchor
        )  # order as shown: not swapped
        assert parse_reply(row.rejected, q.dimensions).answers["overall"] != anchor
    assert len(mix_sources(rows, 0.0, 0.4)[0]) == 5  # 2 of 5 are real


def test_some_questions_are_answered_again_where_one_ballot_left_nothing_to_compare(tmp_path):
    """Each order of a label question has one vote here, so its votes alone can make no row."""
    ctx = labelled(tmp_path, own_questions=6, own_ballots=3, own_min_margin=0.0)
    questions = list(plan_questions(ctx, 1))
    once = [vote(q, s, 0, "first") for q in questions for s in (False, True)]
    write_votes(ctx.inputs["label"] / "votes.parquet", questions, once)
    rows, drops = own_votes(ctx)
    assert rows and all(row.source == "own" and row.weight == 1 for row in rows)
    asked = json.loads(next((ctx.scratch).glob("own-*.json")).read_text())
    assert len({v["question_id"] for v in asked}) == 6 and len(asked) == 6 * 2 * 3
    assert {v["question_id"] for v in asked} <= {q.id for q in questions}
    assert len(read_table(ctx.out / "own_votes.parquet")) == len(asked)
    assert len({row.ask.question.id for row in rows}) + sum(drops.values()) == 6
    by_ask = {(v["question_id"], v["swapped"], v["ballot"]): v["answers"] for v in asked}
    for row in rows:
        chosen = by_ask[row.ask.question.id, row.ask.swapped, row.ask.ballot]
        asked_for = row.ask.question.dimensions
        assert parse_reply(row.chosen, asked_for).answers == chosen
        assert parse_reply(row.rejected, asked_for).answers["overall"] != chosen["overall"]
    assert own_votes(ctx) == (rows, drops)  # from its shards, as after a kill
    strict = labelled(tmp_path / "strict", own_questions=6, own_ballots=3, own_min_margin=1.0)
    none, why = own_votes(strict)
    assert none == [] and sum(why.values()) == 6  # a margin of 1 leaves no dissent


def test_without_a_step_nothing_is_loaded_and_what_was_trained_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("loop.steps.train_judge.train_judge", None)
    monkeypatch.setattr("loop.steps.train_judge.known_answers", None)
    prepared = prepare_folder(tmp_path / "prepare")
    ctx = context(tmp_path, {"prepare": prepared}, train_judge={"num_steps": 0})
    train_judge.run(ctx)
    assert json.loads((ctx.out / "metrics.json").read_text()) == {"trained": False}
    assert not (ctx.out / "judge").exists()
    assert judge_config(ctx, ctx.out).model.endswith("tiny-judge")
    parent = tmp_path / "parent"
    (parent / "judge").mkdir(parents=True)
    (parent / "judge" / "config.json").write_text("{}")
    ctx = context(tmp_path, {"prepare": prepared, "judge_parent": parent}, train_judge={"num_steps": 0})
    train_judge.run(ctx)
    assert (ctx.out / "judge" / "config.json").read_text() == "{}"
    assert judge_config(ctx, ctx.out).model == f"{ctx.out}/judge"


def test_srpo_needs_two_answers_to_one_message():
    settings = ["label.voting.num_ballots=1", "train_judge.preference_steps=2"]
    with pytest.raises(UserError, match=r"train_judge\.own_questions"):
        check_training(load_config("mixed", settings).config)
    check_training(load_config("mixed", [*settings, "train_judge.own_questions=8"]).config)
    for shipped in ("quickstart", "dual-ipo", "mixed"):
        config = load_config(shipped).config
        check_training(config)
        assert config.train_judge.preference_steps > 0


def test_the_judge_in_force_answers_fresh_known_questions(tmp_path):
    settings = {"known_share": 0.5, "known_ballots": 2, "preference_steps": 1}
    ctx = context(
        tmp_path,
        {"prepare": prepare_folder(tmp_path / "prepare")},
        train_judge=settings,
    )
    rows, report = known_paths(ctx, 4)
    assert report["known_asked"] == 24  # at most known_answers.num_train, and 64 at a time
    assert rows and all(row.source == "known" and row.weight == 1 for row in rows)
    supervised = {row.ask.question.id for row in _supervised(ctx)[0]}
    assert supervised.isdisjoint(row.ask.question.id for row in rows)
    taught = len({row.ask.question.id for row in rows})
    assert report["known_without_wrong_path"] == 24 - taught
    assert known_paths(ctx, 4) == (rows, report)  # from its shards, as after a kill
    assert known_paths(ctx, 0) == ([], {})
    idle = context(tmp_path, ctx.inputs, train_judge={"preference_steps": 1})
    assert known_paths(idle, 4) == ([], {})
    with pytest.raises(ValueError, match="their sum must be below 1"):
        context(tmp_path, ctx.inputs, train_judge={"known_share": 0.6, "real_share": 0.4})


def test_a_round_mixes_all_its_sources_and_says_so(tmp_path):
    settings = {
        "num_steps": 2,
        "batch_size": 4,
        "preference_steps": 1,
        "preference_batch_size": 2,
        "min_pce": 0.0,
        "known_share": 0.4,
        "known_ballots": 1,
        "real_share": 0.2,
        "grpo_steps": 1,
        "grpo_batch_size": 8,
        "grpo_replies": 4,
        "log_every": 1,
        "checkpoint_every": 1,
    }
    ctx = labelled(tmp_path, **settings)
    train_judge.run(ctx)
    metrics = json.loads((ctx.out / "metrics.json").read_text())
    assert metrics["num_sft_rows"] == 24
    assert (metrics["srpo_rows_own"], metrics["srpo_rows_real"], metrics["srpo_rows_known"]) == (3, 1, 3)
    assert metrics["known_asked"] == 24 and "real_clip_not_preferred" in metrics["own_votes_dropped"]
    assert -0.1 <= metrics["grpo_reward"] <= 1
    log = [json.loads(line) for line in (ctx.out / "log.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in log] == [("sft", 1), ("sft", 2), ("srpo", 3), ("grpo", 4)]
    assert {path.name for path in ctx.out.iterdir()} == {"judge", "metrics.json", "log.jsonl", SCRATCH}
