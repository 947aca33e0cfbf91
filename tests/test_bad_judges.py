"""Judges that cannot judge: each is a clear error or a counted abstention, never a silent zero."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from generator.clips import write_clip
from loop.chosen_judge import choose_judge
from loop.cli import app
from loop.errors import UserError
from loop.steps.judging import ask
from reward.config import JudgeConfig, VotingConfig
from reward.judge import PlugInFailed, load_judge
from reward.question import Reply, Vote, vote_of
from reward.voting import fold, make_asks
from tests.openai_server import Answer, FakeServer, choice, error
from tests.reward_clips import question
from tests.test_clips import ramp
from tests.test_judge_openai import config as config_of_server
from tests.test_judge_openai import trouble
from tests.test_reward_judge import config as config_of
from tests.tiny_models import _tokenizer, make_tiny_qwen_vl

# ------------------------------------------------------------------------------------ models without vision


def test_a_model_without_vision_in_process(tmp_path):
    settings = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **settings)).save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load .* as a vision-language model"):
        load_judge(config_of(tmp_path))


def test_a_vision_model_whose_image_processor_is_missing(tmp_path):
    folder = make_tiny_qwen_vl(tmp_path)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"judge\.model"):
        load_judge(config_of(folder))


@pytest.mark.parametrize(
    "words",
    [
        "tiny is not a multimodal model",
        "Invalid content type. image_url is only supported by certain models.",
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "this model does not support images",
    ],
)
def test_a_model_without_vision_behind_a_server(words):
    said = trouble(lambda number, body: error(400, words))
    assert "sees no images; serve one with vision" in said and words in said


def test_a_chat_template_that_drops_some_images(tmp_path):
    folder = make_tiny_qwen_vl(tmp_path)
    file = folder / "chat_template.jinja"
    only_first = "{% if c['type'] == 'image' and not ns.seen %}{% set ns.seen = true %}"
    template = file.read_text().replace("{% if c['type'] == 'image' %}", only_first)
    template = template.replace("{% else %}{{ c['text'] }}", "{% elif c['type'] == 'text' %}{{ c['text'] }}")
    file.write_text("{% set ns = namespace(seen=false) %}" + template)
    with pytest.raises(ValueError, match="shows 1 of 8 images; use a template with an image block"):
        load_judge(config_of(folder)).vote(make_asks(question(), 1))


def test_a_caption_that_fills_the_context_is_named(tmp_path):
    long = replace(question("q7"), prompt="a red box " * 600)
    with pytest.raises(ValueError, match=r"shorten the prompt of question 'q7' \(6000 characters\)"):
        load_judge(config_of(make_tiny_qwen_vl(tmp_path))).vote(make_asks(long, 1))


# --------------------------------------------------------------------------------------- replies of no use


@pytest.mark.parametrize(("reply", "reason"), [("The first one.", "missing_tag"), ("", "empty")])
def test_a_judge_that_answers_nothing_is_said_aloud_and_has_no_verdict(tmp_path, caplog, reply, reason):
    quiet = SimpleNamespace(start=lambda *_: None, advance=lambda *_: None)
    log = logging.getLogger("retake.test")
    context = SimpleNamespace(progress=quiet, scratch=tmp_path, log=log)
    with FakeServer(lambda number, body: Answer(choice(reply))) as fake, caplog.at_level(logging.WARNING):
        judge = load_judge(config_of_server(fake.url))
        votes = ask(context, judge, [question()], VotingConfig(num_ballots=2), "votes")
    assert [vote.abstention for vote in votes] == [reason] * 4
    [warned] = [record.getMessage() for record in caplog.records if record.name == log.name]
    assert f"no answer in 4 votes ({reason})" in warned and repr(reply) in warned
    verdict = fold(question(), votes)
    assert (verdict.num_votes, verdict.num_abstentions) == (0, 4)
    assert {found.mode for found in verdict.dimensions.values()} == {None}


# ------------------------------------------------------------------------------------------------ plug-ins


class Broken:
    """A plug-in that does what `how` says."""

    how: ClassVar[str] = ""

    def __init__(self, config):
        if self.how == "make":
            raise KeyError("weights")

    def vote(self, asks):
        if self.how == "none":
            return None
        if self.how == "texts":
            return ["first" for _ in asks]
        if self.how == "too many":
            asks = [*asks, asks[0]]
        if self.how == "reads all":
            raise RuntimeError(f"{len(list(asks))} are too many")
        return [self.one(ask) for ask in asks]

    def one(self, ask):
        if self.how == "raise" and ask.question.id == "q2":
            raise ZeroDivisionError("no frames")
        if self.how == "value error" and ask.swapped:
            raise ValueError("strange clip")
        answer = "First" if self.how == "word" else "first"
        answers = dict.fromkeys(ask.question.dimensions, answer)
        if self.how == "dimension":
            answers.pop("overall")
        return vote_of(ask, Reply(answers, "", None))

    def identity(self):
        if self.how == "identity":
            raise OSError("no file")
        return "1"

    def close(self):
        pass


NAME = f"judge.target '{__name__}:Broken'"


def ask_broken(monkeypatch, how: str) -> list[Vote]:
    monkeypatch.setattr(Broken, "how", how)
    judge = load_judge(JudgeConfig(type="python", target=f"{__name__}:Broken"))
    votes = judge.vote([one for i in range(4) for one in make_asks(question(f"q{i}"), 1)])
    judge.identity()
    return votes


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("make", PlugInFailed, " raised KeyError in making it: 'weights'"),
        ("raise", PlugInFailed, " raised ZeroDivisionError in its vote(), at question 'q2' (ask 5 of 8)"),
        ("value error", PlugInFailed, " raised ValueError in its vote(), at question 'q0' (ask 2 of 8)"),
        ("reads all", PlugInFailed, " raised RuntimeError in its vote(), at question 'q3' (ask 8 of 8)"),
        ("identity", PlugInFailed, " raised OSError in its identity(): no file"),
        ("none", ValueError, " returned no list of votes"),
        ("texts", ValueError, " returned no list of votes"),
        ("too many", ValueError, " returned 9 votes for 8 asks"),
        ("word", ValueError, " answered 'First' to 'q0'; an answer is one of first, second, tie"),
        ("dimension", ValueError, " answered ['motion'] where 'q0' asks for ['motion', 'overall']"),
    ],
)
def test_a_plug_in_that_fails_is_named_with_the_question(monkeypatch, how, kind, message):
    with pytest.raises(kind) as caught:
        ask_broken(monkeypatch, how)
    assert str(caught.value).startswith(NAME + message)


def test_a_sound_plug_in_gets_its_asks_as_a_list(monkeypatch):
    votes = ask_broken(monkeypatch, "")
    assert [(v.question_id, v.swapped) for v in votes] == [
        (f"q{i}", s) for i in range(4) for s in (False, True)
    ]
    # it may do with them what one does with lists
    monkeypatch.setattr(Broken, "vote", lambda self, asks: [self.one(a) for a in (asks + asks)[: len(asks)]])
    assert ask_broken(monkeypatch, "") == votes


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise always", "raised ZeroDivisionError in its vote(), at question 'given-"),
        ("word", "answered 'First' to 'given-"),
        ("make", "raised KeyError in making it"),
    ],
)
def test_on_the_command_line_it_is_one_line(tmp_path, monkeypatch, how, message):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "a.mp4", ramp(20, 32, 32), 8)
    monkeypatch.setattr(Broken, "how", how)
    if how == "raise always":
        monkeypatch.setattr(Broken, "one", lambda self, asked: 1 / 0)
    done = CliRunner().invoke(
        app,
        [
            *("judge", "a.mp4", "a.mp4", "--prompt", "x"),
            *("--set", "judge.type=python", "--set", f"judge.target={__name__}:Broken"),
        ],
    )
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert NAME in done.stderr and message in done.stderr


def test_a_module_that_raises_when_it_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_written.py").write_text("class Judge:\n")
    with pytest.raises(UserError, match=r"judge\.target: importing 'half_written' raised \w+Error"):
        choose_judge("quickstart", ["judge.type=python", "judge.target=half_written:Judge"])


def test_an_entry_point_that_fails_is_named_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "broken-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[retake.judges]\nbroken = {__name__}:Broken\n")
    monkeypatch.setattr(Broken, "how", "raise")
    judge = load_judge(JudgeConfig(type="broken"))
    with pytest.raises(PlugInFailed, match=rf"judge\.type 'broken' \({__name__}:Broken\) raised .* 'q2'"):
        judge.vote(make_asks(question("q2"), 1))
    monkeypatch.setattr(Broken, "how", "word")
    with pytest.raises(ValueError, match=r"judge\.type 'broken' .* answered 'First'"):
        judge.vote(make_asks(question("q2"), 1))
