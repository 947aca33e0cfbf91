"""The generator on a tiny real Wan pipeline: sampling, the one road, adapters, the update and its resume."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from generator.averages import MovingReference, RunningAverage
from generator.clips import read_clip
from generator.condition import Condition
from generator.config import GeneratorConfig, LoraConfig, SamplingConfig, UpdateConfig
from generator.data import AnchorData, PairData
from generator.draws import Draw
from generator.models.base import LORA_FILE, load_model
from generator.reference_errors import ReferenceErrors
from generator.road import read_latents, store_latents, store_real, to_frames, to_tensor
from generator.sampling import noise_for, sample
from generator.step import pair_errors
from generator.train import near_best, update
from tests.tiny_wan import make_tiny_wan

SHAPE = (4, 5, 4, 4)
PROMPTS = ["a red ring moves left", "a blue square moves up"]
LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_not_safetensors_are_refused(folder, tmp_path, part):
    shutil.copytree(folder, tmp_path / "wan")
    weights = next((tmp_path / "wan" / part).glob("*.safetensors"))
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(load_file(weights), weights.with_name(name))
    weights.unlink()
    with pytest.raises(ValueError, match=r"generator\.model: cannot load .* with safetensors"):
        load_model(GeneratorConfig(model=str(tmp_path / "wan")))


@pytest.fixture
def config(folder) -> GeneratorConfig:
    return GeneratorConfig(model=folder, max_text_tokens=8)


def make_pairs(model, num=6, seed=0) -> PairData:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.ones(num, SHAPE[1], dtype=torch.int8)
    signs[:, 2] = 0
    return PairData(
        ids=[f"pair-{i}" for i in range(num)],
        prompt_ids=[f"prompt-{i // 2}" for i in range(num)],
        winners=torch.randn(num, *SHAPE, generator=generator),
        losers=torch.randn(num, *SHAPE, generator=generator),
        conditions=model.encode_prompts([PROMPTS[i % 2] for i in range(num)]),
        signs=signs,
        weights=torch.linspace(0.5, 1.0, num),
    )


def moving_square(num_frames=17) -> np.ndarray:
    frames = np.full((num_frames, 32, 32, 3), 20, np.uint8)
    for t in range(num_frames):
        frames[t, 10:20, t : t + 10] = (200, 60, 40)
    return frames


def test_sampling_equals_the_pipeline(config):
    model = load_model(config)
    shape = model.latent_shape(17, 32, 32)
    assert shape == SHAPE
    noise = noise_for([3, 4], shape)
    for guidance in (1.0, 3.0):
        ours = sample(
            model,
            model.encode_prompts(PROMPTS),
            noise,
            SamplingConfig(num_steps=4, guidance_scale=guidance),
            negative=model.encode_prompts([""]),
        )
        theirs = model.pipe(
            prompt=PROMPTS,
            negative_prompt="",
            height=32,
            width=32,
            num_frames=17,
            num_inference_steps=4,
            guidance_scale=guidance,
            latents=noise.clone(),
            max_sequence_length=8,
            output_type="latent",
        ).frames
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_batch_size_changes_no_clip(config):
    model = load_model(config)
    noise, condition = noise_for(range(4), SHAPE), model.encode_prompts(PROMPTS * 2)
    one = sample(model, condition, noise, SamplingConfig(num_steps=3, batch_size=1))
    four = sample(model, condition, noise, SamplingConfig(num_steps=3, batch_size=4))
    torch.testing.assert_close(one, four, rtol=0, atol=2e-5)


def test_guided_sampling_starts_exactly_at_eta(config):
    model = load_model(config)
    noise, anchors = noise_for([1, 2], SHAPE), torch.randn(2, *SHAPE)
    condition, settings = model.encode_prompts(PROMPTS), SamplingConfig(num_steps=8)

    def guided(eta):
        return sample(model, condition, noise, settings, anchors=anchors, eta=eta)

    seen = []
    forward = model.forward
    model.forward = lambda transformer, x, sigma, c: (
        seen.append((x.clone(), sigma[0].item())) or forward(transformer, x, sigma, c)
    )
    guided(0.7)
    assert seen[0][1] == pytest.approx(0.7, abs=1e-7)
    torch.testing.assert_close(seen[0][0], 0.3 * anchors + 0.7 * noise, rtol=0, atol=1e-6)
    assert all(a > b for (_, a), (_, b) in itertools.pairwise(seen))
    model.forward = forward
    torch.testing.assert_close(guided(1e-4), anchors, rtol=0, atol=2e-3)
    # the schedule starts at σ = 1, so η = 1 is a fresh take of the same noise
    torch.testing.assert_close(guided(1.0), sample(model, condition, noise, settings), rtol=0, atol=1e-5)
    closeness = [
        torch.corrcoef(torch.stack([guided(e).flatten(), anchors.flatten()]))[0, 1].item()
        for e in (0.1, 0.4, 0.7, 0.95)
    ]
    assert closeness == sorted(closeness, reverse=True)
    for eta in (0.0, 1.2):
        with pytest.raises(ValueError, match="eta"):
            guided(eta)


def test_one_road_for_real_and_generated(config, tmp_path):
    model = load_model(config)
    frames = moving_square()
    store_real(model, frames, tmp_path / "anchor.mp4", 8)
    stub_sampler_output = model.encode(to_tensor(frames))[0]
    store_latents(model, stub_sampler_output, tmp_path / "take.mp4", 8)
    assert (tmp_path / "anchor.mp4").read_bytes() == (tmp_path / "take.mp4").read_bytes()
    assert torch.equal(
        read_latents(model, tmp_path / "anchor.mp4"), read_latents(model, tmp_path / "take.mp4")
    )
    stored, fps = read_clip(tmp_path / "anchor.mp4")
    assert fps == 8
    assert torch.equal(read_latents(model, tmp_path / "anchor.mp4"), model.encode(to_tensor(stored))[0])
    assert np.array_equal(to_frames(to_tensor(frames)), frames)


def test_latent_frames_know_their_segments(config):
    model = load_model(config)
    assert model.latent_segments(17, 4) == [0, 0, 1, 2, 3]
    assert model.latent_segments(17, 8) == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="4k\\+1 frames, such as 13 or 17"):
        model.latent_shape(16, 32, 32)
    with pytest.raises(ValueError, match="multiples of 16"):
        model.latent_shape(17, 24, 32)


@pytest.mark.parametrize("lora", [None, LORA])
def test_first_loss_is_ln_2_in_every_round_and_training_lowers_it(config, tmp_path, lora):
    parent = None
    for round_number in (1, 2):
        model, rows = load_model(config), []
        settings = UpdateConfig(
            lora=lora,
            beta=100.0,
            learning_rate=1e-2 if lora else 2e-3,
            num_steps=25,
            pairs_per_step=8,
            held_out_share=0,
        )
        out = tmp_path / f"{round_number}"
        out.mkdir()
        pairs = make_pairs(model, num=2)
        update(model, pairs, None, settings, parent=parent, out=out, seed=round_number, on_step=rows.append)
        assert rows[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert np.mean([r["preference_loss"] for r in rows[-5:]]) < math.log(2) - 0.02
        assert np.mean([r["margin"] for r in rows[-5:]]) > 0
        parent = out / "checkpoint"


@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpoint_loads_in_plain_diffusers(config, folder, tmp_path, lora):
    from diffusers import WanPipeline, WanTransformer3DModel

    model = load_model(config)
    settings = UpdateConfig(lora=lora, learning_rate=1e-2, num_steps=3, pairs_per_step=2)
    update(
        model, make_pairs(model), None, settings, parent=None, out=tmp_path, seed=0, on_step=lambda row: None
    )
    checkpoint = tmp_path / "checkpoint"
    noise, condition = noise_for([0], SHAPE), model.encode_prompts(PROMPTS[:1])
    want = sample(load_model(config, checkpoint), condition, noise, SamplingConfig(num_steps=3))
    plain = WanPipeline.from_pretrained(folder)
    plain.set_progress_bar_config(disable=True)
    if lora:
        plain.load_lora_weights(str(checkpoint))
        assert plain.transformer.peft_config["default_0"].lora_alpha == lora.alpha
    else:
        plain.transformer = WanTransformer3DModel.from_pretrained(checkpoint / "transformer")
    got = plain(
        prompt=PROMPTS[0], height=32, width=32, num_frames=17, num_inference_steps=3, guidance_scale=1.0,
        latents=noise.clone(), max_sequence_length=8, output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(want, got, rtol=0, atol=2e-5)
    base = sample(load_model(config), condition, noise, SamplingConfig(num_steps=3))
    assert (want - base).abs().max() > 1e-3


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("lora", "average", "reference"),
    [
        (None, 0.0, "parent"),
        (None, 0.9, "parent"),
        (LORA, 0.9, "parent"),
        (None, 0.0, "ema"),
        (LORA, 0.0, "ema"),
    ],
)
def test_resume_is_bit_identical(config, tmp_path, lora, average, reference):
    """float32, one machine: a run that dies after any step ends in the same bytes as one that does not."""
    settings = UpdateConfig(
        lora=lora, learning_rate=1e-3, num_steps=7, pairs_per_step=2, held_out_share=0.34, evaluate_every=2,
        checkpoint_every=3, winner_likelihood=0.5, real_likelihood=0.5, anchors_per_step=2, reduction="frame",
        average=average, reference=reference, ema_decay=0.5, ema_every=2,
    )  # fmt: skip

    began_at: list[int] = []

    def run(out: Path, die_at: int | None = None, stopping=lambda: False) -> None:
        model = load_model(config)
        steps: list[int] = []
        anchors = AnchorData(
            torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1)),
            make_pairs(model).conditions.rows(range(5)),
        )

        def on_step(row):
            if not steps:
                began_at.append(row["step"])
            steps.append(row["step"])
            if row["step"] == die_at:
                raise Killed

        update(
            model, make_pairs(model), anchors, settings, parent=None, out=out, seed=5, on_step=on_step,
            stopping=lambda: stopping() and steps[-1] == 1,
        )  # fmt: skip

    def content(out: Path) -> dict[str, bytes]:
        return {
            str(p.relative_to(out)): p.read_bytes()
            for p in sorted(out.rglob("*"))
            if p.is_file() and "_scratch" not in p.parts
        }

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    run(whole)
    with pytest.raises(Killed):
        run(broken, 1)
    with pytest.raises(InterruptedError, match="stopped after step 1, which is saved"):
        run(broken, stopping=lambda: True)
    for die_at in (4, 6):
        with pytest.raises(Killed):
            run(broken, die_at)
    run(broken)
    assert began_at == [0, 0, 0, 2, 3, 6]  # steps 2 and 5 are due to be saved, and 1 was by the stop
    assert content(whole) == content(broken)
    assert any(LORA_FILE in n or "transformer" in n for n in content(whole))


def test_bad_pairs_and_numbers_are_named(config, tmp_path):
    model = load_model(config)
    pairs = make_pairs(model)
    with pytest.raises(ValueError, match="no preference pairs"):
        PairData(
            [],
            [],
            pairs.winners[:0],
            pairs.losers[:0],
            pairs.conditions,
            pairs.signs[:0],
            pairs.weights[:0],
        )
    with pytest.raises(ValueError, match="tie"):
        PairData(
            pairs.ids,
            pairs.prompt_ids,
            pairs.winners,
            pairs.losers,
            pairs.conditions,
            pairs.signs * 0,
            pairs.weights,
        )
    with pytest.raises(ValueError, match="differ"):
        PairData(
            pairs.ids,
            pairs.prompt_ids,
            pairs.winners,
            pairs.losers[:, :, :3],
            pairs.conditions,
            pairs.signs,
            pairs.weights,
        )
    with pytest.raises(ValueError, match="to_nothing"):
        bad = UpdateConfig(lora=LoraConfig(target_modules=("to_nothing",)))
        update(model, pairs, None, bad, parent=None, out=tmp_path, seed=0, on_step=lambda row: None)
    pairs.winners[0] = float("nan")
    with pytest.raises(FloatingPointError, match="pair-0"):
        settings = UpdateConfig(num_steps=3, pairs_per_step=6, held_out_share=0)
        update(
            load_model(config),
            pairs,
            None,
            settings,
            parent=None,
            out=tmp_path,
            seed=0,
            on_step=lambda row: None,
        )


def test_the_checkpoint_is_chosen_on_held_out_prompts(config, tmp_path):
    model = load_model(config)
    settings = UpdateConfig(
        learning_rate=3e-3, num_steps=12, pairs_per_step=2, held_out_share=0.34, evaluate_every=3, beta=50.0
    )
    rows: list[dict] = []
    chosen = update(
        model, make_pairs(model), None, settings, parent=None, out=tmp_path, seed=1, on_step=rows.append
    )
    held = [r for r in rows if r["split"] == "held_out"]
    assert [r["step"] for r in held] == [2, 5, 8, 11]
    best = max(r["implicit_accuracy"] for r in held)
    num_held = 2  # one prompt of three, with both of its pairs
    near = [r["step"] for r in held if near_best(r["implicit_accuracy"], best, num_held)]
    assert chosen["chosen_step"] == near[-1]
    # without a preference term there is nothing to choose by: the last step is kept
    control = settings.model_copy(update={"preference_weight": 0.0, "winner_likelihood": 1.0})
    out = tmp_path / "control"
    out.mkdir()
    model = load_model(config)
    chosen = update(
        model, make_pairs(model), None, control, parent=None, out=out, seed=1, on_step=lambda row: None
    )
    assert chosen == {"chosen_step": 11}


def test_the_last_step_near_the_best_is_kept(config, tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.85, 0.1])  # two pairs are held out: √(.9 · .1 / 2) = .21
    monkeypatch.setattr(
        "generator.train._held_out",
        lambda *_: {"loss": 1.0, "margin": 0.0, "implicit_accuracy": next(accuracies)},
    )
    settings = UpdateConfig(num_steps=8, pairs_per_step=2, held_out_share=0.34, evaluate_every=2)
    model = load_model(config)
    chosen = update(
        model, make_pairs(model), None, settings, parent=None, out=tmp_path, seed=1, on_step=lambda row: None
    )
    assert chosen["chosen_step"] == 5 and chosen["chosen_implicit_accuracy"] == 0.85


def test_a_step_is_as_good_as_the_best_within_one_standard_error():
    # by hand: √(.8 · .2 / 16) = .1
    assert near_best(0.71, 0.8, 16) and not near_best(0.69, 0.8, 16)
    assert near_best(1.0, 1.0, 3) and not near_best(0.99, 1.0, 3)


def test_the_rate_falls_to_zero_unless_told_otherwise():
    from generator.train import _rate

    falling = UpdateConfig(num_steps=100, warmup_steps=10)
    assert _rate(falling, 0) == pytest.approx(0.1) and _rate(falling, 50) == pytest.approx(0.5)
    assert _rate(falling, 99) == pytest.approx(0.01)
    assert _rate(falling.model_copy(update={"schedule": "constant"}), 99) == 1.0


def test_the_average_is_that_of_the_weights_and_leaves_training_alone(config, tmp_path):
    weight = torch.nn.Parameter(torch.zeros(3))
    average = RunningAverage([weight], 0.5)
    for step, value in enumerate([1.0, 1.0]):
        with torch.no_grad():
            weight.fill_(value)
        average.update(step)
    # decays 1/10 and 2/11: 0.9, then 0.9·2/11 + 9/11
    assert average.shadow[0][0].item() == pytest.approx(0.9 * 2 / 11 + 9 / 11)
    before = average.swap()
    assert weight[0].item() == pytest.approx(average.shadow[0][0].item())
    average.swap(before)
    assert weight[0].item() == 1.0

    losses, kept = [], []
    for name, decay in (("off", 0.0), ("on", 0.9)):
        rows: list[dict] = []
        out = tmp_path / name
        out.mkdir()
        settings = UpdateConfig(
            average=decay,
            learning_rate=1e-3,
            num_steps=6,
            pairs_per_step=2,
            held_out_share=0.34,
            evaluate_every=2,
        )
        model = load_model(config)
        update(model, make_pairs(model), None, settings, parent=None, out=out, seed=1, on_step=rows.append)
        losses.append([r["loss"] for r in rows if r["split"] == "train"])
        kept.append([r["loss"] for r in rows if r["split"] == "held_out"])
    assert losses[0] == losses[1]
    assert kept[0] != kept[1]  # what is compared on held-out pairs is the average


def test_the_average_is_what_is_kept(config, tmp_path):
    def travelled(decay: float) -> float:
        out = tmp_path / str(decay)
        out.mkdir()
        settings = UpdateConfig(
            average=decay,
            learning_rate=1e-3,
            schedule="constant",  # a falling rate would hardly move at the end, and its average hardly lag
            num_steps=12,
            pairs_per_step=2,
            held_out_share=0,
        )
        model = load_model(config)
        update(
            model, make_pairs(model), None, settings, parent=None, out=out, seed=1, on_step=lambda row: None
        )
        kept = load_model(config, out / "checkpoint").transformer.parameters()
        pairs = zip(kept, load_model(config).transformer.parameters(), strict=True)
        return sum((a - b).pow(2).sum().item() for a, b in pairs)

    # an average over the way lies behind its end
    assert 0 < travelled(0.9) < 0.9 * travelled(0.0)


def test_a_later_round_takes_smaller_steps():
    settings = UpdateConfig(learning_rate=1e-3, round_decay=0.5, beta=7)
    assert [settings.in_round(k).learning_rate for k in (1, 2, 3)] == [1e-3, 5e-4, 2.5e-4]
    assert settings.in_round(3).beta == 7


def test_supervised_rounds_come_before_preferences():
    settings = UpdateConfig(supervised_rounds=2)
    assert [settings.in_round(k).needs_pairs for k in (1, 2, 3)] == [False, False, True]
    assert [settings.in_round(k).real_weight for k in (1, 2, 3)] == [1, 1, 0]
    assert UpdateConfig(method="supervised").in_round(3).method == "supervised"


@pytest.mark.parametrize(
    ("terms", "needed"),
    [
        ({}, True),
        ({"preference_weight": 0, "winner_likelihood": 1}, True),
        ({"preference_weight": 0, "real_likelihood": 1}, False),
        ({"method": "supervised"}, False),
    ],
)
def test_terms_on_real_clips_alone_need_no_pairs(terms, needed):
    assert UpdateConfig(**terms).needs_pairs == needed


def test_supervised_is_the_likelihood_term_alone(config, tmp_path):
    """The two control arms differ in nothing but the number of clips a step."""
    model = load_model(config)
    pairs = make_pairs(model)
    anchors = AnchorData(pairs.winners, pairs.conditions)
    saved = []
    for terms in ({"method": "supervised"}, {"preference_weight": 0, "real_likelihood": 1}):
        out = tmp_path / str(len(saved))
        out.mkdir()
        settings = UpdateConfig(**terms, learning_rate=1e-3, num_steps=3, anchors_per_step=2)
        update(
            load_model(config),
            None,
            anchors,
            settings,
            parent=None,
            out=out,
            seed=1,
            on_step=lambda row: None,
        )
        [weights] = (out / "checkpoint").rglob("*.safetensors")
        saved.append(weights.read_bytes())
    assert saved[0] == saved[1]


def test_one_winner_against_several_losers_is_the_sum_of_its_pairs(config):
    """RealDPO: one noise and t, and here the winner's forward once."""
    model = load_model(config)
    model.prepare_training(None, None, "parent", 0)
    pairs = make_pairs(model)
    pairs.winners[:] = pairs.winners[0].clone()
    pairs = replace(
        pairs, condition_rows=[0] * 6, winner_ids=["anchor"] * 3 + ["other"] * 3, prompt_ids=["prompt"] * 6
    )
    assert pairs.groups([0, 1, 2, 4], 2) == [[0, 1], [2], [4]]
    sizes = []
    forward = model.forward
    model.forward = lambda transformer, x, *rest: sizes.append(len(x)) or forward(transformer, x, *rest)

    def errors_of(groups):
        draws = [Draw(7, 0) for _ in groups]  # one noise and level for whatever is asked
        return pair_errors(model, pairs, groups, draws, UpdateConfig(), 3, ReferenceErrors(0, ()))

    together = errors_of([[0, 1, 2]])
    assert sizes == [4, 4]  # the reference's and the policy's
    apart = [errors_of([[i]]) for i in range(3)]
    for field in ("policy_winner", "policy_loser", "reference_winner", "reference_loser"):
        expected = torch.cat([getattr(e, field) for e in apart])
        torch.testing.assert_close(getattr(together, field), expected, atol=1e-6, rtol=1e-6)


def test_a_step_sums_over_the_losers_of_a_winner(config, tmp_path):
    def first_loss(losers: int, folder: str) -> float:
        model = load_model(config)
        pairs = replace(make_pairs(model), winner_ids=list("aaabbb"), prompt_ids=list("pppqqq"))
        settings = UpdateConfig(num_steps=1, pairs_per_step=2, losers_per_winner=losers, held_out_share=0)
        rows: list[dict] = []
        (tmp_path / folder).mkdir()
        update(model, pairs, None, settings, parent=None, out=tmp_path / folder, seed=1, on_step=rows.append)
        return rows[0]["loss"]

    # the policy is the reference: each pair gives ln 2
    assert first_loss(1, "one") == pytest.approx(math.log(2), abs=1e-6)
    assert first_loss(3, "three") == pytest.approx(3 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_follows_the_policy_slowly(config, tmp_path, lora):
    """ω = .75 every second step: by hand, reference = parent·.75 + policy·.25 after the second."""
    model = load_model(config)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    settings = UpdateConfig(
        lora=lora, reference="ema", ema_decay=0.75, ema_every=2, num_steps=3, pairs_per_step=2,
        learning_rate=1e-2, held_out_share=0,
    )  # fmt: skip

    def flat(parameters) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in parameters])

    def on_step(row):
        policy = model._adapter("policy") if lora else model.transformer.parameters()
        seen.append((flat(policy), flat(model.reference_parameters())))

    update(model, make_pairs(model), None, settings, parent=None, out=tmp_path, seed=1, on_step=on_step)
    (_, start), (policy, moved), (_, later) = seen
    assert not torch.equal(start, policy)
    torch.testing.assert_close(moved, 0.75 * start + 0.25 * policy)
    assert torch.equal(moved, later)


def test_a_reference_in_bfloat16_still_moves(config):
    """A step of a thousandth is below bfloat16's resolution; the float32 shadow adds such steps up."""
    model = load_model(config)
    parameters = model.prepare_training(None, None, "ema", 0)
    model._reference.to(torch.bfloat16)
    with torch.no_grad():
        for p in model.reference_parameters():
            p.fill_(1.0)  # where bfloat16's next number is 1.0078
    settings = UpdateConfig(reference="ema", ema_decay=0.999, ema_every=1)
    moving = MovingReference(model, parameters, settings)
    before = [p.clone() for p in moving.reference]
    with torch.no_grad():
        for p in parameters:
            p.fill_(2.0)
    for step in range(100):
        moving.update(step)
    # by hand: 1 − .999^100 = .0952 of the way
    change = torch.cat([(a - b).float().flatten() for a, b in zip(moving.reference, before, strict=True)])
    assert change.mean().item() == pytest.approx(1 - 0.999**100, rel=0.05)


def test_the_error_of_x0_is_that_of_the_velocity(config):
    model = load_model(config)
    model.prepare_training(None, None, "parent", 0)

    def errors_of(kind):
        settings = UpdateConfig(error=kind, sigma_range=(0.2, 1.0))
        draws = [Draw(0, 0), Draw(3, 0)]
        return pair_errors(model, make_pairs(model), [[0], [3]], draws, settings, 3, ReferenceErrors(0, ()))

    plain, clean = errors_of("prediction"), errors_of("x0")
    for field in ("policy_winner", "reference_loser"):
        torch.testing.assert_close(getattr(plain, field), getattr(clean, field), rtol=1e-4, atol=1e-6)


def test_a_condition_keeps_its_tensors_together():
    text, mask = torch.arange(6.0).view(3, 2), torch.tensor([1, 0, 1])
    condition = Condition({"text": text, "mask": mask})
    picked = condition.rows([2, 0, 2])
    assert len(picked) == 3 and picked["mask"].tolist() == [1, 1, 1]
    assert picked["text"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert len(Condition.cat([condition, picked])) == 6
    assert condition.rows([1]).repeat(4)["text"].shape == (4, 2)
    assert condition.get("first_frame") is None
    with pytest.raises(ValueError, match="one row a clip"):
        Condition({"text": text, "mask": mask[:2]})
    with pytest.raises(ValueError, match="different kinds"):
        Condition.cat([condition, Condition({"text": text})])
