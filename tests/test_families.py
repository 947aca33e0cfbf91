"""Every model family on tiny pipelines of the real classes, against the pipelines' own numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from generator.condition import Condition
from generator.config import GeneratorConfig, LoraConfig, SamplingConfig, UpdateConfig
from generator.data import AnchorData, PairData
from generator.models.base import VideoModel, load_model
from generator.models.policy import LORA_FILE, LORA_FILES
from generator.sampling import noise_for, sample
from generator.train import update
from tests.tiny_families import (
    NUM_FRAMES,
    SIZE,
    VARIANTS,
    Variant,
    ask,
    first_frame,
    make_cogvideox,
    make_hunyuan,
    make_ltx,
    make_wan,
    starting_noise,
)

PROMPTS = ["a red ring moves left", "a blue square moves up"]
SEEDS = [3, 4]
LORA = LoraConfig(rank=4, alpha=8.0)
EVERY = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
FROM_TEXT = [v for v in VARIANTS.values() if not v.first_frame]
FROM_FRAME = [v for v in VARIANTS.values() if v.first_frame]
TRAINED = [v for v in VARIANTS.values() if v.name not in ("wan", "wan-unipc", "wan-2.2-5b")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where a variant's pipeline lies; built at the first call."""
    built: dict[str, str] = {}

    def of(variant: Variant) -> str:
        if variant.name not in built:
            folder = tmp_path_factory.mktemp(variant.name)
            variant.build(folder)
            built[variant.name] = str(folder)
        return built[variant.name]

    return of


@pytest.fixture(scope="module")
def models(folders):
    """A variant's model, the same for all tests that leave its weights alone."""
    loaded: dict[str, VideoModel] = {}

    def of(variant: Variant) -> VideoModel:
        if variant.name not in loaded:
            loaded[variant.name] = load_model(variant.config_of(folders(variant)))
        return loaded[variant.name]

    return of


def conditions_of(model: VideoModel, variant: Variant, prompts: list[str] = PROMPTS) -> Condition:
    condition = model.encode_prompts(prompts)
    if not variant.first_frame:
        return condition
    frame = first_frame()[0].expand(len(prompts), -1, -1, -1)
    return model.with_first_frame(condition, frame, NUM_FRAMES)


def film(model: VideoModel, variant: Variant, guidance: float = 1.0, num_steps: int = 4, **more):
    return sample(
        model,
        conditions_of(model, variant),
        starting_noise(model, variant, SEEDS),
        SamplingConfig(num_steps=num_steps, guidance_scale=guidance),
        negative=model.encode_prompts([""]),
        seeds=SEEDS,
        **more,
    )


# Against the pipeline -----------------------------------------------------------------------


@EVERY
def test_sampling_equals_the_pipeline(models, variant):
    model = models(variant)
    ours = {}
    for guidance in (1.0, 3.0):
        ours[guidance] = film(model, variant, guidance)
        theirs = ask(model.pipe, model, variant, PROMPTS, SEEDS, guidance, num_inference_steps=4)
        torch.testing.assert_close(ours[guidance], theirs, rtol=0, atol=2e-5)
    assert (ours[1.0] - ours[3.0]).abs().max() > 1e-3  # so that the prompt and its guidance are seen
    assert (ours[1.0][0] - ours[1.0][1]).abs().max() > 1e-2


@pytest.mark.parametrize("num_steps", [3, 7])
@pytest.mark.parametrize("name", ["wan-unipc", "cogvideox-ddim", "cogvideox-dpm", "ltx", "hunyuan"])
def test_any_number_of_steps_equals_the_pipeline(models, name, num_steps):
    """7 divides no 1000 timesteps: CogVideoX's schedulers then step past the next timestep of their list."""
    variant, model = VARIANTS[name], models(VARIANTS[name])
    theirs = ask(model.pipe, model, variant, PROMPTS, SEEDS, 1.0, num_inference_steps=num_steps)
    torch.testing.assert_close(film(model, variant, num_steps=num_steps), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["wan", "wan-2.1-i2v", "cogvideox-ddim", "ltx", "ltx-i2v", "hunyuan"])
def test_decoding_equals_the_pipeline(models, name):
    variant, model = VARIANTS[name], models(VARIANTS[name])
    theirs = ask(model.pipe, model, variant, PROMPTS, SEEDS, 1.0, num_inference_steps=2, output_type="pt")
    ours = model.decode(film(model, variant, num_steps=2))
    assert ours.shape == (2, 3, NUM_FRAMES, SIZE, SIZE)
    torch.testing.assert_close((ours + 1) / 2, theirs, rtol=0, atol=2e-5)


@EVERY
def test_encode_and_decode_are_inverse_but_for_the_autoencoder(models, variant):
    model = models(variant)
    video = torch.rand(2, 3, NUM_FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode(video)
    assert latents.shape == (2, *model.latent_shape(NUM_FRAMES, SIZE, SIZE))
    assert torch.equal(latents, model.encode(video))
    raw = model.pipe.vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(model.denormalise(latents), raw, rtol=0, atol=1e-5)
    back = model.pipe.vae.decode(raw).sample.clamp(-1, 1)
    torch.testing.assert_close(model.decode(latents), back, rtol=0, atol=2e-5)
    torch.testing.assert_close(model.encode(video[1:]), latents[1:], rtol=0, atol=1e-5)


def test_normalised_latents_by_hand(models):
    z = torch.ones(1, 4, 1, 1, 1)
    wan, cog, hunyuan = (models(VARIANTS[n]) for n in ("wan", "cogvideox-ddim", "hunyuan"))
    assert wan.normalise(z)[0, 0].item() == pytest.approx((1 - 0.1) / 0.5)
    assert cog.normalise(z)[0, 0].item() == pytest.approx(1.15258426)
    assert hunyuan.normalise(z)[0, 0].item() == pytest.approx(0.476986)
    ltx = models(VARIANTS["ltx"])
    assert ltx.normalise(torch.ones(1, 8, 1, 1, 1))[0, 0].item() == pytest.approx((1 + 0.2) * 0.8 / 0.5)


def test_a_decoder_that_denoises_is_told_so(tmp_path):
    """LTX-Video from 0.9.1 on."""
    make_ltx(tmp_path, timestep_conditioning=True)
    variant = VARIANTS["ltx"]
    model = load_model(variant.config_of(str(tmp_path)))
    theirs = ask(model.pipe, model, variant, PROMPTS, SEEDS, 1.0, num_inference_steps=2, output_type="pt")
    ours = (model.decode(film(model, variant, num_steps=2)) + 1) / 2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


# Guided starts ------------------------------------------------------------------------------


@EVERY
def test_guided_sampling(models, variant):
    model = models(variant)
    noise = starting_noise(model, variant, SEEDS)
    anchors = torch.randn(noise.shape, generator=torch.Generator().manual_seed(9))
    if variant.first_frame:  # a clip that begins as the frame says
        known = model.encode(first_frame()[0][:, :, None])
        anchors[:, :, :1] = known

    def guided(eta):
        return film(model, variant, num_steps=8, anchors=anchors, eta=eta)

    # the smallest noise of a variance-preserving schedule is that of its first timestep
    least = (
        model.parametrisation.x0_weight(torch.zeros(1)).item() ** -0.5
        if not variant.eta_one_is_fresh
        else 1e-4
    )
    assert (guided(1e-4) - anchors).std() < 5 * least
    closeness = [
        torch.corrcoef(torch.stack([guided(e).flatten(), anchors.flatten()]))[0, 1].item()
        for e in (0.1, 0.5, 0.9)
    ]
    assert closeness == sorted(closeness, reverse=True) and closeness[0] > 0.9
    if variant.eta_one_is_fresh:
        fresh = film(model, variant, num_steps=8)
        torch.testing.assert_close(guided(1.0), fresh, rtol=0, atol=2e-5)


@pytest.mark.parametrize("eta", [0.02, 0.35, 0.8])
@pytest.mark.parametrize("variant", [v for v in FROM_TEXT if v.name != "cogvideox-dpm"], ids=lambda v: v.name)
def test_a_network_that_knows_the_answer_stays_on_the_line_from_eta(models, variant, eta):
    """x_level = signal·anchor + noise·ε at every step, by hand signal : noise = 1 − η : η at the first."""
    model = models(variant)
    noise, anchors = starting_noise(model, variant, SEEDS), torch.randn(2, 1, 1, 1, 1) + 0.0
    anchors = anchors.expand(noise.shape).contiguous()
    seen, form = [], model.parametrisation

    def forward(transformer, x, level, condition):
        if variant.name == "wan-unipc":  # which is told whole timesteps and steps between exact levels
            level = model.scheduler.sigmas[len(seen)].expand(2)
        seen.append(x.clone())
        torch.testing.assert_close(x, form.noise(anchors, noise, level), rtol=0, atol=5e-5)
        return form.target(anchors, noise, level)

    model.forward = forward
    try:
        latents = film(model, variant, num_steps=6, anchors=anchors, eta=eta)
    finally:
        del model.forward
    torch.testing.assert_close(latents, anchors, rtol=0, atol=5e-4)
    length = math.hypot(1 - eta, eta) if variant.name.startswith("cogvideox") else 1.0
    if eta > 0.1:  # where the schedules reach
        by_hand = ((1 - eta) * anchors + eta * noise) / length
        torch.testing.assert_close(seen[0], by_hand, rtol=0, atol=2e-5)


def test_a_guided_start_leaves_no_trace_in_the_schedule(models):
    for name in ("cogvideox-ddim", "cogvideox-dpm"):
        model, variant = models(VARIANTS[name]), VARIANTS[name]
        before = film(model, variant)
        film(model, variant, anchors=torch.zeros_like(before), eta=0.6)
        assert torch.equal(film(model, variant), before)


# Solvers that draw noise --------------------------------------------------------------------


def test_a_stochastic_solver_needs_seeds_and_no_clip_depends_on_its_batch(models):
    variant = VARIANTS["cogvideox-dpm"]
    model = models(variant)
    condition, noise = model.encode_prompts(PROMPTS), starting_noise(model, variant, SEEDS)
    settings = [SamplingConfig(num_steps=3, batch_size=size) for size in (1, 2)]
    one, two = (sample(model, condition, noise, s, seeds=SEEDS) for s in settings)
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
    other = sample(model, condition, noise, settings[1], seeds=[3, 5])
    assert torch.equal(other[0], two[0]) and not torch.equal(other[1], two[1])
    with pytest.raises(ValueError, match="needs seeds"):
        sample(model, condition, noise, settings[0])


def test_a_flow_that_draws_noise_takes_it_from_the_seeds(folders):
    """As distilled LTX-Video does; its pipeline would draw from the global generator."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    variant = VARIANTS["ltx"]
    model = load_model(variant.config_of(folders(variant)))
    plain = film(model, variant)
    settings = {**model.scheduler.config, "stochastic_sampling": True}
    model.pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    drawn = film(model, variant)
    torch.manual_seed(1)
    assert torch.equal(film(model, variant), drawn)
    assert (drawn - plain).abs().max() > 1e-2


# First frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", FROM_FRAME, ids=lambda v: v.name)
def test_every_clip_has_its_own_first_frame(models, variant):
    model = models(variant)
    text, noise = model.encode_prompts(PROMPTS), starting_noise(model, variant, SEEDS)
    frames = torch.cat([first_frame(0)[0], first_frame(1)[0]])
    both = model.with_first_frame(text, frames, NUM_FRAMES)
    settings = SamplingConfig(num_steps=2)
    together = sample(model, both, noise, settings)
    for i in range(2):
        alone = model.with_first_frame(text.rows([i]), frames[i : i + 1], NUM_FRAMES)
        clip = sample(model, alone, noise[i : i + 1], settings)
        torch.testing.assert_close(together[i : i + 1], clip, rtol=0, atol=2e-5)
    swapped = model.with_first_frame(text, frames.flip(0), NUM_FRAMES)
    assert (sample(model, swapped, noise, settings) - together).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wan-2.2-5b-i2v", "ltx-i2v"])
def test_a_given_first_frame_is_kept_and_teaches_nothing(models, name):
    variant, model = VARIANTS[name], models(VARIANTS[name])
    known = model.encode(first_frame()[0][:, :, None])
    torch.testing.assert_close(film(model, variant)[:, :, :1], known.expand(2, -1, -1, -1, -1))
    x = torch.randn(2, *model.latent_shape(NUM_FRAMES, SIZE, SIZE))
    x[:, :, :1] = known
    eps, sigma = torch.randn_like(x), torch.tensor([0.3, 0.9])
    form, condition = model.parametrisation, conditions_of(model, variant)
    error = model.predict(form.noise(x, eps, sigma), sigma, condition) - form.target(x, eps, sigma)
    assert error[:, :, 0].abs().max() < 1e-5 < error[:, :, 1:].abs().min(dim=0).values.max()


@pytest.mark.parametrize("name", ["wan", "cogvideox-ddim", "hunyuan"])
def test_a_model_of_text_alone_is_held_to_a_first_frame(models, name):
    """HuViDPO: frame 0 is given clean, sampling ends in it, and only the others teach."""
    variant, model = VARIANTS[name], models(VARIANTS[name])
    known = model.encode(first_frame()[0][:, :, None])
    text = model.encode_prompts(PROMPTS)
    held = model.with_first_frame(text, first_frame()[0].expand(2, -1, -1, -1), NUM_FRAMES)
    noise = starting_noise(model, variant, SEEDS)
    clips = sample(model, held, noise, SamplingConfig(num_steps=3), seeds=SEEDS)
    torch.testing.assert_close(clips[:, :, :1], known.expand(2, -1, -1, -1, -1), rtol=0, atol=1e-4)
    free = sample(model, text, noise, SamplingConfig(num_steps=3), seeds=SEEDS)
    assert (free - clips)[:, :, 1:].abs().max() > 1e-4  # the others see it
    x = torch.randn(2, *model.latent_shape(NUM_FRAMES, SIZE, SIZE))
    x[:, :, :1] = known
    eps, level = torch.randn_like(x), model.levels_of(torch.tensor([0.3, 0.9]))
    form = model.parametrisation
    error = model.predict(form.noise(x, eps, level), level, held) - form.target(x, eps, level)
    assert error[:, :, 0].abs().max() < 1e-4 < error[:, :, 1:].abs().max()


def test_a_first_frame_that_is_missing_is_asked_for(models):
    for name in ("wan-2.1-i2v", "wan-2.2-i2v", "cogvideox-i2v"):
        model = models(VARIANTS[name])
        assert model.needs_first_frame
        shape = model.latent_shape(NUM_FRAMES, SIZE, SIZE)
        with pytest.raises(ValueError, match="needs a first frame"):
            model.predict(torch.zeros(1, *shape), torch.tensor([0.5]), model.encode_prompts(PROMPTS[:1]))


# Training -----------------------------------------------------------------------------------


def pairs_of(model: VideoModel, variant: Variant) -> PairData:
    shape = model.latent_shape(NUM_FRAMES, SIZE, SIZE)
    generator = torch.Generator().manual_seed(5)
    return PairData(
        ids=["pair-0", "pair-1"],
        prompt_ids=["prompt-0", "prompt-1"],
        winners=torch.randn(2, *shape, generator=generator),
        losers=torch.randn(2, *shape, generator=generator),
        conditions=conditions_of(model, variant),
        signs=torch.ones(2, shape[1], dtype=torch.int8),
        weights=torch.ones(2),
    )


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A variant's checkpoint and log after some steps with LoRA."""
    done: dict[str, tuple[Path, list[dict]]] = {}

    def of(variant: Variant) -> tuple[Path, list[dict]]:
        if variant.name not in done:
            out, rows = tmp_path_factory.mktemp(f"{variant.name}-out"), []
            model = load_model(variant.config_of(folders(variant)))
            settings = UpdateConfig(
                lora=LORA, beta=100.0, learning_rate=2e-2, num_steps=20, pairs_per_step=2, held_out_share=0,
                warmup_steps=1,
            )  # fmt: skip
            update(
                model, pairs_of(model, variant), None, settings, parent=None, out=out, seed=1,
                on_step=rows.append,
            )  # fmt: skip
            done[variant.name] = out / "checkpoint", rows
        return done[variant.name]

    return of


@pytest.mark.parametrize("variant", TRAINED, ids=lambda v: v.name)
def test_training_lowers_the_loss(trained, variant):
    _, rows = trained(variant)
    assert rows[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert np.mean([r["preference_loss"] for r in rows[-5:]]) < math.log(2) - 0.01
    assert np.mean([r["margin"] for r in rows[-5:]]) > 0


@pytest.mark.parametrize("variant", TRAINED, ids=lambda v: v.name)
def test_lora_loads_in_plain_diffusers(folders, models, trained, variant):
    from diffusers import DiffusionPipeline

    checkpoint, _ = trained(variant)
    want = film(load_model(variant.config_of(folders(variant)), checkpoint), variant)
    plain = DiffusionPipeline.from_pretrained(folders(variant))
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(str(checkpoint))
    if variant.name.startswith("wan-2.2") and "5b" not in variant.name:
        second = {"weight_name": LORA_FILES["transformer_2"], "load_into_transformer_2": True}
        plain.load_lora_weights(str(checkpoint), **second)
        assert plain.transformer_2.peft_config["default_0"].lora_alpha == LORA.alpha
    assert plain.transformer.peft_config["default_0"].lora_alpha == LORA.alpha
    got = ask(plain, models(variant), variant, PROMPTS, SEEDS, 1.0, num_inference_steps=4)
    torch.testing.assert_close(want, got, rtol=0, atol=2e-5)
    assert (want - film(models(variant), variant)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wan-2.2", "cogvideox-ddim", "ltx", "hunyuan"])
def test_a_second_round_and_full_weights(folders, models, trained, tmp_path, name):
    """The next round starts where the last one ended; full weights load as plain transformer folders."""
    variant = VARIANTS[name]
    steps = {"num_steps": 1, "pairs_per_step": 2, "held_out_share": 0.0}
    for lora, parent in ((LORA, trained(variant)[0]), (None, None)):
        model, rows = load_model(variant.config_of(folders(variant))), []
        settings = UpdateConfig(lora=lora, learning_rate=1e-3, **steps)
        out = tmp_path / str(bool(lora))
        out.mkdir()
        update(
            model, pairs_of(model, variant), None, settings, parent=parent, out=out, seed=2,
            on_step=rows.append,
        )  # fmt: skip
        assert rows[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
        made = film(model, variant)
        again = film(load_model(variant.config_of(folders(variant)), out / "checkpoint"), variant)
        torch.testing.assert_close(made, again, rtol=0, atol=2e-5)
        assert (made - film(models(variant), variant)).abs().max() > 1e-4


def test_training_draws_levels_in_the_unit_of_the_family(models):
    sigma = torch.tensor([0.0, 0.5, 1.0])
    cog = models(VARIANTS["cogvideox-ddim"])
    assert cog.levels_of(sigma).tolist() == [0, 499.5, 999]
    assert cog.shift_for((4, 3, 4, 4)) == 1.0
    assert models(VARIANTS["hunyuan"]).levels_of(sigma).tolist() == [0, 0.5, 1]
    assert models(VARIANTS["hunyuan"]).shift_for((4, 3, 4, 4)) == 7.0
    ltx, shape = models(VARIANTS["ltx"]), (8, 3, 4, 4)
    # by hand: 48 positions between 16 and 64, so μ = .95 + 1.1·(48 − 16)/48
    assert ltx.shift_for(shape) == pytest.approx(math.exp(0.95 + 1.1 * 32 / 48))


# Wan 2.2's experts --------------------------------------------------------------------------


def test_rows_go_to_the_expert_of_their_noise(models):
    model = models(VARIANTS["wan-2.2"])
    x, condition = torch.randn(4, 4, 3, 4, 4), model.encode_prompts(PROMPTS * 2)
    sigma = torch.tensor([0.2, 0.875, 0.874, 1.0])
    assert model.expert_of(sigma).tolist() == [1, 0, 1, 0]
    mixed = model.predict(x, sigma, condition)
    for i, name in enumerate(("transformer_2", "transformer", "transformer_2", "transformer")):
        network = getattr(model.pipe, name)
        alone = model.forward(network, x[i : i + 1], sigma[i : i + 1], condition.rows([i]))
        torch.testing.assert_close(mixed[i : i + 1], alone, rtol=0, atol=1e-5)


def test_each_expert_has_its_own_adapter(folders, trained, tmp_path):
    variant = VARIANTS["wan-2.2"]
    checkpoint, _ = trained(variant)
    assert sorted(p.name for p in checkpoint.iterdir()) == sorted(LORA_FILES.values())
    assert len({p.read_bytes() for p in checkpoint.iterdir()}) == 2
    model = load_model(variant.config_of(folders(variant)))
    policy = model.prepare_training(LORA, None, "parent", 0)
    per_expert = len(policy) // 2
    model.predict(
        torch.randn(1, 4, 3, 4, 4), torch.tensor([0.3]), model.encode_prompts(PROMPTS[:1])
    ).mean().backward()
    assert all(p.grad is None for p in policy[:per_expert])
    assert any(p.grad is not None for p in policy[per_expert:])
    (tmp_path / LORA_FILE).write_bytes((checkpoint / LORA_FILE).read_bytes())
    with pytest.raises(ValueError, match=r"_2\.safetensors nor transformer/ and transformer_2/"):
        model.load_checkpoint(tmp_path)


@pytest.mark.parametrize("lora", [None, LORA])
def test_two_experts_resume_bit_identically(folders, tmp_path, lora):
    variant = VARIANTS["wan-2.2"]
    settings = UpdateConfig(
        lora=lora, learning_rate=1e-3, num_steps=4, pairs_per_step=2, checkpoint_every=2, reference="ema",
        ema_decay=0.5, ema_every=1, real_likelihood=0.5, anchors_per_step=1, held_out_share=0.5,
        evaluate_every=2, average=0.5,
    )  # fmt: skip

    class Killed(Exception):
        pass

    def run(out: Path, die_at: int | None = None) -> None:
        model = load_model(variant.config_of(folders(variant)))
        pairs = pairs_of(model, variant)

        def on_step(row):
            if row["step"] == die_at:
                raise Killed

        anchors = AnchorData(pairs.winners, pairs.conditions)
        update(model, pairs, anchors, settings, parent=None, out=out, seed=3, on_step=on_step)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    run(whole)
    with pytest.raises(Killed):
        run(broken, 3)
    run(broken)
    files = sorted(p.relative_to(whole) for p in (whole / "checkpoint").rglob("*.safetensors"))
    assert len(files) == 2
    assert all((whole / f).read_bytes() == (broken / f).read_bytes() for f in files)


# Messages -----------------------------------------------------------------------------------


def test_a_model_of_another_family_is_named(folders):
    wan = folders(VARIANTS["wan"])
    with pytest.raises(ValueError, match=r"generator\.family ltx: .* is a WanPipeline .* not a LTXPipeline"):
        load_model(GeneratorConfig(family="ltx", model=wan))
    for family in ("wan", "cogvideox", "ltx", "hunyuan"):
        with pytest.raises(ValueError, match=r"generator\.model: cannot load"):
            load_model(GeneratorConfig(family=family, model=wan + "-is-not-here"))


@pytest.mark.parametrize(
    ("name", "frames", "size", "message"),
    [
        ("cogvideox-ddim", 13, 32, "8k\\+1 frames, such as 9 or 17"),
        ("cogvideox-ddim", 9, 24, "multiples of 16"),
        ("ltx", 8, 32, "4k\\+1 frames, such as 5 or 9"),
        ("ltx", 9, 48, "multiples of 32"),
        ("hunyuan", 6, 32, "4k\\+1 frames, such as 5 or 9"),
        ("hunyuan", 5, 40, "multiples of 16"),
    ],
)
def test_sizes_that_a_family_does_not_take(models, name, frames, size, message):
    with pytest.raises(ValueError, match=message):
        models(VARIANTS[name]).latent_shape(frames, size, size)


def test_what_is_not_supported_says_so(tmp_path, folders):
    def broken(make, file, change, **settings):
        folder = tmp_path / f"{make.__name__}-{len(list(tmp_path.iterdir()))}"
        make(folder, **settings)
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | change))
        return str(folder)

    def load(family, folder, **more):
        return load_model(GeneratorConfig(family=family, model=folder, **more))

    with pytest.raises(ValueError, match="prediction_type sample is not supported"):
        load(
            "cogvideox",
            broken(make_cogvideox, "scheduler/scheduler_config.json", {"prediction_type": "sample"}),
        )
    with pytest.raises(ValueError, match="made for 16 tokens"):
        load("cogvideox", folders(VARIANTS["cogvideox-ddim"]), max_text_tokens=8)
    with pytest.raises(ValueError, match=r"generator\.max_text_tokens 8: Wan 2\.1"):
        load("wan", folders(VARIANTS["wan-2.1-i2v"]), max_text_tokens=8)
    with pytest.raises(ValueError, match="boundary_ratio"):
        load("wan", broken(make_wan, "model_index.json", {"boundary_ratio": 0.5}))


def test_a_model_without_embedded_guidance_is_told_none(tmp_path):
    make_hunyuan(tmp_path, guidance_embeds=False)
    model = load_model(VARIANTS["hunyuan"].config_of(str(tmp_path)))
    theirs = ask(model.pipe, model, VARIANTS["hunyuan"], PROMPTS, SEEDS, 3.0, num_inference_steps=2)
    torch.testing.assert_close(film(model, VARIANTS["hunyuan"], 3.0, 2), theirs, rtol=0, atol=2e-5)


def test_the_distilled_guidance_is_what_is_configured(folders):
    variant = VARIANTS["hunyuan"]
    config = variant.config_of(folders(variant))
    x, sigma = noise_for([0], (4, 3, 4, 4)), torch.tensor([0.5])
    made = []
    for scale in (1.0, 4.0):
        model = load_model(config.model_copy(update={"embedded_guidance": scale}))
        made.append(model.predict(x, sigma, model.encode_prompts(PROMPTS[:1])))
    assert (made[0] - made[1]).abs().max() > 1e-4
