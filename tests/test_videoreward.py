"""VideoReward: a tiny random model in its published layout, converted, scores as its authors' code does."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from reward.config import JudgeConfig, LoraConfig, TrainJudgeConfig
from reward.judge import load_judge
from reward.known_answers import make_known_answers
from reward.question import Question
from reward.scorers.encoding import num_at_rate
from reward.scorers.linear import LinearScorer
from reward.scorers.ties import probabilities
from reward.scorers.train import train_scorer
from reward.scorers.videoreward import main
from reward.voting import make_asks
from tests.reward_clips import BlockReader, sources
from tests.tiny_videoreward import TinyVideoReward

OUTPUTS = {"visual_quality": {"VQ": 1}, "motion": {"MQ": 1}, "text_alignment": {"TA": 1}}
DIMENSIONS = ("visual_quality", "motion", "text_alignment", "overall")


def config(folder):
    return JudgeConfig(
        type="scorer",
        model=str(folder),
        scorer={"outputs": OUTPUTS},
        num_frames=16,
        dimensions=DIMENSIONS,
    )


def question():
    clips = [BlockReader(c, num_frames=24, size=24) for c in ("red", "blue")]
    return Question("q", "known", "a red box moves right", *clips, DIMENSIONS)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return TinyVideoReward(tmp_path_factory.mktemp("videoreward"))


@pytest.fixture(scope="module")
def converted(published):
    out = published.weights.parent / "converted"
    main([str(published.weights), str(published.code), str(out)])
    return out


def test_it_scores_as_the_authors_code_does(published, converted):
    scorer = LinearScorer(config(converted))
    q = question()
    prompt = scorer.encoder.clip(q.first, q, scorer.head.instructions)
    video = prompt.vision
    # 3 s at 2 fps are 6 frames, merged in pairs; 24 pixels become the least of 128 tokens a frame
    assert video["video_grid_thw"].tolist() == [[3, 24, 24]]
    wanted = published.raw(prompt.ids, video["pixel_values_videos"], video["video_grid_thw"])
    found = scorer.raw(q.first, q)
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)
    assert np.abs(found).min() > 0.01
    # the positions matter: with those of transformers' own the scores are others
    scorer.model.sequential = False
    assert np.abs(scorer.raw(q.first, q) - found).max() > 1e-3


def test_it_votes_by_the_law_it_was_trained_with_and_reports_normalised_scores(converted):
    judge = load_judge(config(converted))
    q = question()
    first, second = (judge.scorer.raw(reader, q) for reader in (q.first, q.second))
    vote = judge.vote(make_asks(q, 1))[0]
    z = (first - [1.0, -1.0, 0.0]) / [2.0, 0.5, 4.0]
    assert f"motion {z[1]:.2f}" in vote.reasoning and f"overall {z.sum():.2f}" in vote.reasoning
    law = probabilities(first[1] - second[1], math.log(5))
    assert f"motion {law['first']:.2f}/{law['second']:.2f}/{law['tie']:.2f}" in vote.reasoning


def test_the_prompt_is_the_authors_own_and_is_not_run(converted):
    head = json.loads((converted / "reward_head.json").read_text())
    assert head["instructions"] == "\nrate a <|VQ_reward|> the <|MQ_reward|> {prompt} <|TA_reward|> ."
    assert (head["frames"], head["positions"], head["fps"]) == ("video", "sequential", 2.0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_adapters_alone_lie_on_the_base_model(tmp_path, outputs):
    published = TinyVideoReward(tmp_path, whole=False, outputs=outputs)
    main([str(published.weights), str(published.code), str(tmp_path / "out"), "--base", str(published.base)])
    scorer = LinearScorer(config(tmp_path / "out"))
    q = question()
    prompt = scorer.encoder.clip(q.first, q, scorer.head.instructions)
    wanted = published.raw(prompt.ids, prompt.vision["pixel_values_videos"], prompt.vision["video_grid_thw"])
    assert scorer.raw(q.first, q) == pytest.approx(wanted.numpy(), abs=1e-4)


def test_the_published_folder_itself_is_a_user_error_that_names_the_command(published):
    with pytest.raises(ValueError, match=r"python -m reward\.scorers\.videoreward"):
        load_judge(config(published.weights))


class Rogue:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_what_cannot_be_converted_is_a_user_error(tmp_path, capsys):
    published = TinyVideoReward(tmp_path)
    weights = published.weights / "checkpoint-70" / "model.pth"

    def message(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in (*arguments, tmp_path / "out")])
        assert stopped.value.code == 2
        said = capsys.readouterr()
        assert "this must not run" not in said.out
        return said.err

    assert "give a copy of the authors' repository" in message(published.weights, tmp_path / "no")
    assert "is not VideoReward's" in message(published.base, published.code)
    tensors = torch.load(weights, weights_only=True)
    torch.save({n: t for n, t in tensors.items() if "norm" not in n}, weights)
    assert "does not fit the base model" in message(published.weights, published.code)
    torch.save({n: t for n, t in tensors.items() if "rm_head" not in n}, weights)
    assert "holds no rm_head" in message(published.weights, published.code)
    torch.save({"weights": Rogue()}, weights)
    assert "holds more than tensors" in message(published.weights, published.code)
    weights.unlink()
    assert "holds neither model.pth" in message(published.weights, published.code)


def test_a_template_without_videos_is_a_user_error(converted, tmp_path):
    blind = shutil.copytree(converted, tmp_path / "blind")
    template = (blind / "chat_template.jinja").read_text()
    (blind / "chat_template.jinja").write_text(template.replace("<|video_pad|>", ""))
    with pytest.raises(ValueError, match="shows 0 of 1 video"):
        load_judge(config(blind)).vote(make_asks(question(), 1))


def test_it_can_go_on_learning(converted, tmp_path):
    known = make_known_answers(sources(num_frames=24, size=24), 2, 0, DIMENSIONS, ("vanish",), num_shown=6)
    settings = TrainJudgeConfig(num_steps=1, batch_size=2, warmup_steps=0, lora=LoraConfig(rank=2, alpha=4))
    train_scorer(converted, known, settings, config(converted), tmp_path / "out", 0)
    before, after = (LinearScorer(config(folder)) for folder in (converted, tmp_path / "out"))
    assert before.head == after.head
    assert 0 < (after.model.weight - before.model.weight).abs().max() <= 0.00101
    assert after.thresholds != pytest.approx(before.thresholds)


def test_the_rate_decides_how_many_frames_are_shown():
    assert num_at_rate(24, 8.0, 2.0, 16) == 6
    assert num_at_rate(17, 8.0, 2.0, 16) == 4  # no fewer than 4
    assert num_at_rate(80, 8.0, 2.0, 15) == 14  # at most judge.num_frames, even
    assert num_at_rate(3, 8.0, 2.0, 16) == 3  # at most what there is
