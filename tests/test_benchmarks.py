"""The control arms are what they say: valid settings, and paired differences on equal prompts and seeds."""

import importlib
from pathlib import Path

import pytest
import torch

import loop.embedded as embedded
from benchmarks.arms import ARMS, SHARED, over_seeds, paired, share_start
from benchmarks.dpo_step import counted, flops, needed
from benchmarks.judge_ablation import ARMS as PARTS
from benchmarks.judge_ablation import NO_REASONING, DirectJudge, judges_of, share
from benchmarks.noise_levels import ratio_of, second_moments
from benchmarks.sampling import Arms
from generator.config import GeneratorConfig, SamplingConfig, UpdateConfig
from generator.models.base import load_model
from loop.config_file import load_config
from loop.models import resolve_model
from loop.store import Store
from reward.config import DIMENSIONS, JudgeConfig
from reward.encoding import Encoder
from reward.judge import JUDGES
from reward.voting import make_asks
from tests.reward_clips import question
from tests.test_generator import make_pairs
from tests.tiny_wan import make_tiny_wan


@pytest.mark.parametrize("file", ["configs/quickstart.yaml", "configs/few-clips.yaml"])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting(arm, file):
    ours = load_config(file, []).config
    control = load_config(file, ARMS[arm]).config
    assert control.update.num_steps == ours.update.num_steps  # equal updates
    assert control.update.learning_rate == ours.update.learning_rate
    assert (control.pair.control == "random_labels") == (arm == "random_labels")
    assert (control.update.method == "supervised") == (arm == "supervised")
    if arm == "supervised":  # as many clips a step
        clips = 2 * ours.update.pairs_per_step + ours.update.anchors_per_step
        assert control.update.anchors_per_step == clips
    trains_on_pairs = control.update.preference_weight > 0 and control.update.method == "preference"
    assert trains_on_pairs == (arm not in ("likelihood", "supervised"))


def test_an_arm_starts_with_what_ours_has_made(tmp_path):
    ours, arm = tmp_path / "ours-0", tmp_path / "random_labels-0"
    for name in SHARED:
        (ours / name).mkdir(parents=True)
        (ours / name / "file").write_text(name)
    (ours / "round-001" / "pair").mkdir()
    share_start(ours, arm)
    Store(arm).lock()  # it is a run, so the campaign takes it
    assert sorted(str(p.parent.relative_to(arm)) for p in arm.rglob("file")) == sorted(SHARED)
    assert not (arm / "round-001" / "pair").exists()
    share_start(ours, arm)  # a second time it is left alone
    share_start(tmp_path / "ours-1", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_differences_are_paired():
    one = {f"{p}-{s}": (p, 0.1 * i + 0.2) for i, p in enumerate("abcd") for s in range(3)}
    other = {name: (p, value - 0.2) for name, (p, value) in one.items()}
    found = paired(one, other)
    assert found.value == pytest.approx(0.2) and found.low == pytest.approx(0.2) and found.num == 12


def test_differences_over_seeds_draw_captions_not_cells():
    """Two captions, one a point better and one a point worse in every campaign: nothing is known."""
    one = {f"{p}-{s}": (p, 1.0 if p == "a" else 0.0) for p in "ab" for s in range(50)}
    other = {name: (p, 1.0 - value) for name, (p, value) in one.items()}
    found = over_seeds([(one, other)] * 3)
    assert found.value == 0 and (found.low, found.high) == (-1, 1) and found.num == 300


def test_operations_of_a_step_are_counted_as_by_hand(tmp_path):
    """10 products and 4 of attention a forward: a LoRA needs 10 + 8 backward, full weights 20 + 8."""
    assert needed("common", 10, 4, True, 3, 0.25) == 2 * (2 * 14 + 18)
    assert needed("common", 10, 4, False, 3, 0.25) == 2 * (2 * 14 + 28)
    assert needed("ours-n", 10, 4, True, 3, 0.25) == pytest.approx(4 / 3 * (1.25 * 14 + 18))
    model = load_model(GeneratorConfig(model=make_tiny_wan(tmp_path), max_text_tokens=8))
    model.prepare_training(None, None, "parent", 0)
    text = model.encode_prompts(["a red ring moves left"])
    shape = (model.transformer.config.in_channels, 5, 4, 4)
    products, attention = flops(model, shape, text, torch.float32)
    twice, attention_of_twice = flops(model, (shape[0], 5, 8, 4), text, torch.float32)
    # twice the tokens: products that read tokens double, self-attention takes four times as long
    assert 1.3 < twice / products <= 2 and 2 < attention_of_twice / attention < 4


def test_forwards_of_a_step_are_counted_as_by_hand():
    """A LoRA's backward counts one forward, that of full weights two; a quarter of the reference is paid."""
    assert counted("common", 1, 3, 0.25) == counted("realdpo", 1, 3, 0.25) == 2 * (1 + 1 + 1)
    assert counted("ours-1", 1, 3, 0.25) == pytest.approx(2 * 2.25)
    assert counted("ours-n", 1, 3, 0.25) / counted("realdpo", 1, 3, 0.25) == pytest.approx(0.5)
    assert counted("ours-1", 2, 3, 0.25) / counted("common", 2, 3, 0.25) == pytest.approx(0.8125)


@pytest.fixture(scope="module")
def model():
    folder = str(Path(embedded.__file__).parent / "tiny-wan")
    return load_model(GeneratorConfig(model=folder, max_text_tokens=8))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_samplers_that_are_timed_film_the_same_clips(model, guidance):
    config = SamplingConfig(num_steps=2, guidance_scale=guidance, batch_size=3)
    arms = Arms(model, ["a red circle moving left", "a blue square moving up"], 2, config)
    first, *others = [call() for call in arms.calls().values()]
    assert first.shape[0] == 4 and (first[0] - first[3]).abs().max() > 0.1
    for other in others:
        assert torch.allclose(first, other, atol=1e-4)


def test_what_importance_sampling_leaves_is_as_by_hand():
    assert ratio_of([4.0, 4.0]) == pytest.approx(1)
    assert ratio_of([0.0, 4.0]) == pytest.approx(0.5)  # draw only the second half: twice as good
    assert ratio_of([1.0, 9.0]) == pytest.approx(0.8)


def test_no_noise_level_teaches_from_a_tie_and_beta_scales_the_gradient(tmp_path):
    model = load_model(GeneratorConfig(model=make_tiny_wan(tmp_path / "wan"), max_text_tokens=8))
    parameters = model.prepare_training(None, None, "parent", 0)
    pairs = make_pairs(model, num=2)
    pairs.signs[1] = 0
    config = UpdateConfig(beta=2.0)
    plain = second_moments(model, parameters, pairs, [0], config, 2)
    stronger = second_moments(model, parameters, pairs, [0], config.model_copy(update={"beta": 4.0}), 2)
    assert min(plain) > 0
    assert second_moments(model, parameters, pairs, [1], config, 2) == [0, 0]
    # policy = reference: the slope of the logistic is ½, so the gradient is proportional to β
    assert [b / a for a, b in zip(plain, stronger, strict=True)] == pytest.approx([4, 4], rel=1e-3)


def test_a_direct_judge_is_kept_from_reasoning():
    settings = {"model": resolve_model("embedded:tiny-judge", "judge.model"), "instructions": "compare"}
    settings |= {"frame_size": 32, "time_stamps": False, "max_new_tokens": 24, "dtype": "float32"}
    judge = DirectJudge(JudgeConfig(**settings))
    asked = make_asks(question("q", dimensions=DIMENSIONS), 2)
    ids = judge.encoder.prompt(asked[0]).ids
    plain = Encoder.prompt(judge.encoder, asked[0]).ids
    opening = judge.encoder.decode(ids[len(plain) :]).replace(" ", "")  # its tokenizer knows words
    assert ids[: len(plain)] == plain and opening == NO_REASONING
    assert judge.encoder.reply_ids(NO_REASONING)[: len(ids) - len(plain)] == ids[len(plain) :]
    votes = judge.vote(asked)
    assert len(votes) == 4 and all(v.reasoning == "" for v in votes if v.answers)
    with judges_of(PARTS["direct"]):
        assert JUDGES["transformers"].endswith(":DirectJudge")
    assert JUDGES["transformers"].endswith(":TransformersJudge")


def test_every_part_of_the_judge_starts_from_what_came_before(tmp_path):
    names = list(PARTS)
    for name, part in PARTS.items():
        assert part.starts_with is None or names.index(part.starts_with) < names.index(name)
        load_config("quickstart", part.settings)
    source, folder = tmp_path / "one", tmp_path / "two"
    for name in ("round-000/prepare", "round-000/evaluate", "round-001/sample", "round-001/label"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_text(name)
    share(source, ("sample",), folder)
    found = sorted(str(p.parent.relative_to(folder)) for p in folder.rglob("file"))
    assert found == ["round-000/evaluate", "round-000/prepare", "round-001/sample"]


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parent.parent / "benchmarks").glob("[a-z]*.py")),
    ids=lambda file: file.stem,
)
def test_every_benchmark_finds_what_it_imports(file):
    assert importlib.import_module(f"benchmarks.{file.stem}").__doc__
