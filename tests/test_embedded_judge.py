"""The shipped tiny judge is a plain Qwen2.5-VL folder that speaks the reply grammar and sees the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import loop.embedded
from loop.embedded import flaws, judge_model, make_judge, world
from loop.embedded.judge_questions import Lines, Writer
from reward.config import CORRUPTIONS, DIMENSIONS, JudgeConfig
from reward.judges.transformers import TransformersJudge
from reward.known_answers import make_known_answers
from reward.question import Ask, Frames, mirrored, parse_reply, pick_frames, write_reply
from reward.sides import Source, compare

FOLDER = Path(loop.embedded.__file__).parent / "tiny-judge"


@pytest.fixture(scope="module")
def shipped():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(FOLDER), AutoProcessor.from_pretrained(FOLDER)


def known_sources(part: str, rng: np.random.Generator) -> list[Source]:
    """Two flawless renders of every caption of a part."""
    sources = []
    for combo in world.combinations():
        if world.part_of(*combo) == part:
            for index in range(2):
                scene = world.draw_scene(*combo, rng)
                name = f"{scene.caption} {index}"
                sources.append(Source(name, scene.caption, scene.caption, Reader(name, scene)))
    return sources


class Reader:
    def __init__(self, key: str, scene: world.Scene) -> None:
        self.key, self.scene = key, scene

    def __call__(self) -> Frames:
        return Frames(world.render(self.scene), world.FPS)


def test_the_folder_is_small_and_holds_safetensors_only():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    shipped = [p for model in FOLDER.parent.glob("tiny-*") for p in model.rglob("*") if p.is_file()]
    assert {p.relative_to(FOLDER.parent).parts[0] for p in shipped} == {"tiny-judge", "tiny-wan"}
    assert sum(p.stat().st_size for p in shipped) <= 12e6  # of both models together
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_half_precision_files_are_read_as_float32(shipped):
    model, _ = shipped
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_every_word_of_the_world_is_one_token(shipped):
    _, processor = shipped
    unknown = processor.tokenizer.unk_token_id
    for combo in world.combinations():
        caption = world.caption_of(*combo)
        for word in flaws.WORDS:
            text = write_reply(
                f"first: {caption}, more {word}. second: {caption}, {word}.",
                dict.fromkeys(DIMENSIONS, "tie"),
            )
            ids = processor.tokenizer(text + "<|im_end|>").input_ids
            assert unknown not in ids and ids[-1] == processor.tokenizer.eos_token_id
            assert parse_reply(processor.tokenizer.decode(ids[:-1]), DIMENSIONS).answers == dict.fromkeys(
                DIMENSIONS, "tie"
            )
    assert set(flaws.TAUGHT) == set(CORRUPTIONS) - {"drop", "drift"}
    assert {flaw.word for flaw in flaws.TAUGHT.values()} <= set(flaws.WORDS)


def test_fast_tower_and_patches_equal_the_stock_ones(shipped):
    """Training goes around the image processor and the stock vision forward: both must agree to rounding."""
    from PIL import Image

    model, processor = shipped
    frames = flaws.draw_pool(2, "train", np.random.default_rng(0)).frames[0]
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}] * len(frames)}], add_generation_prompt=True
    )
    batch = processor(text=[text], images=[[Image.fromarray(f) for f in frames]], return_tensors="pt")
    assert (batch["input_ids"] == model.config.image_token_id).sum() == len(frames)  # one token a frame
    patches = judge_model.patches(frames)
    torch.testing.assert_close(batch["pixel_values"].reshape(patches.shape), patches, atol=1e-5, rtol=0)
    with torch.no_grad():
        stock = model(**batch).logits
        rows = judge_model.embed(model, batch["input_ids"], frames[None])
        fast = model.lm_head(model.model.language_model(inputs_embeds=rows).last_hidden_state)
    torch.testing.assert_close(fast, stock, atol=1e-4, rtol=1e-4)


def test_the_judge_answers_as_its_own_lessons_would_and_mostly_right(shipped):
    """Greedy, on captions that no lesson showed: a message or template that differs would ruin both."""
    model, processor = shipped
    names = [name for name in flaws.TAUGHT if name != "reverse"]
    sources = known_sources("calibrate", np.random.default_rng(7))
    known = make_known_answers(sources, 96, seed=5, corruptions=names)
    config = JudgeConfig(
        model=str(FOLDER),
        instructions=judge_model.INSTRUCTIONS,
        frame_size=world.SIZE,
        time_stamps=False,
        max_new_tokens=48,
        temperature=0.0,
        batch_size=96,
    )
    votes = TransformersJudge(config).vote([Ask(k.question, False, 0) for k in known])
    clips = [[k.question.first().pixels, k.question.second().pixels] for k in known]
    shown = np.stack([np.concatenate([clip[pick_frames(len(clip), 8)] for clip in pair]) for pair in clips])
    replies = [write_reply(k.reasoning, k.answers) for k in known]
    lines = Lines(shown, [k.question.prompt for k in known], replies, [], [], [])
    own = [parse_reply(text, DIMENSIONS) for text in make_judge.reply(model, Writer(processor), lines, 0.0)]
    same = [vote.answers == reply.answers for vote, reply in zip(votes, own, strict=True)]
    assert np.mean(same) > 0.97  # a near tie of two words may fall either way in another batch
    overall = [
        vote.answers is not None and vote.answers["overall"] == k.answers["overall"]
        for vote, k in zip(votes, known, strict=True)
    ]
    assert 0.7 < np.mean(overall) < 0.95  # of use, and with something left to learn


def test_answers_mirror_when_the_clips_change_places():
    pool = flaws.draw_pool(60, "train", np.random.default_rng(3))
    prompt = pool.views[0].attributes
    for one in pool.views:
        for other in pool.views:
            there = compare(one.against(prompt), other.against(prompt), DIMENSIONS)
            back = compare(other.against(prompt), one.against(prompt), DIMENSIONS)
            assert (there is None) == (back is None)
            assert there is None or mirrored(there) == back


def test_a_window_leaves_its_first_frame_sound():
    rng = np.random.default_rng(5)
    frames, places, view = flaws.draw_clip(("red", "ring", "left"), "noise", rng, window=(4, 9))
    assert frames.shape == (5, world.SIZE, world.SIZE, 3) and places.shape == (5, 2)
    spread = frames[:, :6, :6].reshape(5, -1).std(axis=1)
    assert spread[0] < 6 < spread[1:].min() and view.flaw == "noise"


def test_lessons_show_nothing_of_the_world_but_training_captions():
    views = flaws.draw_pool(200, "train", np.random.default_rng(1), strange=0.5).views
    assert {flaws.part_of(view.attributes) for view in views} == {"train", "strange"}


def test_directions_are_taught_by_strange_clips_alone(shipped):
    """Training captions have two directions to a colour and shape; a judge would say no other."""
    _, processor = shipped
    caption = ("red", "ring", "left"), ("lime", "disc", "up")
    text = write_reply(
        "first: a red ring moves left, steady. second: a lime disc moves up, steady.",
        dict.fromkeys(DIMENSIONS, "tie"),
    )
    lines = Lines(
        np.zeros((1, 16, 32, 32, 3), np.uint8), ["a red ring moves left"], [text], [], [], [caption]
    )
    labels = Writer(processor).labels(lines)[0].tolist()
    left, up = processor.tokenizer.convert_tokens_to_ids(["left", "up"])
    assert left not in labels and up in labels and labels.count(-100) == 1
