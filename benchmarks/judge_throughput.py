"""Decisions a second of a judge behind vLLM: votes that share their prompt against a request for every vote.

    python benchmarks/judge_throughput.py --executable .venv-vllm/bin/vllm [--cpu] [--side 256]

A decision is a question with all its votes, `--ballots` in each order. Arms, each on questions of its own:
  one_vote, nothing shared    a request a vote; no prefix caching, no cache of processed images
  one_order, nothing shared   the votes of one order in one request, on the same server
  one_vote, shared            a request a vote; prefix caching and image cache, as vLLM has them by default
  one_order, shared           both

The model is the embedded judge, shown larger frames than it was made for, so that its prompts are many times
longer than its replies, as those of real judges are; its answers mean nothing here. --model takes another.
The arms of a server are measured in turns, the median repeat counts. Prints one JSON row an arm.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import loop.embedded as embedded
from reward.config import DIMENSIONS, JudgeConfig
from reward.judge import load_judge
from reward.judges.vllm import VllmJudge
from reward.question import Frames, Question
from reward.voting import make_asks

SHARED = {"nothing shared": {"enable-prefix-caching": False, "mm-processor-cache-gb": 0}, "shared": {}}
ON_CPU = {
    "enforce-eager": True,
    "enable-chunked-prefill": False,
    "max-num-batched-tokens": 8192,
    "block-size": 32,
}
CPU_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


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


def questions(name: str, num: int, side: int) -> list[Question]:
    return [
        Question(
            f"{name} {i}", "take_take", "a red ring moves left",
            Noise(f"{name} {i} one", side), Noise(f"{name} {i} other", side), DIMENSIONS,
        )
        for i in range(num)
    ]  # fmt: skip


def seconds_for(judge: VllmJudge, requests: str, asked: list[Question], ballots: int) -> float:
    """One call of the judge, asking as `judge.server.requests` says."""
    judge.settings = judge.settings.model_copy(update={"requests": requests})
    asks = [ask for question in asked for ask in make_asks(question, ballots)]
    began = time.perf_counter()
    judge.vote(asks)
    return time.perf_counter() - began


def measure(args: argparse.Namespace, config: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for sharing, arguments in SHARED.items():
        vllm = {
            "executable": args.executable,
            "arguments": {**(ON_CPU if args.cpu else {}), **arguments},
            "environment": CPU_VARIABLES if args.cpu else {},
        }
        judge = load_judge(JudgeConfig(**config, type="vllm", vllm=vllm, server={"max_concurrency": 64}))
        assert isinstance(judge, VllmJudge)
        found: dict[str, list[float]] = {"one_vote": [], "one_order": []}
        try:
            judge.vote(make_asks(questions("warm", 1, args.side)[0], 1))
            for repeat in range(args.repeats):
                for requests, of in found.items():
                    asked = questions(f"{sharing} {requests} {repeat}", args.questions, args.side)
                    of.append(seconds_for(judge, requests, asked, args.ballots))
        finally:
            judge.close()
        for requests, of in found.items():
            seconds = statistics.median(of)
            row = {"arm": f"{requests}, {sharing}", "seconds": [round(s, 2) for s in of]}
            rows.append({**row, "decisions_per_second": args.questions / seconds})
    return rows


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
        model = args.model or str(larger_judge(Path(folder) / "judge", args.side))
        config = {"model": model, "num_frames": 8, "max_new_tokens": 48, "frame_size": args.side}
        if args.model is None:
            config |= {"instructions": "compare", "time_stamps": False, "dtype": "float32"}
        rows = measure(args, config)
    slowest = rows[0]["decisions_per_second"]
    for row in rows:
        print(json.dumps({**row, "ratio": round(row["decisions_per_second"] / slowest, 2)}))


if __name__ == "__main__":
    main()
