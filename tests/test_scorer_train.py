"""Training a scorer: the loss by hand, that it learns, that it repeats, and a round's train_judge step."""

import math

import numpy as np
import pytest
import torch

from reward.config import JudgeConfig, LoraConfig, TrainJudgeConfig
from reward.judge import load_judge
from reward.judges.transformers import load_model
from reward.known_answers import make_known_answers
from reward.scorers.linear import LinearScorer
from reward.scorers.ties import probabilities
from reward.scorers.train import btt_loss, train_scorer
from reward.voting import fold, make_asks
from tests.reward_clips import sources
from tests.tiny_models import make_tiny_qwen_vl

DIMENSIONS = ("motion", "overall")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_qwen_vl(tmp_path_factory.mktemp("plain"), more_words="rate")


@pytest.fixture(scope="module")
def judge_config(folder):
    return JudgeConfig(
        type="scorer",
        model=str(folder),
        scorer={"new_head": True, "instructions": "rate {prompt}"},
        num_frames=4,
        frame_size=16,
        time_stamps=False,
        dimensions=DIMENSIONS,
        temperature=0,
    )


def known(num=16):
    return make_known_answers(sources(), num, 0, DIMENSIONS, num_shown=4)


def settings(**changes):
    return TrainJudgeConfig(
        **{
            "num_steps": 3,
            "batch_size": 4,
            "warmup_steps": 0,
            "learning_rate": 3e-3,
            "log_every": 1,
            **changes,
        }
    )


def test_the_loss_is_the_laws_logarithm():
    """By hand, as in test_scorer: π₁ = 2, π₂ = 1, θ = 3 give 2/5, 1/7 and 16/35."""
    delta = torch.full((1, 3), math.log(2))
    loss = btt_loss(delta, torch.tensor([[1, -1, 0]]), torch.full((3,), math.log(3)))
    assert loss[0].tolist() == pytest.approx([-math.log(2 / 5), -math.log(1 / 7), -math.log(16 / 35)])


@pytest.mark.parametrize("difference", [-40.0, 0.0, 3.0])
@pytest.mark.parametrize("threshold", [1e-3, 1.6, 50.0])
def test_the_loss_and_the_votes_speak_of_one_law(difference, threshold):
    law = probabilities(difference, threshold)
    delta = torch.full((1, 3), difference, dtype=torch.float64, requires_grad=True)
    kappa = torch.full((3,), threshold, dtype=torch.float64, requires_grad=True)
    loss = btt_loss(delta, torch.tensor([[1, -1, 0]]), kappa)
    assert torch.exp(-loss)[0].tolist() == pytest.approx([law["first"], law["second"], law["tie"]])
    loss.sum().backward()
    assert delta.grad.isfinite().all() and kappa.grad.isfinite().all()


def accuracy(config, model, answers):
    judge = load_judge(config.model_copy(update={"model": str(model)}))
    verdicts = [fold(k.question, judge.vote(make_asks(k.question, 1))) for k in answers]
    return np.mean(
        [v.dimensions["overall"].mode == k.answers["overall"] for v, k in zip(verdicts, answers, strict=True)]
    )


def test_training_learns_a_few_pairs(folder, judge_config, tmp_path):
    flaws = ("vanish", "noise", "fade")
    answers = make_known_answers(sources(), 8, 0, DIMENSIONS, flaws, num_shown=4, both_share=0)
    assert {k.answers["overall"] for k in answers} == {"first", "second", "tie"}
    scorer = judge_config.scoring.model_copy(update={"head_learning_rate": 0.1})
    judge_config = judge_config.model_copy(update={"scorer": scorer})
    config = settings(num_steps=25, batch_size=8, learning_rate=1e-3, log_every=5)
    logs = []
    report = train_scorer(folder, answers, config, judge_config, tmp_path / "out", 7, None, logs.append)
    before, after = (accuracy(judge_config, model, answers) for model in (folder, tmp_path / "out"))
    assert before == np.mean([k.answers["overall"] == "tie" for k in answers])  # of zeros it can say no more
    assert before <= 0.25 and after >= 0.85
    assert logs[0]["phase"] == "btt" and [row["step"] for row in logs] == list(range(5, 26, 5))
    assert logs[-1]["accuracy"] == 1.0 and logs[-1]["loss"] < logs[0]["loss"] / 2
    assert report["btt_loss"] == logs[-1]["loss"] and report["num_pairs"] == 8


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)])
def test_training_repeats_byte_for_byte_and_ends_in_a_plain_folder(folder, judge_config, tmp_path, lora):
    steps = []
    for name in ("one", "two"):
        train_scorer(
            folder, known(), settings(lora=lora), judge_config, tmp_path / name, 7, lambda *a: steps.append(a)
        )
    assert steps == [(1, 3), (2, 3), (3, 3)] * 2
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"model.safetensors", "reward_head.safetensors", "reward_head.json", "chat_template.jinja"} <= set(
        files
    )
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
        if not file.endswith(".safetensors"):
            assert str(folder) not in (tmp_path / "one" / file).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # no scratch stays
    trained = load_model(JudgeConfig(model=str(tmp_path / "one")))[0].state_dict()
    before = load_model(JudgeConfig(model=str(folder)))[0].state_dict()
    assert set(trained) == set(before)
    assert any(not torch.equal(value, before[name]) for name, value in trained.items())


def test_another_round_goes_on_from_the_saved_head(folder, judge_config, tmp_path):
    train_scorer(folder, known(), settings(), judge_config, tmp_path / "one", 7)
    train_scorer(tmp_path / "one", known(), settings(num_steps=1), judge_config, tmp_path / "two", 8)
    one, two = (
        LinearScorer(judge_config.model_copy(update={"model": str(tmp_path / name)}))
        for name in ("one", "two")
    )
    change = (two.model.weight - one.model.weight).abs().max()
    assert 0 < change <= 0.00101  # one step of Adam at head_learning_rate, and not from zeros again
    assert one.thresholds.tolist() != two.thresholds.tolist() != [1.0, 1.0]


def test_micro_batches_give_the_same_losses(folder, judge_config, tmp_path):
    losses = []
    for name, micro in (("whole", None), ("parts", 2)):
        config = settings(batch_size=8, micro_batch_size=micro, gradient_checkpointing=micro is not None)
        train_scorer(folder, known(), config, judge_config, tmp_path / name, 7, None, losses.append)
    whole, parts = ([row["loss"] for row in losses[i : i + 3]] for i in (0, 3))
    assert whole == pytest.approx(parts, abs=2e-4)


def test_a_fixed_threshold_is_not_learned(folder, judge_config, tmp_path):
    scorer = judge_config.scoring.model_copy(update={"tie_threshold": math.log(5)})
    fixed = judge_config.model_copy(update={"scorer": scorer})
    train_scorer(folder, known(), settings(), fixed, tmp_path / "out", 7)
    free = judge_config.model_copy(update={"model": str(tmp_path / "out")})
    assert LinearScorer(free).thresholds == pytest.approx([math.log(5)] * 2)
    without = fixed.model_copy(update={"scorer": scorer.model_copy(update={"tie_threshold": 0.0})})
    with pytest.raises(ValueError, match=r"tie_threshold is 0"):
        train_scorer(folder, known(), settings(), without, tmp_path / "zero", 7)


def test_a_loss_that_is_not_finite_stops_before_the_optimiser_step(
    folder, judge_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("reward.scorers.train.btt_loss", lambda delta, *rest: delta * float("nan"))
    stepped = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: stepped.append(a))
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train_scorer(folder, known(), settings(), judge_config, tmp_path / "out", 7)
    assert not stepped and not (tmp_path / "out").exists()
