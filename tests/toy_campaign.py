"""`retake` with toy stages that write a few bytes: run as a script it is the real command line around them.

TOY_KILL_AFTER=N kills the process with SIGKILL at the N-th step (a step: a toy file, a flush, a rename).
TOY_NAMED=1 gives the stages by name, as worker processes need them.
TOY_FAIL=round-stage makes that stage raise; TOY_HANG=round-stage makes it wait; TOY_REJECT=1,2 lists the
rounds whose update the gate rolls back, TOY_REJECT_JUDGE the rounds whose judge is not used.
"""

import functools
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop.campaign
import loop.store
from loop.cli import main
from loop.stages import STAGES, Stage, StageContext

CONFIG = """\
name: toy
rounds: 2
generator: {model: toy/toy}
judge: {model: toy/toy}
launch: {min_free_gb: 0}
"""
_steps = 0


def step() -> None:
    global _steps
    _steps += 1
    if _steps == int(os.environ.get("TOY_KILL_AFTER", "0")):
        os.kill(os.getpid(), signal.SIGKILL)


def toy_stage(name: str, context: StageContext) -> None:
    """Four shards that depend on all bytes of the inputs, a scratch file, and gate.json where one is due."""
    here = f"{context.round}-{name}"
    context.progress.start(4, "shards")
    context.log.info("hello from %s", here)
    if os.environ.get("TOY_FAIL") == here:
        raise ValueError("toy trouble")
    if os.environ.get("TOY_HANG") == here:
        context.log.info("process %d hangs", os.getpid())
        print("hanging", flush=True)
        time.sleep(60)
    read = hashlib.sha256(str(context.seed).encode())
    for folder in context.inputs.values():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            read.update(path.read_bytes())
    for shard in range(4):
        path = context.out / "shards" / f"{shard}.bin"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            partial = context.scratch / path.name
            partial.write_bytes(hashlib.sha256(read.digest() + bytes([shard])).digest() * 10)
            step()
            partial.rename(path)
        step()
        context.progress.advance()
    inputs = {key: "/".join(path.parts[-2:]) for key, path in sorted(context.inputs.items())}
    (context.out / "inputs.json").write_text(json.dumps(inputs))
    if name in ("gate", "judge_gate"):
        key, variable = ("keep", "TOY_REJECT") if name == "gate" else ("use", "TOY_REJECT_JUDGE")
        accepted = str(context.round) not in os.environ.get(variable, "").split(",")
        (context.out / "gate.json").write_text(json.dumps({key: accepted, "reason": "toy"}))


TOY_STAGES = {
    name: Stage(functools.partial(toy_stage, name), stage.inputs, stage.config)
    for name, stage in STAGES.items()
}


NAMED_STAGES = {
    name: Stage(f"tests.toy_campaign:{name}", stage.inputs, stage.config) for name, stage in STAGES.items()
}


def __getattr__(name: str) -> Callable[[StageContext], None]:
    """The function of a toy stage as a worker imports it."""
    if name not in STAGES:
        raise AttributeError(name)
    return functools.partial(toy_stage, name)


def toy_report(run_dir: Path) -> Path:
    (run_dir / "report.html").write_text("<html></html>")
    return run_dir / "report.html"


run_toy_campaign = functools.partial(loop.campaign.run_campaign, stages=TOY_STAGES, write_report=toy_report)


def tree(root: Path) -> dict[str, bytes]:
    """Every file that must be the same after an interruption, by relative path."""
    volatile = ("logs", "events.jsonl", "lock")
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path): (root / path).read_bytes() for path in files if path.parts[0] not in volatile}


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **more: Any) -> Any:
        step()
        return function(*args, **more)

    return counted


if __name__ == "__main__":
    stages = NAMED_STAGES if os.environ.get("TOY_NAMED") else TOY_STAGES
    loop.campaign.run_campaign = functools.partial(run_toy_campaign, stages=stages)  # type: ignore[assignment]
    loop.store._flush = _counted(loop.store._flush)
    loop.store.os.replace = _counted(os.replace)
    loop.store.shutil.rmtree = _counted(loop.store.shutil.rmtree)
    sys.exit(main())
