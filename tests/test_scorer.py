"""Point-wise scorers: the law of ties, votes, the folder of a reward head, and what cannot score."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import configs
from loop.config_file import load_config
from loop.errors import UserError
from loop.models import check_models
from reward.config import JudgeConfig
from reward.judge import load_judge
from reward.judges.scorer import ScorerJudge
from reward.question import ANSWERS, Question
from reward.scorers.head import HeadFile, make_mix
from reward.scorers.linear import LinearScorer, save_scorer
from reward.scorers.ties import draw, probabilities
from reward.voting import fold, make_asks
from tests.reward_clips import BlockReader, question
from tests.tiny_models import make_tiny_qwen_vl

DIMENSIONS = ("motion", "overall")
WORDS = "rate {prompt}"


def settings(folder, **scorer):
    return JudgeConfig(
        type="scorer",
        model=str(folder),
        scorer=scorer or None,
        num_frames=4,
        num_segment_frames=3,
        frame_size=16,
        time_stamps=False,
        dimensions=DIMENSIONS,
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_tiny_qwen_vl(tmp_path_factory.mktemp("plain"), more_words="rate")


@pytest.fixture(scope="module")
def scored(plain, tmp_path_factory):
    """A scorer with a random head, as train_scorer would leave it."""
    folder = tmp_path_factory.mktemp("scored")
    scorer = LinearScorer(settings(plain, new_head=True, instructions=WORDS))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        scorer.model.weight.copy_(torch.randn(2, 32, generator=generator))
        scorer.model.log_threshold.copy_(torch.tensor([0.5, 2.0]).log())
    save_scorer(scorer.head, scorer.model, scorer.processor, folder)
    return folder


def test_the_law_of_ties_is_rao_and_kuppers():
    """By hand: π₁ = 2, π₂ = 1, θ = 3 give 2/5, 1/7 and 8·2/(5·7)."""
    law = probabilities(math.log(2), math.log(3))
    assert law == pytest.approx({"first": 2 / 5, "second": 1 / 7, "tie": 16 / 35})
    assert probabilities(0.0, math.log(5)) == pytest.approx({"first": 1 / 6, "second": 1 / 6, "tie": 4 / 6})
    assert probabilities(1.0, 0.0) == pytest.approx({"first": 0.7310586, "second": 0.2689414, "tie": 0})


@pytest.mark.parametrize("difference", [-800.0, -3.0, 0.0, 0.7, 800.0])
@pytest.mark.parametrize("threshold", [0.0, 1e-9, 0.4, 30.0, 400.0])
def test_chances_add_up_and_mirror(difference, threshold):
    law, other = probabilities(difference, threshold), probabilities(-difference, threshold)
    assert sum(law.values()) == pytest.approx(1)
    assert (law["first"], law["tie"]) == pytest.approx((other["second"], other["tie"]))


def test_draws_follow_the_law_at_every_temperature():
    law = {"first": 0.5, "second": 0.1, "tie": 0.4}
    grid = (np.arange(1000) + 0.5) / 1000
    for temperature, wanted in ((1.0, (0.5, 0.1, 0.4)), (0.5, (25 / 42, 1 / 42, 16 / 42))):
        drawn = [draw(law, u, temperature) for u in grid]
        assert [drawn.count(a) / 1000 for a in ANSWERS] == pytest.approx(wanted, abs=2e-3)
    assert draw(law, 0.999, 0) == "first" == draw(law, 0.999, 1e-3)
    assert draw({"first": 0.45, "second": 0.45, "tie": 0.1}, 0.1, 0) == "tie"


def test_outputs_make_dimensions_as_the_config_says():
    config = settings("x", outputs={"motion": {"MQ": 1}, "overall": {"VQ": 1, "MQ": 1}}).scoring
    mix = make_mix(DIMENSIONS, ("VQ", "MQ"), config, mean=(1.0, 2.0), std=(2.0, 4.0))
    raw = np.array([5.0, 4.0])
    assert mix.scores(raw).tolist() == [0.5, 2.5]  # (4 − 2)/4, and with (5 − 1)/2
    # one output votes by its raw difference, for which the law was fitted; a sum by z times the mean std, 3
    difference = mix.logits_DO @ (raw - np.array([3.0, 2.0]))
    assert difference.tolist() == pytest.approx([2.0, 3 * (1 + 0.5)])
    with pytest.raises(ValueError, match=r"judge\.scorer\.outputs\.motion: the head has no output 'MQ'"):
        make_mix(DIMENSIONS, ("VQ",), config)
    with pytest.raises(ValueError, match=r"which outputs it is made of"):
        make_mix(DIMENSIONS, ("VQ",), settings("x").scoring)


def test_a_saved_scorer_loads_with_the_same_scores(plain, scored, tmp_path):
    one = LinearScorer(settings(scored))
    assert one.thresholds == pytest.approx([0.5, 2.0])
    assert one.head == HeadFile(outputs=DIMENSIONS, instructions=WORDS)
    raw = one.raw(question().first, question())
    assert np.abs(raw).min() > 0
    save_scorer(one.head, one.model, one.processor, tmp_path / "again")
    again = LinearScorer(settings(tmp_path / "again"))
    assert again.raw(question().first, question()).tolist() == raw.tolist()
    for name in ("reward_head.json", "reward_head.safetensors", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (scored / name).read_bytes()


def test_the_head_reads_the_last_hidden_state(scored):
    scorer = LinearScorer(settings(scored))
    prompt = scorer.encoder.clip(question().first, question(), WORDS)
    with torch.inference_mode():
        batch = scorer.encoder.collate([prompt])
        hidden = scorer.model.backbone(**batch, output_hidden_states=True).hidden_states[-1][0, -1]
        wanted = scorer.model.weight @ hidden
    assert scorer.raw(question().first, question()) == pytest.approx(wanted.numpy(), abs=1e-5)


def test_a_padded_batch_scores_as_single_clips(scored):
    scorer = LinearScorer(settings(scored))
    long = Question("q1", "known", "a b c d e f g", BlockReader("green"), BlockReader("blue"), DIMENSIONS)
    prompts = [scorer.encoder.clip(q.first, q, WORDS) for q in (question(), long)]
    assert len(prompts[0].ids) != len(prompts[1].ids)
    with torch.inference_mode():
        together = scorer.model(scorer.encoder.batch(prompts))
    for row, q in zip(together, (question(), long), strict=True):
        assert scorer.raw(q.first, q) == pytest.approx(row.numpy(), abs=2e-5)


def test_votes_estimate_the_law_and_orders_do_not_matter(scored):
    judge = load_judge(settings(scored))
    assert isinstance(judge, ScorerJudge)
    votes = judge.vote(make_asks(question(), 500))
    verdict = fold(question(), votes)
    raw = [judge.scorer.raw(reader, question()) for reader in (question().first, question().second)]
    for index, dimension in enumerate(DIMENSIONS):
        law = probabilities(raw[0][index] - raw[1][index], [0.5, 2.0][index])
        found = verdict.dimensions[dimension]
        assert (found.p_first, found.p_second) == pytest.approx((law["first"], law["second"]), abs=0.04)
        assert found.p_tie == pytest.approx(law["tie"], abs=0.04)
    mirrored = Question("q0", "take_take", question().prompt, question().second, question().first, DIMENSIONS)
    shares = fold(mirrored, judge.vote(make_asks(mirrored, 500))).dimensions["overall"]
    assert shares.p_second == pytest.approx(verdict.dimensions["overall"].p_first, abs=0.05)


def test_a_vote_depends_on_its_ask_alone_and_says_the_scores(scored):
    asks = make_asks(question(), 3)
    one = load_judge(settings(scored)).vote(asks)
    other = load_judge(settings(scored)).vote(asks[::-1])[::-1]
    assert one == other
    scorer = LinearScorer(settings(scored))
    first, second = (scorer.raw(r, question()) for r in (question().first, question().second))
    assert one[0].reasoning.startswith(f"first: motion {first[0]:.2f}, overall {first[1]:.2f}; second: ")
    assert one[1].reasoning.startswith(f"first: motion {second[0]:.2f}, overall {second[1]:.2f}; second: ")
    assert "first/second/tie: motion 0." in one[0].reasoning


def test_at_temperature_zero_all_votes_are_the_likeliest_answer(scored):
    greedy = settings(scored).model_copy(update={"temperature": 0.0})
    verdict = fold(question(), load_judge(greedy).vote(make_asks(question(), 3))).dimensions["motion"]
    assert max(verdict.p_first, verdict.p_second, verdict.p_tie) == 1 and verdict.flip_rate == 0


def test_a_clip_is_scored_once_for_each_prompt(scored, monkeypatch):
    judge = load_judge(settings(scored))
    seen = []
    raw = judge.scorer.raw
    monkeypatch.setattr(judge.scorer, "raw", lambda reader, q: seen.append(reader.key) or raw(reader, q))
    votes = judge.vote(make_asks(question(), 4))
    told = json.loads(votes[0].shown)
    assert told["num_frames"][0] == len(told["times"][0]) > 0 and len(told["size"]) == 2
    judge.vote(make_asks(question("q1", ("red", "green")), 2))
    assert len(seen) == len(set(seen)) == 3


def test_a_new_head_knows_nothing(plain):
    judge = load_judge(settings(plain, new_head=True))
    assert judge.scorer.raw(question().first, question()).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"judge\.scorer\.new_head"):
        load_judge(settings(plain))


def test_a_fixed_threshold_comes_before_the_heads(scored):
    assert LinearScorer(settings(scored, tie_threshold=0.0)).thresholds.tolist() == [0, 0]


def test_identity_follows_head_and_settings(scored, plain):
    base = load_judge(settings(scored)).identity()
    assert load_judge(settings(scored)).identity() == base
    assert load_judge(settings(scored, tie_threshold=1.0)).identity() != base
    assert load_judge(settings(plain, new_head=True)).identity() != base


def edited(folder, out, name, change):
    """A copy of the scorer's folder with one file changed."""
    out.mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        (out / file.name).write_bytes(change(content.decode()).encode() if file.name == name else content)
    return out


def test_models_that_cannot_score_are_user_errors(scored, tmp_path):
    def head(**changes):
        return lambda text: json.dumps({**json.loads(text), **changes})

    for name, file, change, message in (
        ("blind", "chat_template.jinja", lambda t: t.replace("<|image_pad|>", ""), "shows 0 of 4 images"),
        ("short", "config.json", lambda t: t.replace(": 1024", ": 16"), r"lower judge\.num_frames"),
        ("key", "reward_head.json", head(dimension=1), "reward_head.json: dimension: Extra"),
        ("twice", "reward_head.json", head(outputs=["motion", "motion"]), "name each once"),
        ("narrow", "reward_head.json", head(outputs=["motion"]), "the head belongs to another model"),
        ("tokens", "reward_head.json", head(tokens=["<a>", "<b>"]), "instructions must hold <a> once"),
        ("text", "config.json", lambda _: TEXT_MODEL, "as a vision-language model"),
    ):
        folder = edited(scored, tmp_path / name, file, change)
        with pytest.raises(ValueError, match=message):
            load_judge(settings(folder)).vote(make_asks(question(), 1))
    token = edited(
        scored,
        tmp_path / "unknown",
        "reward_head.json",
        head(tokens=["<a>", "<b>"], instructions="rate {prompt} <a> <b>"),
    )
    with pytest.raises(ValueError, match="has no token <a>"):
        load_judge(settings(token))
    (token / "reward_head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no reward_head\.safetensors"):
        load_judge(settings(token))


TEXT_MODEL = json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})


def test_special_tokens_of_a_head_are_read_where_they_stand(scored, tmp_path):
    """Two plain words stand in for reward tokens; a caption cannot say them."""
    folder = edited(
        scored,
        tmp_path / "special",
        "reward_head.json",
        lambda text: json.dumps(
            {
                **json.loads(text),
                "tokens": ["steady", "frozen"],
                "instructions": "rate {prompt} steady a frozen",
            }
        ),
    )
    scorer = LinearScorer(settings(folder))
    hostile = Question(
        "q", "known", "a frozen box steady", BlockReader("red"), BlockReader("blue"), DIMENSIONS
    )
    for q in (question(), hostile):
        prompt = scorer.encoder.clip(q.first, q, scorer.head.instructions)
        ids = [scorer.processor.tokenizer.convert_tokens_to_ids(t) for t in ("steady", "frozen")]
        assert [prompt.ids.count(i) for i in ids] == [1, 1]
        with torch.inference_mode():
            batch = scorer.encoder.collate([prompt])
            hidden = scorer.model.backbone(**batch, output_hidden_states=True).hidden_states[-1][0]
            wanted = [scorer.model.weight[k] @ hidden[prompt.ids.index(i)] for k, i in enumerate(ids)]
        assert scorer.raw(q.first, q) == pytest.approx([w.item() for w in wanted], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "transformers"}, r"judge\.scorer is for type scorer"),
        ({"scorer": {"instructions": "rate it"}}, r"lacks \{prompt\}"),
        ({"scorer": {"checklist": "example"}}, "belong together"),
        ({"scorer": {"outputs": {"beauty": {"VQ": 1}}}}, r"not in judge\.dimensions"),
        ({"scorer": {"outputs": {"motion": {}}}}, "needs an output"),
        ({"model": None, "scorer": None}, r"judge\.type is scorer: set judge\.model"),
    ],
)
def test_settings_that_contradict_themselves_are_user_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**{"type": "scorer", "model": "m", "scorer": {"new_head": True}, **changes})


def test_identities_of_other_judges_are_as_before(plain):
    """The settings in an identity are those of a judge from before there were scorers."""
    config = JudgeConfig(model=str(plain))
    old = config.model_dump(mode="json", exclude={"batch_size", "server", "answers", "model", "scorer"})
    digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode())
    for path in sorted(plain.iterdir()):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    assert load_judge(config).identity() == digest.hexdigest()


@pytest.mark.parametrize("name", ["videoreward", "checklist"])
def test_the_shipped_presets_load_and_name_what_they_need(name, monkeypatch):
    monkeypatch.chdir(Path(configs.__file__).parent.parent)
    found = load_config(f"configs/judges/{name}.yaml").config
    assert found.judge.type == "scorer"
    if name == "videoreward":
        head = HeadFile(outputs=("VQ", "MQ", "TA"))
        mix = make_mix(found.judge.dimensions, head.outputs, found.judge.scoring)
        assert mix.weights_DO.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 1]]
        with pytest.raises(UserError, match=r"no folder '\./models/videoreward'"):
            check_models(found)
    else:
        check_models(found)
        assert probabilities(0.0, found.judge.scoring.tie_threshold)["tie"] == pytest.approx(0.2, abs=0.01)
