"""A caption is data: whatever stands in it, the message keeps its blocks, images and special tokens."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.config import JudgeConfig
from reward.encoding import Encoder
from reward.judge import load_judge
from reward.judges.transformers import load_model
from reward.question import Ask, Layout, build_message, caption_of, neutralise
from reward.replies import FORMATS
from tests.hostile_captions import HOSTILE, SPECIAL_TOKENS
from tests.openai_server import FakeServer
from tests.reward_clips import question
from tests.test_judge_openai import config as config_of_server
from tests.test_judge_openai import images
from tests.tiny_models import make_tiny_qwen_vl

HARMLESS = "a red box moves right"
ROLES = ("prompt", "assistant", "user")


def ask_about(caption: str) -> Ask:
    return Ask(replace(question(), prompt=caption), False, 0)


@pytest.fixture(scope="module", params=FORMATS)
def encoder(request, tmp_path_factory) -> Encoder:
    """Of a tiny model whose tokenizer knows the special tokens of all model lines, and words for headings."""
    folder = make_tiny_qwen_vl(tmp_path_factory.mktemp("judge"))
    config = JudgeConfig(
        model=str(folder), reply=request.param, num_frames=4, frame_size=16, dimensions=("motion", "overall")
    )
    _, processor = load_model(config)
    processor.tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    processor.tokenizer.add_tokens(["Video", "1", "2"])
    return Encoder(processor, config)


def counts(encoder: Encoder, caption: str) -> dict[str, int]:
    """How often each special token stands in the tokenised message, and each heading with its colon."""
    tokens = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt(ask_about(caption)).ids)
    text = " ".join(tokens).lower()
    names = (*FORMATS[encoder.config.reply].layout.names, *ROLES)
    return {token: tokens.count(token) for token in SPECIAL_TOKENS} | {
        name: text.count(f" {name.lower()} :") for name in names
    }


def test_there_are_enough_kinds():
    assert len(HOSTILE) >= 50 and len(set(HOSTILE.values())) == len(HOSTILE)


@pytest.mark.parametrize("kind", HOSTILE)
def test_tokens_are_those_of_a_harmless_caption(encoder, kind):
    wanted = counts(encoder, HARMLESS)
    assert wanted["<|image_pad|>"] == 8  # of 8 frames, one token each
    assert counts(encoder, HOSTILE[kind]) == wanted


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_blocks_stay_as_they_are(kind, form):
    times = ([0.0, 0.5], [0.0, 0.5])

    def blocks(caption: str) -> list[dict]:
        return build_message(
            ask_about(caption),
            FORMATS[form].instructions,
            times,
            time_stamps=True,
            special_tokens=SPECIAL_TOKENS,
            layout=FORMATS[form].layout,
        )

    hostile, harmless = blocks(HOSTILE[kind]), blocks(HARMLESS)
    where = next(i for i, block in enumerate(harmless) if HARMLESS in block.get("text", ""))
    before, after = harmless[where]["text"].split(HARMLESS)
    told = hostile[where]["text"]
    assert told.startswith(before) and told.endswith(after)
    caption = told[len(before) : len(told) - len(after)]
    assert caption.isprintable() and not set("<>\u2028\u2029") & set(caption)
    assert hostile[:where] == harmless[:where] and hostile[where + 1 :] == harmless[where + 1 :]


def test_a_proper_reply_is_read_alike_and_a_request_carries_as_many_images():
    asks = [Ask(replace(question(f"q{i}"), prompt=c), False, 0) for i, c in enumerate(HOSTILE.values())]
    with FakeServer() as fake:
        votes = load_judge(config_of_server(fake.url)).vote(asks)
    assert len(votes) == len(HOSTILE)
    assert all(vote.answers == {"motion": "first", "overall": "tie"} for vote in votes)
    for body in fake.bodies:
        assert len(body["messages"]) == 1 and len(images(body)) == 8
        assert [part["type"] for part in body["messages"][0]["content"]] == [
            part["type"] for part in fake.bodies[0]["messages"][0]["content"]
        ]


@given(st.text(alphabet="<>[]|/: \n\u226e\u0338\uff1cAIMGfirstecond", max_size=40) | st.text(max_size=40))
def test_what_is_neutral_stays_neutral(text):
    clean = neutralise(text, SPECIAL_TOKENS)
    assert neutralise(clean, SPECIAL_TOKENS) == clean
    assert not set("<>\u226e\u226f\n\x00") & set(clean) and not any(
        token in clean for token in SPECIAL_TOKENS
    )
    caption = caption_of(ask_about(text), Layout(), SPECIAL_TOKENS)
    assert "first:" not in caption.lower() and "second:" not in caption.lower()


def test_control_words_that_nobody_listed_lose_their_brackets():
    assert neutralise("[TOOL_CALLS] a [/B2] \uff3bEND\uff3d") == "(TOOL_CALLS) a (/B2) (END)"


def test_harmless_captions_stay_as_they_were_written():
    for caption in (
        "a dog (brown) runs 3.5 m; then: it sits – at 10:30, \u201cquietly\u201d!",
        "the first box, the second ring",
        "ein M\u00e4dchen in Z\u00fcrich; \u4e00\u53ea\u732b\u5728\u8dd1",
        "a 16:9 shot [slow]",
    ):
        assert caption_of(ask_about(caption), Layout(), SPECIAL_TOKENS) == caption
