"""What the suite of real servers asks: the embedded judge about flawed clips; and how two judges compare."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

import loop.embedded
from loop.embedded import judge_model, world
from reward.config import CORRUPTIONS, JudgeConfig
from reward.known_answers import make_known_answers
from reward.question import Ask, Vote
from reward.voting import make_asks
from tests.test_embedded_judge import known_sources

JUDGE = Path(loop.embedded.__file__).parent / "tiny-judge"
HAS_GPU = shutil.which("nvidia-smi") is not None
# chunked prefill and a request's seed together end vLLM 0.32 on a CPU; prompts here are shorter than a block
ON_CPU = {"enable-chunked-prefill": False, "max-num-batched-tokens": 8192, "block-size": 32}
CPU_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": 1, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def command(name: str) -> str:
    """A command of the servers' environment, which `make test-servers` builds and names."""
    folder = os.environ.get("RETAKE_SERVERS")
    assert folder, "RETAKE_SERVERS is not set; run this suite by make test-servers"
    return str(Path(folder).absolute() / "bin" / name)


def judge_config(**changes: object) -> JudgeConfig:
    settings = {
        "model": str(JUDGE),
        "instructions": judge_model.INSTRUCTIONS,
        "frame_size": world.SIZE,
        "time_stamps": False,
        "max_new_tokens": 48,
        "dtype": "float32",
        "batch_size": 128,
    }
    return JudgeConfig.model_validate({**settings, **changes})


def vllm_config(folder: Path, arguments: dict | None = None, **server: object) -> JudgeConfig:
    vllm = {
        "executable": command("vllm"),
        "arguments": {"enforce-eager": True, **({} if HAS_GPU else ON_CPU), **(arguments or {})},
        "environment": {}
        if HAS_GPU
        else {"VLLM_CPU_KVCACHE_SPACE": 1, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        "log": str(folder / "vllm.log"),
    }
    return judge_config(type="vllm", vllm=vllm, server={"logprobs": True, **server})


def make_questions(num: int, num_ballots: int) -> list[Ask]:
    names = [name for name in CORRUPTIONS if name != "reverse"]
    known = make_known_answers(
        known_sources("calibrate", np.random.default_rng(7)), num, seed=5, corruptions=names
    )
    return [ask for k in known for ask in make_asks(k.question, num_ballots)]


def words(vote: Vote) -> tuple[str, ...]:
    """All that a reply says."""
    return (vote.reasoning, str(vote.answers), str(vote.abstention))


def difference(one: list[Vote], other: list[Vote], num_draws: int = 1000) -> float:
    """p of the permutation test that two judges draw from one distribution of "overall" in each order.

    The statistic is the total variation distance of the counts, summed over questions and orders.
    """
    cells = [_answers(one), _answers(other)]
    assert set(cells[0]) == set(cells[1])
    rng = np.random.default_rng(0)

    def distance(pairs: list[tuple[list[str], list[str]]]) -> float:
        counts = [(Counter(a), Counter(b)) for a, b in pairs]
        return sum(abs(a[w] / a.total() - b[w] / b.total()) for a, b in counts for w in a | b)

    seen = [(cells[0][key], cells[1][key]) for key in cells[0]]
    found = distance(seen)
    larger = 0
    for _ in range(num_draws):
        mixed = []
        for a, b in seen:
            drawn = rng.permutation([*a, *b]).tolist()
            mixed.append((drawn[: len(a)], drawn[len(a) :]))
        larger += distance(mixed) >= found - 1e-9
    return (larger + 1) / (num_draws + 1)


def _answers(votes: list[Vote]) -> dict[tuple[str, bool], list[str]]:
    cells = defaultdict(list)
    for vote in votes:
        cells[vote.question_id, vote.swapped].append(vote.answers["overall"] if vote.answers else "none")
    return cells


def log_probability_gaps(one: list[Vote], other: list[Vote]) -> list[float]:
    """|difference| in nats of the log-probabilities of replies that both gave to a question in one order."""
    known = {(v.question_id, v.swapped, *words(v)): v.log_probability for v in one if v.answers}
    keys = [((v.question_id, v.swapped, *words(v)), v.log_probability) for v in other]
    return [abs(value - known[key]) for key, value in keys if key in known]


def children(pid: int) -> list[int]:
    """Processes that descend from `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        if parent == pid:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found
