"""What the controller costs: a round of many takes, with the models' work left out.

    python benchmarks/controller.py [--takes 10000 100000] [--ballots 1] [--repeats 1] [--out DIR]

A campaign of one round: prepare → evaluate → … → sample → label → pair → update → evaluate → gate, with the
real planning of takes and questions, the real asking, folding, pairs, tables, hashes and commits, and the
real launch, resume and manifests. Left out are the models: a take is a file of 256 bytes in place of a video,
the judge answers at once, an update reads its pairs and writes a small file. Every prompt has 8 takes and one
anchor; a prompt's first 6 pairs of takes are compared, and one take with its anchor (the defaults).

Every stage runs in a forked child, so that its memory is its own. Nothing is drawn but by seed 0. Prints JSON
rows:
  stage   seconds on the clock with its commit; seconds of the processor and the most memory of its function,
          beyond what it began with (some 70 MB of that are libraries that it loads first)
  round   all of it, against what the models would take: --take-seconds and --vote-seconds on one device each,
          shared by --devices
  report  report.html of the whole run, with clips of 256 bytes; memory beyond its libraries
  resume  the same command with one round more, up to the first stage that has work: manifests and sizes;
          apart from that, hashing what that stage reads. The least of three
"cpu" is what an idle machine would take, but for the waits of its disk; on a busy one "seconds" is more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import loop.steps.label
import loop.steps.pair
import loop.steps.sample
from loop.campaign import run_campaign
from loop.config import CampaignConfig
from loop.config_file import LoadedConfig
from loop.progress import Display
from loop.report import write_report
from loop.stages import STAGES, Stage, StageContext
from loop.steps import evaluate as evaluating
from loop.steps.common import clip_paths, read_table, write_json, write_table
from loop.steps.judging import ask, fold_all, open_judge, write_verdicts
from loop.steps.prepare import ANCHORS, PROMPTS
from loop.steps.questions import StoredClip, make_question
from loop.steps.sample import TAKES, Take, film
from loop.store import Store
from reward.calibration import save
from reward.config import VotingConfig
from reward.judge_config import JudgeConfig
from reward.question import Ask, Reply, Vote, vote_of

TAKES_PER_PROMPT = 8
HELD_OUT = {"calibrate": 12, "gate": 12, "report": 24}  # prompts of the other parts
CLIP_BYTES = 256
WORDS = "The first clip keeps its shape while it moves, the second one flickers and loses a wheel at the end."


class StubJudge:
    """Answers at once, by hash, with a reasoning of usual length; abstains in one vote of fifty."""

    def __init__(self, config: JudgeConfig) -> None:
        self.dimensions = config.dimensions

    def vote(self, asks: list[Ask]) -> list[Vote]:
        return [self._vote(ask) for ask in asks]

    def _vote(self, ask: Ask) -> Vote:
        draw = hashlib.sha256(f"{ask.question.id} {ask.ballot} {ask.swapped}".encode()).digest()
        if draw[0] < 5:
            return vote_of(ask, Reply(None, "", "empty"))
        # eight questions of ten are clear in both orders, the others are coins
        clear = "first" if int(ask.question.id[-1], 16) % 2 else "second"
        shown = clear if not ask.swapped else {"first": "second", "second": "first"}[clear]
        said = shown if int(ask.question.id[-2], 16) < 13 else ("first", "second", "tie")[draw[1] % 3]
        reasoning = f"{WORDS} {draw[2]} of 255 points speak for it."
        return vote_of(ask, Reply(dict.fromkeys(self.dimensions, said), reasoning, None), -float(draw[3]))

    def identity(self) -> str:
        return "stub"

    def close(self) -> None:
        pass


def config_of(num_takes: int, num_ballots: int) -> CampaignConfig:
    return CampaignConfig.model_validate(
        {
            "name": "controller",
            "rounds": 1,
            "generator": {"model": "stub/stub"},
            "judge": {"type": "python", "target": f"{__name__}:StubJudge"},
            "train_judge": {"num_steps": 0},
            "sample": {
                "fresh": {"num_prompts": num_takes // TAKES_PER_PROMPT, "takes_per_prompt": TAKES_PER_PROMPT},
                "guided": {"num_anchors": 0},
            },
            "label": {"voting": {"num_ballots": num_ballots}},
            "certainty": {"min_votes": 2},
            "pair": {"strategy": "all"},
            "launch": {"min_free_gb": 0},
        }
    )


def write_clip_bytes(path: Path, name: str) -> None:
    """Bytes that no two clips share, whole or not at all, as write_clip does it."""
    temporary = path.with_suffix(".part")
    temporary.write_bytes(hashlib.sha256(name.encode()).digest() * (CLIP_BYTES // 32))
    os.replace(temporary, path)


def stub_film(config: CampaignConfig, model: Any, shard: list[Take], paths: list[Path], anchors: Any) -> None:
    for take, path in zip(shard, paths, strict=True):
        write_clip_bytes(path, f"{path.parent} {take.take_id} {take.seed}")


def prepare(ctx: StageContext) -> None:
    parts = {"train": ctx.config.sample.fresh.num_prompts, **HELD_OUT}
    (ctx.out / "clips").mkdir(exist_ok=True)
    anchors, prompts = [], []
    for part, num in parts.items():
        for n in range(num):
            text = (
                f"{part} prompt number {n}: a red bus turns left at the corner of a wet street in the evening"
            )
            name = f"{part}-{n:06d}"
            file = f"clips/{name}.mp4"
            write_clip_bytes(ctx.out / file, name)
            row = {"anchor_id": name, "file": file, "caption": text, "source": name, "category": f"c{n % 8}"}
            anchors.append({**row, "part": part, "sha256": ""})
            prompts.append(
                {"prompt_id": f"prompt-{name}", "text": text, "category": f"c{n % 8}", "part": part}
            )
    write_table(ctx.out / "anchors.parquet", anchors, ANCHORS)
    write_table(ctx.out / "prompts.parquet", prompts, PROMPTS)
    write_json(ctx.out / "clip.json", {"frames_per_segment": 4, "latent_segments": [0, 0, 1, 2, 3]})


def judge_gate(ctx: StageContext) -> None:
    save({}, ctx.out / "calibrators.json")
    write_json(ctx.out / "gate.json", {"use": True, "reason": "a stub"})


def update(ctx: StageContext) -> None:
    """What the real stage reads before it trains."""
    rows = read_table(ctx.inputs["pair"] / "pairs.parquet")
    paths = clip_paths(ctx, "prepare", "sample")
    names = sorted({r["winner_id"] for r in rows} | {r["loser_id"] for r in rows})
    assert all(paths[name] for name in names)
    write_clip_bytes(ctx.out / "checkpoint.safetensors", f"{len(rows)} pairs")
    write_json(ctx.out / "metrics.json", {"num_pairs": len(rows)})


def evaluate(ctx: StageContext) -> None:
    """Films the report prompts and compares them with the base's, without the measures on pixels."""
    takes = evaluating.plan(ctx)
    film(ctx, None, takes, clip_paths(ctx, "prepare"))  # type: ignore[arg-type]
    write_table(ctx.out / "takes.parquet", ({**vars(t), "file": t.file} for t in takes), TAKES)
    rows = evaluating.Rows(ctx)
    if "base" in ctx.inputs:
        judge = open_judge(ctx, ctx.inputs.get("judge"))
        questions = [
            make_question(
                "take_take", t.prompt,
                (StoredClip(f"new/{t.take_id}", ctx.out / t.file),
                 StoredClip(f"base/{t.take_id}", ctx.inputs["base"] / t.file)),
                ctx.config.judge.dimensions, scope=f"evaluate {ctx.round}", group=t.prompt_id,
            )
            for t in takes
        ]  # fmt: skip
        verdicts = fold_all(questions, ask(ctx, judge, questions, VotingConfig(num_ballots=2), "base"))
        write_verdicts(ctx.out / "verdicts-win_rate_vs_base.parquet", questions, verdicts)
        scores = [v.dimensions["overall"].score for v in verdicts]
        rows.add_by_category("win_rate_vs_base", scores, takes, judge="stub")
    write_table(ctx.out / "metrics.parquet", rows.rows, evaluating.METRICS)


def small(ctx: StageContext) -> None:
    write_json(ctx.out / "gate.json", {"keep": True, "reason": "a stub"})


FUNCTIONS: dict[str, Callable[[StageContext], None]] = {
    "prepare": prepare,
    "train_judge": small,
    "judge_gate": judge_gate,
    "sample": loop.steps.sample.run,
    "label": loop.steps.label.run,
    "pair": loop.steps.pair.run,
    "update": update,
    "evaluate": evaluate,
    "gate": small,
}


class FirstWork(BaseException):
    """A stage that is not committed yet was reached."""


@dataclass(frozen=True)
class Cost:
    """What a stage function took: seconds of the processor, bytes beyond what it began with."""

    cpu: float
    memory: int


def forked(
    function: Callable[[StageContext], None], name: str, found: dict[str, Cost], ctx: StageContext
) -> None:
    """Runs a stage function in a child and notes its cost."""
    found[f"{ctx.round}/{name}"] = in_child(partial(function, ctx), name)


def in_child(function: Callable[[], object], name: str) -> Cost:
    """What a function takes in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            began = memory("VmRSS", reset=True)
            function()
            os.write(write, str(memory("VmHWM") - began).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status, used = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"{name} failed"
    return Cost(used.ru_utime + used.ru_stime, int(said))


def cpu_seconds() -> float:
    """Of this process and the children that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def memory(key: str, reset: bool = False) -> int:
    """Bytes of this process now (VmRSS) or at its most (VmHWM), which `reset` starts again."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def stages_with(found: dict[str, Cost]) -> dict[str, Stage]:
    return {
        name: Stage(partial(forked, function, name, found), STAGES[name].inputs, STAGES[name].config)
        for name, function in FUNCTIONS.items()
    }


def no_report(root: Path) -> Path:
    return root


def run(root: Path, config: CampaignConfig, stages: dict[str, Stage]) -> None:
    run_campaign(
        LoadedConfig(config, ""), Store(root), stages, no_report, Display(config.rounds, Console(quiet=True))
    )


def measure_round(root: Path, config: CampaignConfig) -> list[dict[str, Any]]:
    """The whole campaign, once: one row a stage, and their sum."""
    found: dict[str, Cost] = {}
    before = memory("VmRSS", reset=True)
    began, spent = time.perf_counter(), cpu_seconds()
    run(root, config, stages_with(found))
    whole, cpu = time.perf_counter() - began, cpu_seconds() - spent
    events = [e for e in Store(root).events() if e["event"] == "stage_committed"]
    clock = {f"{event['round']}/{event['stage']}": event["seconds"] for event in events}
    rows: list[dict[str, Any]] = [
        {"stage": name, **_rounded(clock[name], cost.cpu, cost.memory)} for name, cost in found.items()
    ]
    return [*rows, {"stage": "all", **_rounded(whole, cpu, memory("VmHWM") - before)}]


def _rounded(seconds: float, cpu: float, num_bytes: int) -> dict[str, float]:
    return {"seconds": round(seconds, 2), "cpu": round(cpu, 2), "MB": round(num_bytes / 1e6)}


def measure_report(root: Path) -> dict[str, Any]:
    """report.html of the run, as it is written at each end of the campaign."""
    began = time.perf_counter()
    cost = in_child(partial(write_report, root), "report")
    row = _rounded(time.perf_counter() - began, cost.cpu, cost.memory)
    return {"report": f"{(root / 'report.html').stat().st_size / 1e6:.2f} MB", **row}


def measure_resume(root: Path, config: CampaignConfig) -> dict[str, Any]:
    """Until the first stage with work starts, without the hashes of what it reads."""
    hashing = {"seconds": 0.0, "cpu": 0.0}
    check = Store.check_hashes

    def timed(self: Store, *arguments: Any, **more: Any) -> None:
        began, spent = time.perf_counter(), cpu_seconds()
        check(self, *arguments, **more)
        hashing["seconds"] += time.perf_counter() - began
        hashing["cpu"] += cpu_seconds() - spent

    def reached(ctx: StageContext) -> None:
        raise FirstWork

    stages = {name: Stage(reached, STAGES[name].inputs, STAGES[name].config) for name in STAGES}
    before = memory("VmRSS", reset=True)
    Store.check_hashes = timed  # type: ignore[method-assign]
    began, spent = time.perf_counter(), cpu_seconds()
    try:
        run(root, config.model_copy(update={"rounds": 2}), stages)
    except FirstWork:
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - spent
    finally:
        Store.check_hashes = check  # type: ignore[method-assign]
    shutil.rmtree(root / "round-002")
    start = _rounded(seconds - hashing["seconds"], cpu - hashing["cpu"], memory("VmHWM") - before)
    return {"resume": "manifests and sizes", **start, "then hashing": round(hashing["seconds"], 2)}


def share(whole: dict[str, Any], num_takes: int, num_votes: int, args: argparse.Namespace) -> dict[str, Any]:
    models = (num_takes * args.take_seconds + num_votes * args.vote_seconds) / args.devices
    shares = {name: f"{100 * whole[name] / (whole[name] + models):.2f} %" for name in ("seconds", "cpu")}
    return {"round": f"{num_takes} takes, {num_votes} votes", "model seconds": round(models), **shares}


def measure(num_takes: int, args: argparse.Namespace) -> None:
    """Prints the rows of one size."""
    config = config_of(num_takes, args.ballots)
    best: list[dict[str, Any]] = []
    resumed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.out, prefix="controller-") as folder:
        for repeat in range(args.repeats):
            root = Path(folder) / f"run-{repeat}"
            rows = measure_round(root, config)
            if not best or rows[-1]["cpu"] < best[-1]["cpu"]:
                best = rows
            report = measure_report(root)
            resumed += [measure_resume(root, config) for _ in range(3)]
            num_votes = json.loads((root / "round-001/label/metrics.json").read_text())["num_votes"]
        least = min(resumed, key=lambda row: row["cpu"])
        for row in [*best, share(best[-1], num_takes, num_votes, args), report, least]:
            print(json.dumps({"takes": num_takes, **row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--takes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--ballots", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="the one with the least work is printed")
    parser.add_argument("--take-seconds", type=float, default=60.0, help="of one device, at full size")
    parser.add_argument("--vote-seconds", type=float, default=1.0, help="likewise")
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--out", type=Path, help="where runs are made, and removed; else a temporary folder")
    args = parser.parse_args()
    loop.steps.sample.load_generator = lambda ctx, update: None  # type: ignore
    loop.steps.sample._film_shard = stub_film
    for num_takes in args.takes:
        measure(num_takes, args)


if __name__ == "__main__":
    main()
