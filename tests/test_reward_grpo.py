"""GRPO on known answers: what a reply is worth, that sampling and scoring share one road, that it learns."""

import numpy as np
import pytest
import torch
from trl import GRPOConfig

from loop.config_file import load_config
from loop.errors import UserError
from reward.config import JudgeConfig, LoraConfig, TrainJudgeConfig
from reward.grpo import MALFORMED, GrpoJudgeTrainer, advantages_of, reward_of
from reward.judges.transformers import TransformersJudge, load_model
from reward.known_answers import make_known_answers
from reward.question import Ask
from reward.train import train_judge
from reward.trainer import Work, arguments
from tests.test_embedded_judge import FOLDER, known_sources

JUDGE = JudgeConfig(
    model=str(FOLDER),
    instructions="compare",
    frame_size=32,
    time_stamps=False,
    max_new_tokens=48,
    num_frames=4,
    batch_size=32,
)
TRUTH = {"text_alignment": "tie", "motion": "first", "visual_quality": "tie", "overall": "first"}


@pytest.fixture(scope="module")
def known():
    """Four questions, in fewer frames than the judge was made for: about half of its replies are right."""
    flaws = ("wrong_caption", "jitter", "splice", "fade")
    return make_known_answers(
        known_sources("calibrate", np.random.default_rng(7)), 4, seed=11, corruptions=flaws, num_shown=4
    )


def section(**keys):
    return TrainJudgeConfig(
        num_steps=0,
        grpo_batch_size=32,
        grpo_replies=8,
        grpo_learning_rate=5e-4,
        warmup_steps=0,
        log_every=1,
        **keys,
    )


def test_a_right_answer_in_the_grammar_is_worth_one():
    assert reward_of(TRUTH, TRUTH) == reward_of(TRUTH, TRUTH, "mean") == 1.0
    half = TRUTH | {"motion": "tie", "visual_quality": "second"}
    assert reward_of(half, TRUTH) == 1.0 and reward_of(half, TRUTH, "mean") == 0.5
    wrong = TRUTH | {"overall": "second"}
    assert reward_of(wrong, TRUTH) == 0.0 and reward_of(wrong, TRUTH, "mean") == 0.75
    assert reward_of(None, TRUTH) == reward_of(None, TRUTH, "mean") == MALFORMED < 0
    assert reward_of({"motion": "tie"}, {"motion": "tie"}) == 1.0  # a judge that is not asked overall


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    one = 0.5 / (3**-0.5 + 1e-4)  # the deviation of 1, 0, 0, 1 is √(1/3)
    expected = torch.tensor([[one, -one, -one, one], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages_of(rewards), expected)


def test_grpo_scores_the_very_tokens_that_asking_samples(known, tmp_path):
    """One road: prompts are the judge's own, and log-probabilities in training equal those of the draw."""
    judge = TransformersJudge(JUDGE, load_model(JUDGE, dtype="float32"))
    config = section(grpo_steps=1)
    given = arguments(config, 8, 1, 1e-4, Work(tmp_path, 1), "grpo")
    trainer = GrpoJudgeTrainer(
        judge=judge,
        rows=known,
        reward="overall",
        model=judge.model,
        args=GRPOConfig(beta=0.0, num_generations=4, max_completion_length=48, **given),
        peft_config=None,
    )
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"row": 0}] * 4 + [{"row": 3}] * 4)
    assert trainer.model.training
    drawn = []
    judge._sample, draw = lambda *a: drawn.append(draw(*a)) or drawn[-1], judge._sample
    again = trainer._generate_and_score_completions([{"row": 0}] * 4 + [{"row": 3}] * 4)
    assert torch.equal(batch["completion_ids"], again["completion_ids"])
    trainer.state.global_step += 1
    later = trainer._generate_and_score_completions([{"row": 0}] * 4 + [{"row": 3}] * 4)
    assert not torch.equal(later["completion_ids"].flatten()[:40], again["completion_ids"].flatten()[:40])
    replies = drawn[0]
    scored, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        **{k: batch[k] for k in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
    )
    sums = (scored * batch["completion_mask"]).sum(dim=1)
    assert sums.tolist() == pytest.approx([log_prob for _, log_prob in replies], abs=1e-3)
    for i, (ids, _) in enumerate(replies):
        assert batch["completion_ids"][i][batch["completion_mask"][i] == 1].tolist() == ids
        question = known[0 if i < 4 else 3]
        own = judge.encoder.prompt(ask_of(question))
        assert batch["prompt_ids"][i][batch["prompt_mask"][i] == 1].tolist() == own.ids
        assert batch["num_images"][i] == own.num_images == 8
    rewards = [
        reward_of(judge.read(ids, ask_of(known[0])).answers, known[0].answers) for ids, _ in replies[:4]
    ]
    assert batch["advantages"][:4].tolist() == pytest.approx(
        advantages_of(torch.tensor([rewards]))[0].tolist()
    )


def ask_of(known):
    return Ask(known.question, False, 0)


def test_a_few_steps_repeat_byte_for_byte_and_change_the_weights(known, tmp_path):
    logs = []
    for name in ("one", "two"):
        config = section(grpo_steps=2)
        train_judge(FOLDER, [], [], config, JUDGE, tmp_path / name, 3, None, logs.append, known)
    assert logs[:2] == logs[2:] and [(row["phase"], row["step"]) for row in logs[:2]] == [
        ("grpo", 1),
        ("grpo", 2),
    ]
    assert {"reward", "malformed", "undecided"} <= set(logs[0]) and "step_time" not in logs[0]
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    before = load_model(JUDGE)[0].state_dict()
    after = load_model(JUDGE.model_copy(update={"model": str(tmp_path / "one")}))[0].state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def test_grpo_raises_the_reward_on_its_questions(known, tmp_path):
    logs = []
    out = tmp_path / "out"
    report = train_judge(FOLDER, [], [], section(grpo_steps=7), JUDGE, out, 3, None, logs.append, known)
    rewards = [row["reward"] for row in logs]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.15, rewards
    assert report["grpo_reward"] == rewards[-1]


def test_an_adapter_learns_too_and_is_merged(known, tmp_path):
    config = section(grpo_steps=1, lora=LoraConfig(rank=2, alpha=4))
    train_judge(FOLDER, [], [], config, JUDGE, tmp_path / "out", 3, known=known)
    before = load_model(JUDGE)[0].state_dict()
    after = load_model(JUDGE.model_copy(update={"model": str(tmp_path / "out")}))[0].state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert set(after) == set(before) and changed
    assert all(".self_attn." in name for name in changed)


def test_a_loss_that_is_not_finite_stops_grpo(known, tmp_path, monkeypatch):
    monkeypatch.setattr("reward.grpo.MALFORMED", float("nan"))
    monkeypatch.setattr(TransformersJudge, "read", lambda *a: type("Reply", (), {"answers": None}))
    with pytest.raises(FloatingPointError, match="grpo_learning_rate"):
        train_judge(FOLDER, [], [], section(grpo_steps=1), JUDGE, tmp_path / "out", 3, known=known)
    assert not (tmp_path / "out").exists()


def test_batches_must_fit_and_replies_must_differ(known, tmp_path):
    with pytest.raises(ValueError, match=r"multiple of grpo_replies \(8\)"):
        TrainJudgeConfig(grpo_steps=1, grpo_batch_size=12)
    with pytest.raises(ValueError, match="grpo_batch_size must be a multiple of micro_batch_size"):
        TrainJudgeConfig(grpo_steps=1, grpo_batch_size=8, micro_batch_size=16, preference_batch_size=16)
    with pytest.raises(ValueError, match="has 4 questions, but there are 1"):
        train_judge(FOLDER, [], [], section(grpo_steps=1), JUDGE, tmp_path / "out", 3, known=known[:1])
    with pytest.raises(UserError, match=r"judge\.temperature 0"):
        load_config("quickstart", ["train_judge.grpo_steps=1", "judge.temperature=0"])


def test_what_is_off_is_not_in_the_fingerprint():
    """Configs from before these keys dump as they did then."""
    plain = TrainJudgeConfig().model_dump()
    new = ("cold_start_steps", "seed_every_round", "known_share", "known_ballots", "real_share")
    assert not [name for name in plain if name in new or name.startswith("grpo")]
    asked = TrainJudgeConfig(grpo_steps=2, known_share=0.1, real_share=0.0).model_dump()
    assert {"grpo_steps", "grpo_reward", "known_ballots", "real_share"} <= set(asked)
    assert TrainJudgeConfig.model_validate(asked) == TrainJudgeConfig(
        grpo_steps=2, known_share=0.1, real_share=0.0
    )
