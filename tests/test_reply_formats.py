"""`judge.reply` and the shipped judges: which message a model gets, whose reply it is, what can learn."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner, Result

from generator.clips import write_clip
from loop.chosen_judge import KIND, GivenClip, choose_judge
from loop.cli import app
from loop.config import CampaignConfig
from loop.config_file import load_config, load_judge_config, shipped_configs
from loop.errors import UserError
from loop.models import can_learn, check_training
from reward.config import JudgeConfig
from reward.encoding import Encoder
from reward.judge import load_judge
from reward.judges.transformers import load_model
from reward.question import Ask, Question
from reward.replies import FORMATS
from tests.malformed_replies import THOUGHT
from tests.openai_server import Answer, FakeServer, choice
from tests.reward_clips import BlockReader, question
from tests.test_clips import ramp
from tests.test_judge_openai import InProcess, images
from tests.test_judge_openai import config as config_of_server
from tests.tiny_models import make_tiny_qwen3_vl

THINKER = {"reply": "unified_reward", "dimensions": ("motion", "overall")}


def retake(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        write_clip(tmp_path / f"{name}.mp4", ramp(9, 32, 32) + 60 * number, 8)
    return tmp_path


# ---------------------------------------------------------------------------------------------- the config


def test_our_own_form_is_the_default_and_leaves_no_trace_in_fingerprints():
    config = JudgeConfig(model="j")
    assert config.reply == "retake" and config.instructions == FORMATS["retake"].instructions
    assert "reply" not in config.model_dump() and "reply" not in json.loads(config.model_dump_json())
    assert JudgeConfig(model="j", reply="retake").model_dump() == config.model_dump()
    other = JudgeConfig(model="j", **THINKER)
    assert other.model_dump(exclude={"server"})["reply"] == "unified_reward"
    assert JudgeConfig.model_validate(other.model_dump()) == other


def test_instructions_that_nobody_wrote_are_those_of_the_form():
    assert JudgeConfig(model="j", **THINKER).instructions == FORMATS["unified_reward"].instructions
    assert JudgeConfig(model="j", instructions="mine", **THINKER).instructions == "mine"
    resolved = JudgeConfig(model="j").model_dump()  # as in a run's resolved.json, before --set judge.reply
    assert JudgeConfig(**{**resolved, **THINKER}).instructions == FORMATS["unified_reward"].instructions
    back = JudgeConfig(**{**JudgeConfig(model="j", **THINKER).model_dump(), "reply": "retake"})
    assert back.instructions == FORMATS["retake"].instructions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reply": "unified_rewards"}, "did you mean 'unified_reward'"),
        ({"reply": "json"}, "valid: retake, unified_reward"),
        ({"reply": ["retake"]}, "valid string"),
        ({"reply": "unified_reward", "dimensions": ("fun",)}, "says nothing of 'fun'; choose"),
    ],
)
def test_a_wrong_form_names_the_valid_ones(changes, message):
    with pytest.raises(ValidationError, match=message):
        JudgeConfig(model="j", **changes)


def test_only_our_own_form_is_trained():
    data = {"name": "x", "generator": {"model": "a/b"}, "judge": {"model": "c/d", "reply": "unified_reward"}}
    config = CampaignConfig.model_validate(data)
    assert not can_learn(config.judge)
    with pytest.raises(UserError, match=r"judge\.reply unified_reward cannot be trained; set train_judge"):
        check_training(config)
    check_training(CampaignConfig.model_validate({**data, "train_judge": {"num_steps": 0}}))


# --------------------------------------------------------------------------------------------- the message


def told(caption: str = "a <b>red</b> box", **changes) -> tuple[list[dict], list[dict], dict]:
    """Content of the two roads, ours with plain text, and the request's body."""
    asked = Question("q", "known", caption, BlockReader("red"), BlockReader("blue"), ("overall",))
    processor = InProcess()
    with FakeServer() as fake:
        both = config_of_server(fake.url, frame_size=8, **{"instructions": "compare", **changes})
        load_judge(both).vote([Ask(asked, True, 0)])
        Encoder(processor, both).prompt(Ask(asked, True, 0))
    return fake.bodies[0]["messages"][0]["content"], processor.content, fake.bodies[0]


def test_both_roads_show_frames_first_and_the_caption_where_the_words_say():
    sent, shown, body = told(
        reply="unified_reward", instructions="Caption: {prompt}.\nWhich?", time_stamps=False
    )
    assert [b["type"].removesuffix("_url") for b in sent] == [b["type"] for b in shown]
    assert [b["type"] for b in shown] == ["image"] * 8 + ["text"]
    assert sent[-1]["text"] == shown[-1]["text"] == "Caption: a ‹b›red‹/b› box.\nWhich?"
    assert len(images(body)) == 8


def test_times_that_begin_again_have_headings():
    _, shown, _ = told(reply="unified_reward", instructions="Which?")
    text = [block.get("text", "IMAGE") for block in shown]
    assert text[:3] == ["Video 1:\n", "0.0s", "IMAGE"] and text.count("Video 2:\n") == 1
    assert text[-1] == "Which?\nprompt: a ‹b›red‹/b› box\n"


def test_a_caption_can_stand_in_our_own_form_too_and_is_not_read_again():
    _, shown, _ = told("{prompt} {dimensions}", instructions="{dimensions} of {prompt}")
    form = "motion: first|second|tie overall: first|second|tie"
    assert shown[0]["text"] == f"{form} of {{prompt}} {{dimensions}}"


def test_votes_say_which_frames_were_shown(clips):
    wanted = {
        "num_frames": [4, 4],
        "size": [[8, 8], [8, 8]],
        "fps": [2.182, 2.182],  # 3 gaps in 1.375 seconds
        "times": [[0, 0.5, 0.875, 1.375]] * 2,
    }
    with FakeServer() as fake:
        both = config_of_server(fake.url, frame_size=8)
        (vote,) = load_judge(both).vote([Ask(question(), False, 0)])
        assert json.loads(vote.shown or "") == wanted
        assert Encoder(InProcess(), both).prompt(Ask(question(), False, 0)).shown == vote.shown
        Path("pairs.csv").write_text("path_A,path_B,prompt,Overall\na.mp4,b.mp4,x,A\n")
        done = retake(
            *("judge-bench", "pairs.csv", "--judge", "unified-reward-think", "--out", "out"),
            *("--set", "judge.type=openai", "--set", "judge.model=tiny"),
            *("--set", f"judge.server.base_url={fake.url}", "--set", "judge.num_frames=1"),
            *("--set", "data.clip={num_frames: 9, height: 16, width: 48, fps: 8}"),
        )
    assert done.exit_code == 0, done.output
    rows = pq.read_table("out/votes.parquet").to_pylist()
    for row in rows:
        assert json.loads(row["shown"]) == {
            "num_frames": [1, 1],
            "size": [[16, 48], [16, 48]],
            "fps": [None, None],
            "times": [[0.5], [0.5]],
        }
    assert len(rows) == 2


# --------------------------------------------------------------------------------------- the shipped judges


@pytest.mark.parametrize("name", shipped_configs("judges/"))
def test_every_shipped_judge_is_valid_and_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_judge_config(name).config
    assert config == load_judge_config(f"configs/judges/{name}.yaml").config
    assert config.judge.model and config.data.clip.height > 32
    if config.judge.model.startswith("."):  # of a folder that its user converts first
        with pytest.raises(UserError, match=r"judge\.model: no folder"):
            choose_judge(name)
    else:
        assert choose_judge(name).judge.model == config.judge.model
    with pytest.raises(UserError, match="does not exist"):
        load_config(name)  # it is no campaign


def test_judges_and_campaigns_are_told_apart():
    assert {"qwen2.5-vl", "qwen3-vl", "unified-reward-think"} <= set(shipped_configs("judges/"))
    assert not set(shipped_configs("judges/")) & set(shipped_configs())
    assert load_judge_config("quickstart").config == load_config("quickstart").config
    with pytest.raises(UserError, match=r"did you mean unified-reward-think"):
        load_judge_config("unified-reward-thinks")


def test_a_published_judge_behind_a_server(clips):
    turned = THOUGHT.replace("Video 2 is better", "Video 1 is better")
    replies = {False: THOUGHT, True: turned}
    asked: list[bool] = []

    def answer(number: int, body: dict) -> Answer:
        asked.append(len(asked) % 2 == 1)  # one at a time: the question's own order first
        return Answer(choice(replies[asked[-1]]))

    with FakeServer(answer) as fake:
        done = retake(
            *("judge", "a.mp4", "b.mp4", "--prompt", "a ramp", "--json", "--judge", "unified-reward-think"),
            *("--set", "judge.type=openai", "--set", "judge.model=tiny"),
            *("--set", f"judge.server={{base_url: '{fake.url}', max_concurrency: 1}}"),
            *("--set", "judge.dimensions=[motion, overall]"),
            *("--set", "data.clip={num_frames: 9, height: 32, width: 32, fps: 8}"),
        )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["num_votes"], found["abstentions"]) == (2, {})
    overall, motion = (found["dimensions"][name] for name in ("overall", "motion"))
    assert (overall["mode"], overall["p_second"], overall["flip_rate"]) == ("second", 1, 0)
    assert (motion["mode"], motion["p_tie"]) == ("tie", 1)
    body = fake.bodies[0]
    assert (body["temperature"], body["max_tokens"]) == (0, 2048)
    assert "Caption: a ramp\n" in body["messages"][0]["content"][-1]["text"] and len(images(body)) == 16


REPLY = "<think> a ring moves right </think> <answer> Video 1 is better </answer>"
OVERRIDES = (
    "judge.frame_size=16",
    "judge.max_new_tokens=24",
    "data.clip={num_frames: 9, height: 32, width: 32, fps: 8}",
    "threads=1",
)


def learn_by_heart(folder: Path, judge: JudgeConfig, asks: list[Ask], reply: str) -> None:
    """Train a tiny model until this reply is what it says to all asks."""
    model, processor = load_model(judge)
    encoder = Encoder(processor, judge)
    batch = encoder.collate([encoder.prompt(ask) for ask in asks], [encoder.reply_ids(reply)] * len(asks))
    mask = batch.pop("completion_mask").bool()
    labels = batch["input_ids"].masked_fill(~mask, -100)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimiser.step()
    assert loss < 0.05
    model.save_pretrained(folder)


def test_a_published_judge_in_process(clips):
    words = ("<think>", "</think>", "Video", "1", "is", "better")
    folder = make_tiny_qwen3_vl(clips / "model", words=words)
    sets = [f"judge.model={folder}", *OVERRIDES]
    command = ["judge", "a.mp4", "b.mp4", "--prompt", "a ring", "--json", "--judge", "unified-reward-think"]
    command += [part for one in sets for part in ("--set", one)]
    found = json.loads(retake(*command).stdout)
    assert (found["num_votes"], found["num_abstentions"]) == (0, 2)  # random weights say nothing
    assert found["dimensions"]["overall"]["mode"] is None
    assert found["unread"]["abstention"] == "truncated" and found["unread"]["reply"]

    chosen = choose_judge("unified-reward-think", sets)
    readers = [GivenClip(clips / f"{name}.mp4", chosen.config.data.clip) for name in "ab"]
    asked = Question("q", KIND, "a ring", readers[0], readers[1], ("overall",))
    learn_by_heart(folder, chosen.judge, [Ask(asked, swapped, 0) for swapped in (False, True)], REPLY)
    found = json.loads(retake(*command).stdout)
    assert (found["num_votes"], found["num_abstentions"]) == (2, 0)
    overall = found["dimensions"]["overall"]
    assert (overall["mode"], overall["flip_rate"]) == ("tie", 1)  # Video 1, whichever is shown first
    assert found["reasoning"][0]["reasoning"] == "a ring moves right"
