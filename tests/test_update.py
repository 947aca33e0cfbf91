"""What an update promises however it is cut: micro-batches, ranks, known reference errors, limits."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from generator import step
from generator.config import GeneratorConfig, LoraConfig, UpdateConfig
from generator.data import AnchorData, PairData
from generator.draws import Draw, draws_of_step, mix, noise_and_levels
from generator.models.base import VideoModel, load_model
from generator.reference_errors import ReferenceErrors
from generator.train import update
from generator.watch import is_saturated, motion_gap
from loop.models import resolve_model
from loop.steps.update import _of_shape
from tests.tiny_wan import make_tiny_wan

SHAPE = (4, 5, 4, 4)
PROMPTS = ["a red ring moves left", "a blue square moves up"]
TERMS = {
    "learning_rate": 1e-3, "num_steps": 3, "pairs_per_step": 8, "anchors_per_step": 4, "held_out_share": 0.0,
    "winner_likelihood": 0.5, "real_likelihood": 0.5, "beta": 50.0, "warmup_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> GeneratorConfig:
    return GeneratorConfig(model=make_tiny_wan(tmp_path_factory.mktemp("wan")), max_text_tokens=8)


def make_pairs(model: VideoModel, num: int = 10) -> PairData:
    """Pairs with ties in some frames, so that the parts of a batch count different numbers of frames."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(-1, 2, (num, SHAPE[1]), generator=generator, dtype=torch.int8)
    signs[:, 0] = 1
    return PairData(
        ids=[f"pair-{i}" for i in range(num)],
        prompt_ids=[f"prompt-{i // 2}" for i in range(num)],
        winners=torch.randn(num, *SHAPE, generator=generator),
        losers=torch.randn(num, *SHAPE, generator=generator),
        conditions=model.encode_prompts(PROMPTS),
        condition_rows=[i % 2 for i in range(num)],
        signs=signs,
        weights=torch.linspace(0.5, 1.0, num),
    )


def make_anchors(model: VideoModel) -> AnchorData:
    latents = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    return AnchorData(latents, model.encode_prompts(PROMPTS), [0, 1] * 3)


def train(config: GeneratorConfig, out: Path, *, seed: int = 3, parent: Path | None = None, **terms):
    """(weights of the checkpoint, rows of the log, result) of an update of the tiny model."""
    model = load_model(config)
    rows: list[dict] = []
    warnings: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    result = update(
        model, make_pairs(model), make_anchors(model), UpdateConfig(**{**TERMS, **terms}),
        parent=parent, out=out, seed=seed, on_step=rows.append, warn=warnings.append,
    )  # fmt: skip
    [weights] = (out / "checkpoint").rglob("*.safetensors")
    return load_file(weights), rows, result | {"warnings": warnings}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[k] - other[k]).abs().max().item() for k in one)


@pytest.fixture
def gradients(monkeypatch) -> list[torch.Tensor]:
    """Every step's whole gradient, as the optimiser gets it."""
    seen: list[torch.Tensor] = []
    add = step.Ranks.sum_gradients

    def note(self, parameters):
        add(self, parameters)
        seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))

    monkeypatch.setattr(step.Ranks, "sum_gradients", note)
    return seen


@pytest.mark.parametrize("reduction", ["clip", "frame", "frame_sum", "kto"])
def test_micro_batches_give_the_same_gradient(config, tmp_path, gradients, reduction):
    """1 × 8 ≡ 8 × 1 in float32, ties included: the counts, and KTO's Q, are the whole batch's."""
    loss = {"objective": "kto"} if reduction == "kto" else {"reduction": reduction}
    whole, rows, _ = train(config, tmp_path / "whole", **loss)
    [first, *_] = gradients
    assert first.abs().max() > 1e-3
    for num in (3, 8):
        gradients.clear()
        parts, other, _ = train(config, tmp_path / f"parts-{num}", **loss, micro_batches=num)
        assert (gradients[0] - first).abs().max() < 1e-6 * first.abs().max()
        assert difference(whole, parts) < 2e-5  # Adam divides by the gradient's size, however small
        for a, b in zip(rows, other, strict=True):
            for key in ("loss", "preference_loss", "winner_error", "real_error", "grad_norm", "margin"):
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key


def test_the_gradient_is_that_of_clips_one_at_a_time(config, tmp_path, gradients):
    """Fused winners and losers, cached references and shared draws give what the plain loop gives."""
    train(config, tmp_path, num_steps=1, reduction="frame", winner_likelihood=0, real_likelihood=0)
    [fused] = gradients
    model = load_model(config)
    settings = UpdateConfig(**{**TERMS, "reduction": "frame"})
    parameters = model.prepare_training(None, None, "parent", mix(3, 3))
    pairs, form = make_pairs(model), model.parametrisation
    drawn = draws_of_step(10, settings.pairs_per_step, 3, 0, num_draws=0)
    noise, sigma = noise_and_levels(drawn, SHAPE, settings, model.shift_for(SHAPE), 3, 0)
    levels, terms, count = model.levels_of(sigma), [], 0.0
    for draw, eps, level in zip(drawn, noise, levels, strict=True):
        i = draw.item

        def error(x, predict, eps=eps[None], level=level[None], i=i):
            prediction = predict(form.noise(x, eps, level), level, pairs.condition([i]))
            return (prediction - form.target(x, eps, level)).pow(2).mean(dim=(0, 1, 3, 4))

        changes = []
        for x in (pairs.winners[i][None], pairs.losers[i][None]):
            with torch.no_grad():
                frozen = error(x, model.predict_reference)
            changes.append(error(x, model.predict) - frozen)
        for sign, d in zip(pairs.signs[i].tolist(), changes[0] - changes[1], strict=True):
            if sign:
                margin = -0.5 * settings.beta * sign * d
                terms.append(-pairs.weights[i] * torch.nn.functional.logsigmoid(margin))
                count += pairs.weights[i].item()
    (torch.stack(terms).sum() / count).backward()
    naive = torch.cat([p.grad.flatten() for p in parameters])
    assert naive.abs().max() > 1e-3
    assert (fused - naive).abs().max() < 1e-5 * naive.abs().max()


def test_means_of_parts_would_be_another_gradient(config, tmp_path, monkeypatch):
    """The check above can fail: parts divided by their own counts do not add up to the whole."""
    whole, _, _ = train(config, tmp_path / "whole", reduction="frame")
    own = step.preference_loss
    monkeypatch.setattr(step, "preference_loss", lambda *args, total=None, **more: own(*args, **more) / 4)
    parts, _, _ = train(config, tmp_path / "parts", reduction="frame", micro_batches=4)
    assert difference(whole, parts) > 1e-5


RANKED = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
dist.init_process_group("gloo")
from generator.config import GeneratorConfig
from tests.test_update import train
weights, rows, _ = train(
    GeneratorConfig(model={model!r}, max_text_tokens=8), Path({out!r}), reduction="frame",
    held_out_share=0.2, evaluate_every=2, micro_batches=2,
)
if dist.get_rank() == 0:
    torch.save([weights, rows], {result!r})
dist.barrier()
dist.destroy_process_group()
"""


def test_two_ranks_give_the_weights_of_one(config, tmp_path):
    root = str(Path(__file__).parent.parent)
    result = str(tmp_path / "result.pt")
    script = tmp_path / "ranked.py"
    script.write_text(RANKED.format(root=root, model=config.model, out=str(tmp_path / "two"), result=result))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two, two_rows = torch.load(result, weights_only=True)
    one, rows, _ = train(config, tmp_path / "one", reduction="frame", held_out_share=0.2, evaluate_every=2)
    assert difference(one, two) < 1e-6
    assert [r["split"] for r in rows] == [r["split"] for r in two_rows]
    for a, b in zip(rows, two_rows, strict=True):
        assert all(a[k] == pytest.approx(b[k], rel=1e-4, abs=1e-6) for k in a if k != "split")


def test_a_step_has_a_part_for_every_rank():
    ranks = step.Ranks()
    ranks.num = 4
    ranks.check_shares(UpdateConfig(pairs_per_step=4, anchors_per_step=1))  # anchors are not asked for
    with pytest.raises(ValueError, match=r"update\.pairs_per_step is 3, fewer than the 4 processes"):
        ranks.check_shares(UpdateConfig(pairs_per_step=3))
    with pytest.raises(ValueError, match=r"update\.anchors_per_step is 1"):
        ranks.check_shares(UpdateConfig(real_likelihood=1.0, anchors_per_step=1))


@pytest.mark.parametrize("losers", [1, 2])
def test_known_reference_errors_change_nothing_but_the_number_of_forwards(
    config, tmp_path, losers, monkeypatch
):
    calls = []
    forward = VideoModel.predict_reference
    monkeypatch.setattr(
        VideoModel,
        "predict_reference",
        lambda self, x, *rest: calls.append(len(x)) or forward(self, x, *rest),
    )
    terms = {"num_steps": 10, "pairs_per_step": 5, "reference_draws": 2, "losers_per_winner": losers}
    known, rows, _ = train(config, tmp_path / "known", **terms)
    assert sum(calls) == 2 * 10 * 2  # two draws of ten pairs, winner and loser; five epochs have been made
    calls.clear()
    monkeypatch.setattr(ReferenceErrors, "has", lambda self, draws: False)
    fresh, again, _ = train(config, tmp_path / "fresh", **terms)
    assert sum(calls) == 5 * 10 * 2
    assert difference(known, fresh) < 1e-6
    for a, b in zip(rows, again, strict=True):
        assert a["preference_loss"] == pytest.approx(b["preference_loss"], rel=1e-5)


def test_errors_of_another_reference_are_not_taken():
    one, other = ReferenceErrors(2, [torch.ones(3)]), ReferenceErrors(2, [torch.zeros(3)])
    one.add([Draw(4, 1)], [2], torch.ones(2, 5), torch.zeros(2, 5))
    assert one.has([Draw(4, 1)]) and not one.has([Draw(4, 0)])
    with pytest.raises(AssertionError, match="other weights"):
        other.load(one.state())
    with pytest.raises(ValidationError, match="reference ema moves"):
        UpdateConfig(reference="ema", reference_draws=2)


def test_draws_are_stratified_and_belong_to_their_pair():
    settings = UpdateConfig(timesteps="uniform")
    for item in (0, 7):
        draws = [Draw(item, n) for n in range(5)]
        eps, sigma = noise_and_levels(draws, (2, 3), settings, 1.0, 11, num_draws=5)
        assert sorted(int(s * 5) for s in sigma.tolist()) == [0, 1, 2, 3, 4]
        assert len({tuple(e.flatten().tolist()) for e in eps}) == 5
    [alone], level = noise_and_levels([Draw(7, 3)], (2, 3), settings, 1.0, 11, num_draws=5)
    assert torch.equal(alone, eps[3]) and torch.equal(level[0], sigma[3])


def test_an_epoch_takes_everything_once():
    steps = [draws_of_step(7, 3, seed=1, step=s) for s in range(7)]
    flat = [d for step in steps for d in step]
    assert [sorted(d.item for d in flat[k * 7 : k * 7 + 7]) for k in range(3)] == [list(range(7))] * 3
    assert [d.number for d in flat] == [k // 7 for k in range(21)]
    again = [d.number for s in range(7) for d in draws_of_step(7, 3, seed=1, step=s, num_draws=2)]
    assert again == [(k // 7) % 2 for k in range(21)]


def test_activation_checkpointing_gives_the_same_weights(config, tmp_path):
    plain, _, _ = train(config, tmp_path / "plain", lora=LoraConfig(rank=4, alpha=8.0))
    again, _, _ = train(
        config, tmp_path / "again", lora=LoraConfig(rank=4, alpha=8.0), activation_checkpointing=True
    )
    assert difference(plain, again) < 1e-6


def test_a_compiled_model_learns_the_same(config, tmp_path, monkeypatch):
    """Through the graph compiler, without the code generation that would take minutes here."""
    compiled = []

    def compile_(module, **options):
        compiled.append(module)
        compile_of_torch(module, backend="aot_eager")

    compile_of_torch = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    plain, _, _ = train(config, tmp_path / "plain", num_steps=2)
    assert not compiled
    other, _, _ = train(config, tmp_path / "compiled", num_steps=2, compile=True)
    assert len(compiled) == 1 and difference(plain, other) < 2e-5


def test_training_needs_no_encoders(config, tmp_path):
    """The update stage frees them: pixels and prompts have become latents and embeddings by then."""
    plain, _, _ = train(config, tmp_path / "plain")
    ready = make_anchors(load_model(config)), make_pairs(load_model(config))
    model = load_model(config)
    model.release_encoders()
    freed = [p for part in (model.pipe.vae, model.pipe.text_encoder) for p in part.parameters()]
    assert freed and all(p.is_meta for p in freed)
    (tmp_path / "freed").mkdir()
    update(
        model, ready[1], ready[0], UpdateConfig(**TERMS), parent=None, out=tmp_path / "freed", seed=3,
        on_step=lambda row: None,
    )  # fmt: skip
    [weights] = (tmp_path / "freed" / "checkpoint").rglob("*.safetensors")
    assert difference(plain, load_file(weights)) == 0
    assert model.latent_shape(17, 32, 32) == SHAPE  # sizes are known all the same


# Limits ---------------------------------------------------------------------------------------


HELD = {"held_out_share": 0.4, "evaluate_every": 1, "num_steps": 6, "schedule": "constant"}


def test_drift_stops_an_update_and_the_last_weights_within_bounds_are_kept(config, tmp_path):
    _, free, _ = train(config, tmp_path / "free", **HELD)
    drifts = [r["drift"] for r in free if r["split"] == "held_out"]
    assert drifts[0] > 0 and drifts[-1] > drifts[0]
    limit = (drifts[1] + drifts[2]) / 2 if drifts[2] > drifts[1] else drifts[1]
    broken = next(i for i, d in enumerate(drifts) if d > limit)
    _, rows, result = train(config, tmp_path / "limited", **HELD, limits={"drift": limit})
    assert [r["step"] for r in rows if r["split"] == "held_out"] == list(range(broken + 1))
    assert result["chosen_step"] < broken and "update.limits.drift" in result["stopped"]
    assert any("the update stops" in w for w in result["warnings"])


def test_an_update_that_breaks_its_limit_at_once_gives_back_its_parent(config, tmp_path):
    parent_weights, _, _ = train(config, tmp_path / "parent", num_steps=1)
    weights, _, result = train(
        config, tmp_path / "child", parent=tmp_path / "parent" / "checkpoint", **HELD, limits={"drift": 1e-12}
    )
    assert result["chosen_step"] == -1 and difference(weights, parent_weights) == 0


def test_drift_is_measured_from_the_base_not_from_the_parent(config, tmp_path):
    train(config, tmp_path / "parent", num_steps=8, learning_rate=1e-2)
    still = {**HELD, "learning_rate": 1e-12, "num_steps": 1}
    _, rows, _ = train(config, tmp_path / "child", parent=tmp_path / "parent" / "checkpoint", **still)
    [held] = [r for r in rows if r["split"] == "held_out"]
    assert held["drift"] > 1e-4
    assert held["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the reference is the parent


def test_winners_that_get_worse_stop_an_update(config, tmp_path):
    """Likelihood displacement: the winners' error against the reference rises beyond what is allowed."""
    worse = {**HELD, "learning_rate": 3e-2, "winner_likelihood": 0, "real_likelihood": 0, "beta": 500.0}
    _, free, _ = train(config, tmp_path / "free", **worse)
    changes = [r["winner_error_change"] for r in free if r["split"] == "held_out"]
    assert changes[-1] > 0
    limit = max(changes) / 2
    broken = next(i for i, change in enumerate(changes) if change > limit)
    _, rows, result = train(config, tmp_path / "limited", **worse, limits={"displacement": limit})
    assert len([r for r in rows if r["split"] == "held_out"]) == broken + 1
    assert "update.limits.displacement" in result["stopped"]


def test_a_share_that_holds_out_nothing_is_said(config, tmp_path):
    _, _, result = train(config, tmp_path / "none", num_steps=1, held_out_share=0.05)
    [warned] = [w for w in result["warnings"] if "held_out_share" in w]
    assert "5 prompts" in warned and "last step" in warned
    _, _, result = train(config, tmp_path / "meant", num_steps=1, held_out_share=0)
    assert not result["warnings"]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_the_weights(config, tmp_path, monkeypatch, where):
    model = load_model(config)
    pairs = make_pairs(model)
    if where == "loss":
        pairs.winners[3] = float("nan")
    else:  # the loss is a number, and its gradient none
        sums = step.Ranks.sum_gradients
        monkeypatch.setattr(
            step.Ranks, "sum_gradients", lambda self, p: (sums(self, p), p[0].grad.fill_(float("inf")))
        )
    before = {k: v.clone() for k, v in model.transformer.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"step 0: .*pair-3.*lower update\.learning_rate"):
        update(
            model, pairs, make_anchors(model), UpdateConfig(**{**TERMS, "pairs_per_step": 10}),
            parent=None, out=tmp_path, seed=0, on_step=lambda row: None,
        )  # fmt: skip
    assert difference(before, dict(model.transformer.state_dict())) == 0


def test_pairs_whose_winners_stand_still_are_refused(config, tmp_path):
    model = load_model(config)
    pairs = make_pairs(model)
    pairs.signs[:] = 1
    moving = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(5))
    still = replace(pairs, winners=0.5 * moving, losers=moving)
    assert motion_gap(still) == pytest.approx(-0.5, abs=1e-5)
    flipped = replace(still, signs=-still.signs)
    assert motion_gap(flipped) == pytest.approx(1.0, abs=1e-5)
    before = {k: v.clone() for k, v in model.transformer.state_dict().items()}
    rows: list[dict] = []
    settings = UpdateConfig(**{**TERMS, "limits": {"motion_gap": 0.4}})
    result = update(
        model, still, make_anchors(model), settings, parent=None, out=tmp_path, seed=0, on_step=rows.append
    )
    assert rows == [] and "50% less" in result["stopped"]
    assert difference(before, dict(model.transformer.state_dict())) == 0


def test_saturation_is_training_accuracy_without_held_out_progress():
    assert is_saturated([1.0, 1.0, 0.99], [0.1, 0.3, 0.3])
    assert not is_saturated([1.0, 1.0, 0.99], [0.1, 0.3, 0.31])  # still rising
    assert not is_saturated([0.9, 1.0, 0.99], [0.3, 0.2])  # not all told apart
    assert not is_saturated([1.0], [0.3]) and not is_saturated([], [0.3, 0.2])


def test_saturation_warns_once(config, tmp_path, monkeypatch):
    monkeypatch.setattr("generator.train.take_step", lambda u, step: {"implicit_accuracy": 1.0})
    margins = iter([0.1, 0.2, 0.2, 0.1])
    held = {"implicit_accuracy": 0.5, "winner_error_change": 0.0}
    monkeypatch.setattr("generator.train._held_out", lambda *_: {**held, "margin": next(margins)})
    _, _, result = train(config, tmp_path, num_steps=8, held_out_share=0.4, evaluate_every=2)
    [warned] = [w for w in result["warnings"] if "implicit accuracy" in w]
    assert result["saturated_at"] == 5 and warned.startswith("step 5:")


def test_a_lora_of_another_base_is_refused(config, tmp_path):
    train(config, tmp_path, num_steps=1, lora=LoraConfig(rank=2))
    wider = GeneratorConfig(model=resolve_model("embedded:tiny-wan", "generator.model"), max_text_tokens=8)
    with pytest.raises(ValueError, match=r"LoRA for another base than generator\.model .*to_"):
        load_model(wider, tmp_path / "checkpoint")
    load_model(config, tmp_path / "checkpoint")


def test_a_clip_of_another_length_is_named():
    with pytest.raises(ValueError, match=r"other\.mp4: its latents are \[4, 3, 4, 4\].*one length"):
        _of_shape(torch.zeros(4, 3, 4, 4), SHAPE, Path("other.mp4"))


def test_limits_without_held_out_pairs_are_said_to_be_idle(config, tmp_path):
    _, _, result = train(config, tmp_path, num_steps=1, limits={"drift": 1.0})
    assert any("need held-out pairs" in w for w in result["warnings"])
