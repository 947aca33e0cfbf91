"""A real `transformers serve`, with the embedded judge's weights. Opt-in: make test-servers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from reward.judge import load_judge
from reward.judges.server import run_apart
from reward.judges.server_process import ServerProcess
from reward.vllm_config import VllmConfig
from tests.servers.real import JUDGE, command, difference, judge_config, make_questions, words

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]

SAMPLING = {"generation_config": json.dumps({"do_sample": True, "top_k": 0})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded judge, with what `transformers serve` needs to know of its chat template.

    It takes the assistant's part of a reply out by a template that it knows of Qwen's models; ours differs.
    """
    folder = tmp_path_factory.mktemp("served") / "judge"
    shutil.copytree(JUDGE, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["response_template"] = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>",
        "fields": {"content": {"close": "<|im_end|>", "content": "text"}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")  # without such a folder its /models answers 500
    settings = VllmConfig(
        executable=command("transformers"),
        environment={"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"},
        log=str(hub / "serve.log"),
    )

    def serve(executable: str, port: int) -> list[str]:
        words = f"--host 127.0.0.1 --port {port} --dtype float32"
        return [executable, "serve", str(folder), *words.split()]

    process = ServerProcess(settings, None, serve, "transformers serve")

    async def ready() -> str:
        return await process.ready(after_trouble=False)

    yield run_apart(ready)
    process.close()


@pytest.fixture(scope="module")
def asked():
    return make_questions(6, 4)


def one_order(asked):
    """The votes on one message: the first question's in its own order."""
    return [ask for ask in asked if ask.question.id == asked[0].question.id and not ask.swapped]


def behind(url, folder, **server):
    settings = {"base_url": url, "max_retries": 1, "timeout_seconds": 600, **server}
    return load_judge(judge_config(type="openai", model=str(folder), server=settings))


def test_verdicts_are_distributed_as_in_process(url, folder, asked):
    votes = behind(url, folder, extra_body=SAMPLING).vote(asked)
    assert np.mean([v.answers is not None for v in votes]) > 0.9
    assert difference(load_judge(judge_config()).vote(asked), votes) > 0.01


def test_without_being_told_to_sample_it_does_not(url, folder, asked):
    """Its temperature is heard only where the model's own generation config samples."""
    votes = behind(url, folder).vote(one_order(asked))
    assert len({words(v) for v in votes}) == 1


def test_a_seed_holds_for_one_request_at_a_time(url, folder, asked):
    one, other = (
        behind(url, folder, extra_body=SAMPLING, max_concurrency=1).vote(one_order(asked)) for _ in "ab"
    )
    assert [words(v) for v in one] == [words(v) for v in other]
    assert len({words(v) for v in one}) > 1


def test_several_votes_in_one_request_are_refused_by_us(url, folder, asked):
    """It ignores n without a word; we see that a reply is missing."""
    with pytest.raises(ValueError, match=r"set judge\.server\.requests to one_vote"):
        behind(url, folder, requests="one_order", extra_body=SAMPLING).vote(one_order(asked))
