"""A campaign whose judge a real `vllm serve` serves, from the embedded weights. Opt-in: make test-servers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from loop.campaign import run_campaign
from loop.config_file import load_config
from loop.store import Store
from tests.servers.real import CPU_VARIABLES, HAS_GPU, ON_CPU, command
from tests.test_kill import CONFIG

pytestmark = [pytest.mark.servers, pytest.mark.timeout(3600)]


def test_a_round_with_a_served_judge_trains_serves_and_asks_it(tmp_path):
    """Every stage that asks starts a server of its own with the weights in force, and leaves none behind."""
    path = tmp_path / "served.yaml"
    path.write_text(CONFIG)
    vllm = {
        "executable": command("vllm"),
        "arguments": {"enforce-eager": True, **({} if HAS_GPU else ON_CPU)},
        "environment": {} if HAS_GPU else CPU_VARIABLES,
    }
    settings = [
        "judge.type=vllm",
        f"judge.vllm={json.dumps(vllm)}",
        "judge.server={requests: one_order, logprobs: true}",
        "judge.dtype=float32",
        "rounds=1",
        "gate.enabled=false",
    ]
    run = tmp_path / "run"
    run_campaign(load_config(path, settings), Store(run))

    votes = pq.ParquetFile(run / "round-001/label/votes.parquet").read().to_pylist()
    assert len(votes) > 20 and sum(v["answers"] is not None for v in votes) > 0.9 * len(votes)
    keys = [(v["question_id"], v["swapped"], v["ballot"]) for v in votes]
    assert len(set(keys)) == len(keys)  # none counted twice
    assert all(v["log_probability"] < 0 for v in votes if v["answers"] is not None)

    trained = run / "round-001/train_judge/judge"
    identities = {
        row["judge"]
        for k in (0, 1)
        for row in pq.ParquetFile(run / f"round-00{k}/evaluate/metrics.parquet").read().to_pylist()
        if row["metric"] == "judge_accuracy"
    }
    assert (trained / "model.safetensors").is_file()
    assert len(identities) == 2  # the base's evaluation asked the judge as it came, round 1 the trained one

    assert not any(str(trained).encode() in words for words in command_lines())  # the server of it is gone
    assert not list(run.rglob("vllm.log"))  # went with the scratch folders


def command_lines() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            yield (process / "cmdline").read_bytes()
