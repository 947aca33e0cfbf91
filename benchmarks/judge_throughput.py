"""Decisions a second of a judge behind vLLM: votes that share their prompt against a request for every vote.

    python benchmarks/judge_throughput.py --executable .venv-vllm/bin/vllm [--cpu] [--questions 8]

A decision is a question with all its votes, `--ballots` in each order. Arms, on one server, in turns, each on
questions of its own:
  one_vote alone     a request a vote; a salt for each keeps it from finding its prompt in the prefix cache
  one_vote           a request a vote, with prefix caching as vLLM has it by default
  one_order          the votes of one order in one request with n > 1, likewise
All requests of an arm are under way at once. vLLM's cache of processed images helps all arms, the first most.

The model is the embedded judge, shown larger frames than it was made for, so that its prompts are longer than
its replies, as those of real judges are; its answers mean nothing here. --model takes another. Prints one
JSON row an arm: seconds of each repeat, decisions a second of the median one, the ratio to the first arm.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import loop.embedded as embedded
from reward.config import DIMENSIONS, JudgeConfig
from reward.judge import load_judge
from reward.judges.vllm import VllmJudge
from reward.question import Ask, Frames, Question
from reward.voting import make_asks

# chunked prefill and a request's seed together end vLLM 0.32 on a CPU
ON_CPU = {
    "enforce-eager": True,
    "enable-chunked-prefill": False,
    "max-num-batched-tokens": 8192,
    "block-size": 32,
}
CPU_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
ARMS = ("one_vote alone", "one_vote", "one_order")


@dataclass(frozen=True)
class Noise:
    """A clip of its own for every key."""

    key: str
    side: int

    def __call__(self) -> Frames:
        rng = np.random.default_rng(zlib.crc32(self.key.encode()))
        small = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
        return Frames(small.repeat(self.side // 8, 1).repeat(self.side // 8, 2), 8.0)


def larger_judge(folder: Path, side: int) -> Path:
    """The embedded judge, whose processor keeps frames of `side` pixels and does not shrink them to 32."""
    shutil.copytree(Path(embedded.__file__).parent / "tiny-judge", folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"] = {"shortest_edge": side**2, "longest_edge": side**2}
    path.write_text(json.dumps(settings))
    return folder


def make_questions(name: str, num: int, side: int) -> list[Question]:
    return [
        Question(
            f"{name} {i}", "take_take", "a red ring moves left",
            Noise(f"{name} {i} one", side), Noise(f"{name} {i} other", side), DIMENSIONS,
        )
        for i in range(num)
    ]  # fmt: skip


def split(arm: str, asks: list[Ask]) -> dict[str, list[Ask]]:
    """The asks by the salt that their requests carry; "" = none."""
    if arm != "one_vote alone":
        return {"": asks}
    ballots = sorted({ask.ballot for ask in asks})
    return {f"ballot {b}": [ask for ask in asks if ask.ballot == b] for b in ballots}


def seconds_for(arm: str, asks: list[Ask], config: dict[str, Any], judge: VllmJudge) -> float:
    """All asks at once; the judges of an arm differ by the salt alone."""
    server = {"base_url": judge.server.url, "max_concurrency": len(asks), "timeout_seconds": 3600}
    parts = []
    for salt, of in split(arm, asks).items():
        body = {"cache_salt": salt} if salt else {}
        settings = {**config, "server": {**server, "requests": arm.split()[0], "extra_body": body}}
        parts.append((load_judge(JudgeConfig(**{**settings, "type": "openai", "model": judge.model})), of))
    began = time.perf_counter()
    with ThreadPoolExecutor(len(parts)) as pool:
        votes = [vote for of in pool.map(lambda part: part[0].vote(part[1]), parts) for vote in of]
    assert len(votes) == len(asks)
    return time.perf_counter() - began


def measure(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, list[float]]:
    vllm = {
        "executable": args.executable,
        "arguments": {"enable-prefix-caching": True, **(ON_CPU if args.cpu else {})},
        "environment": CPU_VARIABLES if args.cpu else {},
    }
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    judge = load_judge(JudgeConfig(**config, type="vllm", vllm=vllm))
    assert isinstance(judge, VllmJudge)
    try:
        judge.vote(make_asks(make_questions("warm", 1, args.side)[0], 1))
        for repeat in range(args.repeats):
            for arm, of in found.items():
                asked = make_questions(f"{arm} {repeat}", args.questions, args.side)
                asks = [ask for question in asked for ask in make_asks(question, args.ballots)]
                of.append(seconds_for(arm, asks, config, judge))
                print(f"{arm}: {of[-1]:.1f} s", flush=True)
    finally:
        judge.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--executable", default=".venv-vllm/bin/vllm")
    parser.add_argument("--cpu", action="store_true", help="with what vLLM's build for CPUs needs")
    parser.add_argument("--model", help="a folder or hub id; default: the embedded judge")
    parser.add_argument("--side", type=int, default=256, help="pixels of a frame, a multiple of 32")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--ballots", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {"num_frames": 8, "max_new_tokens": 48, "frame_size": args.side}
        config["model"] = args.model or str(larger_judge(Path(folder) / "judge", args.side))
        if args.model is None:
            config |= {"instructions": "compare", "time_stamps": False, "dtype": "float32"}
        found = measure(args, config)
    rates = {arm: args.questions / statistics.median(of) for arm, of in found.items()}
    for arm, rate in rates.items():
        row: dict[str, Any] = {"arm": arm, "seconds": [round(s, 2) for s in found[arm]]}
        row |= {"decisions_per_second": round(rate, 4), "ratio": round(rate / rates[ARMS[0]], 2)}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
