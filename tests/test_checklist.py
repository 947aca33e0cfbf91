"""Checklists: recorded answers make scores, a tiny model's logits make answers, files are read strictly."""

import math

import numpy as np
import pytest
import torch

from reward.config import JudgeConfig
from reward.judge import load_judge
from reward.scorers.checklist import read_checklist
from reward.scorers.yes_no import ChecklistScorer, Words, find_words
from reward.voting import make_asks
from tests.reward_clips import question
from tests.tiny_models import make_tiny_qwen_vl

FILE = """\
form: "{question} yes or no"
questions:
  - {output: motion, weight: 2, question: "moves right"}
  - {output: visual_quality, weight: 0.5, question: "steady"}
  - {output: motion, weight: 1, question: "a {prompt} the box more , less"}
"""
DIMENSIONS = ("motion", "overall")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen_vl(tmp_path_factory.mktemp("judge"), more_words="yes no Yes or")


def settings(folder, file, text=FILE, **changes):
    file.write_text(text)
    more = {"dimensions": DIMENSIONS, "num_frames": 4, "frame_size": 16, "time_stamps": False, **changes}
    scorer = {"head": "checklist", "checklist": str(file), **more.pop("scorer", {})}
    return JudgeConfig(type="scorer", model=str(folder), scorer=scorer, **more)


def test_recorded_answers_make_scores_by_hand(folder, tmp_path, monkeypatch):
    recorded = np.array([0.75, 0.5, 0.1])  # P(yes) of the three questions
    monkeypatch.setattr(ChecklistScorer, "p_yes", lambda *args: recorded)
    soft = ChecklistScorer(settings(folder, tmp_path / "a.yaml"))
    raw = soft.raw(question().first, question())
    # motion 2·0.5 + 1·(−0.8), visual_quality 0.5·0; overall is the sum of both
    assert raw == pytest.approx([0.2, 0.0]) and soft.mix.scores(raw) == pytest.approx([0.2, 0.2])
    hard = ChecklistScorer(settings(folder, tmp_path / "a.yaml", scorer={"hard_answers": True}))
    assert hard.raw(question().first, question()) == pytest.approx([2 - 1, -0.5])
    assert soft.thresholds.tolist() == [0, 0]


def test_logits_make_the_chance_of_yes():
    """By hand: e^1 + e^2 for yes against e^0.5 for no."""
    words = Words(yes=[0, 2], no=[3])
    found = words.p_yes(torch.tensor([[1.0, 9.0, 2.0, 0.5], [0.0, 9.0, 0.0, math.log(2)]]))
    assert found.tolist() == pytest.approx([(math.e + math.e**2) / (math.e + math.e**2 + math.e**0.5), 0.5])


def test_the_answer_is_read_where_the_model_would_write_it(folder, tmp_path):
    scorer = ChecklistScorer(settings(folder, tmp_path / "a.yaml"))
    found = scorer.p_yes(question().first, question())
    tokenizer = scorer.encoder.tokenizer
    yes = [tokenizer.convert_tokens_to_ids(word) for word in ("yes", "Yes")]
    no = tokenizer.convert_tokens_to_ids("no")
    for place, asked in enumerate(("moves right", "steady", "a {prompt} the box more , less")):
        prompt = scorer.encoder.clip(question().first, question(), f"{asked} yes or no")
        with torch.inference_mode():
            batch = scorer.encoder.collate([prompt])
            logits = scorer.model(**batch).logits[0, -1]
        wanted = torch.stack([logits[yes].exp().sum(), logits[no].exp()])
        assert found[place] == pytest.approx((wanted[0] / wanted.sum()).item(), abs=1e-5)


def test_batches_of_questions_change_nothing(folder, tmp_path):
    whole, single = (
        ChecklistScorer(settings(folder, tmp_path / "a.yaml", batch_size=size)).p_yes(
            question().first, question()
        )
        for size in (16, 1)
    )
    assert whole == pytest.approx(single, abs=2e-5) and len(set(whole.tolist())) == 3


def test_a_checklist_judges(folder, tmp_path):
    config = settings(folder, tmp_path / "a.yaml")
    judge = load_judge(config)
    votes = judge.vote(make_asks(question(), 20))
    assert {vote.abstention for vote in votes} == {None}
    assert {answer for vote in votes for answer in vote.answers.values()} == {"first", "second"}  # κ = 0
    assert votes[0].reasoning.startswith("first: motion ")
    before = judge.identity()
    assert load_judge(settings(folder, tmp_path / "a.yaml", FILE + "  # a word")).identity() != before


def test_the_shipped_example_is_read_and_covers_retakes_dimensions():
    config = JudgeConfig(type="scorer", model="m", scorer={"head": "checklist", "checklist": "example"})
    found = read_checklist(config)
    assert set(found.outputs) == set(config.dimensions) - {"overall"}
    assert found.weights.shape == (3, len(found.questions)) and found.weights.sum() == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("questions: []", "questions: Tuple should have at least 1 item"),
        ("questions: [{output: motion, weight: .inf, question: x}]", r"questions\.0\.weight: .*finite"),
        ("questions: [{output: motion, wait: 1, question: x}]", r"questions\.0\.weight: Field required"),
        ("form: yes or no\nquestions: [{output: a, weight: 1, question: x}]", r"form: lacks \{question\}"),
        ("- a\n- b", "the file: Input should be a valid dictionary"),
        ("questions: [", "cannot read"),
    ],
)
def test_a_file_that_is_no_checklist_is_a_user_error(folder, tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"judge\.scorer\.checklist: .*{message}"):
        load_judge(settings(folder, tmp_path / "bad.yaml", text))


def test_a_model_that_cannot_say_yes_or_read_so_much_is_a_user_error(folder, tmp_path):
    mute = make_tiny_qwen_vl(tmp_path / "mute", more_words="yes")
    with pytest.raises(ValueError, match="no single token for 'no'"):
        load_judge(settings(mute, tmp_path / "a.yaml"))
    long = FILE.replace("steady", "steady " * 1100)
    with pytest.raises(ValueError, match=r"lower judge\.num_frames"):
        load_judge(settings(folder, tmp_path / "long.yaml", long)).vote(make_asks(question(), 1))


def test_capitals_and_spaces_are_other_tokens_of_the_same_word(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = find_words(tokenizer, "m")
    assert words.yes == sorted(tokenizer.convert_tokens_to_ids(w) for w in ("yes", "Yes"))
