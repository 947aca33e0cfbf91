"""A real `vllm serve`, with the embedded judge's weights. Opt-in: make test-servers."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from reward.judge import load_judge
from tests.servers.real import (
    HAS_GPU,
    children,
    difference,
    judge_config,
    log_probability_gaps,
    make_questions,
    vllm_config,
    words,
)
from tests.test_judge_vllm import gone, lives

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1800)]

NUM_QUESTIONS, NUM_BALLOTS = 16, 8


@pytest.fixture(scope="module")
def asked():
    return make_questions(NUM_QUESTIONS, NUM_BALLOTS)


@pytest.fixture(scope="module")
def in_process(asked):
    return load_judge(judge_config()).vote(asked)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A judge whose votes of one order are one request, with prefix caching."""
    judge = load_judge(
        vllm_config(tmp_path_factory.mktemp("served"), {"enable-prefix-caching": True}, requests="one_order")
    )
    yield judge
    guard = judge.server.process._guard.pid
    processes = children(guard)
    assert len(processes) >= 2 and all(map(lives, processes))  # the server and its engine
    judge.close()
    assert gone([guard, *processes])


@pytest.fixture(scope="module")
def votes(served, asked):
    return served.vote(asked)


def requests(judge) -> int:
    """How many the server has answered, by its own log."""
    return len(
        re.findall(r'POST /v1/chat/completions HTTP/1.1" 200', judge.server.process.log_path.read_text())
    )


def cached(judge) -> float:
    """Tokens of prompts that were found in the prefix cache."""
    url = judge.server.process.url.removesuffix("/v1") + "/metrics"
    text = urllib.request.urlopen(url, timeout=20).read().decode()
    return sum(float(n) for n in re.findall(r"^vllm:prefix_cache_hits_total\S* (\S+)$", text, re.MULTILINE))


def test_verdicts_are_distributed_as_in_process(in_process, votes):
    """Sampling error alone is between them; and where both wrote the same reply it was equally probable."""
    assert difference(in_process, votes) > 0.01
    gaps = log_probability_gaps(in_process, votes)
    assert len(gaps) > 50 and max(gaps) < 1e-3
    answered = [np.mean([v.answers is not None for v in of]) for of in (in_process, votes)]
    assert min(answered) > 0.95


def test_the_test_above_would_see_another_judge(votes, asked):
    """One that is shown fewer frames. Not in process against in process, where equal seeds draw alike."""
    other = load_judge(judge_config(num_frames=2)).vote(asked)
    assert difference(other, votes) < 0.01


def test_the_votes_of_one_order_are_one_request(served, asked, votes):
    assert requests(served) == 2 * NUM_QUESTIONS
    assert [(v.question_id, v.swapped, v.ballot) for v in votes] == [
        (a.question.id, a.swapped, a.ballot) for a in asked
    ]
    distinct = {(v.question_id, v.swapped, words(v)) for v in votes}
    assert len(distinct) > 4 * NUM_QUESTIONS  # the n replies are not one reply n times


def test_prefix_caching_changes_nothing_but_rounding(served, asked, votes, tmp_path):
    single = asked[: 2 * NUM_BALLOTS * 8]
    one_vote = vllm_config(
        tmp_path, {"enable-prefix-caching": False}, requests="one_vote", max_concurrency=32
    )
    off = load_judge(one_vote)
    try:
        without = off.vote(single)
        assert cached(off) == 0
    finally:
        off.close()
    settings = {"base_url": served.server.process.url, "logprobs": True, "max_concurrency": 32}
    on = load_judge(judge_config(type="openai", model=served.model, server=settings))
    before = cached(served)
    with_cache = on.vote(single)
    assert cached(served) > before
    # each vote has the same seed in both: they differ only where rounding moves a draw over an edge
    assert np.mean([words(a) == words(b) for a, b in zip(without, with_cache, strict=True)]) > 0.97
    assert max(log_probability_gaps(without, with_cache)) < 1e-3
    assert difference(without, votes[: len(single)]) > 0.01  # a request a vote, or one for all of an order


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_killed_while_it_is_asked_nothing_is_lost_and_nothing_counted_twice(asked, tmp_path, victim):
    settings = {"requests": "one_vote", "backoff_seconds": 0.1}
    judge = load_judge(vllm_config(tmp_path, {"enable-prefix-caching": True}, **settings))
    some = asked[: 2 * NUM_BALLOTS * 4]
    killed: list[int] = []

    def kill() -> None:
        while not judge.server.process.log_path.exists() or requests(judge) < 10:
            time.sleep(0.05)
        server, *others = children(judge.server.process._guard.pid)
        engines = [pid for pid in others if "Engine" in Path(f"/proc/{pid}/comm").read_text()]
        killed.extend([server, *others])
        os.kill(server if victim == "server" else engines[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    try:
        votes = judge.vote(some)
        assert killed and gone(killed)
        assert judge.server.process._num_starts == 2
        again = judge.vote(some)  # undisturbed
    finally:
        judge.close()
    assert [(v.question_id, v.swapped, v.ballot) for v in votes] == [
        (a.question.id, a.swapped, a.ballot) for a in some
    ]
    assert np.mean([words(a) == words(b) for a, b in zip(votes, again, strict=True)]) > 0.97


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max-model-len": 10**7}, "judge.vllm.arguments.max-model-len"),
        ({"no-such-thing": 1}, "correct judge.vllm.arguments"),
        pytest.param(
            {"kv-cache-memory-bytes": 4096},
            "judge.vllm.arguments.gpu-memory-utilization",
            marks=pytest.mark.skipif(not HAS_GPU, reason="on a CPU vLLM goes by VLLM_CPU_KVCACHE_SPACE"),
        ),
    ],
)
def test_a_start_that_fails_names_the_key(asked, tmp_path, arguments, message):
    judge = load_judge(vllm_config(tmp_path, arguments))
    with pytest.raises(ValueError, match=r"ended before it answered") as caught:
        judge.vote(asked[:1])
    judge.close()
    assert message in str(caught.value) and str(tmp_path / "vllm.log") in str(caught.value)
