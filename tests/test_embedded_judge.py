"""The shipped tiny judge is a plain Qwen2.5-VL folder that speaks the reply grammar and sees the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import loop.embedded
from loop.embedded import flaws, make_judge, world
from reward.config import CORRUPTIONS, DIMENSIONS
from reward.corruptions import FLAWS
from reward.question import Frames, mirrored, parse_reply, write_reply
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
    assert sum(path.stat().st_size for path in files) <= 5 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_half_precision_files_are_read_as_float32(shipped):
    model, _ = shipped
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_every_word_of_the_world_is_one_token(shipped):
    _, processor = shipped
    unknown = processor.tokenizer.unk_token_id
    for combo in world.combinations():
        for word in flaws.WORDS:
            text = write_reply(
                f"first: {world.caption_of(*combo)}, more {word}. second: {world.caption_of(*combo)}, {word}.",
                dict.fromkeys(DIMENSIONS, "tie"),
            )
            ids = processor.tokenizer(text + "<|im_end|>").input_ids
            assert unknown not in ids and ids[-1] == processor.tokenizer.eos_token_id
            assert parse_reply(processor.tokenizer.decode(ids[:-1]), DIMENSIONS).answers == dict.fromkeys(
                DIMENSIONS, "tie"
            )
    assert {flaw.word for flaw in FLAWS.values()} <= set(flaws.WORDS) and set(FLAWS) <= set(CORRUPTIONS)


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
    patches = make_judge.patches(frames)
    torch.testing.assert_close(batch["pixel_values"].reshape(patches.shape), patches, atol=1e-5, rtol=0)
    with torch.no_grad():
        stock = model(**batch).logits
        rows = make_judge.embed(model, batch["input_ids"], frames[None])
        fast = model.lm_head(model.model.language_model(inputs_embeds=rows).last_hidden_state)
    torch.testing.assert_close(fast, stock, atol=1e-4, rtol=1e-4)


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


def test_lessons_come_from_training_captions_only():
    seen = {view.attributes for view in flaws.draw_pool(200, "train", np.random.default_rng(1)).views}
    assert {world.part_of(*combo) for combo in seen} == {"train"}
