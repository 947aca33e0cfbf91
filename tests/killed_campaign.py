"""A real tiny campaign, run by the real command in forked children that die by SIGKILL where told to.

    python tests/killed_campaign.py DIR CONFIG                      one child, uninterrupted
    python tests/killed_campaign.py DIR CONFIG '{"0/prepare": [7, 20], …}'
                                                    dies at step 7, the next child at 20, …;
                                                    -7 is SIGTERM, a number above 0 SIGKILL
    python tests/killed_campaign.py DIR CONFIG '{"seed": 1, "most": 5}'
                                                    each child is killed from outside within 5 s of its life

Prints one JSON object: the steps of every stage by the child that ran it to its end, by name, where a child
died, and how many seconds all took. A step is a call of the stage's progress bar or a file that appears under
its name.
Forking after the imports makes a launch cost a second instead of ten.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import loop.steps.judging
from loop.cli import main
from loop.progress import Display, Progress
from loop.progress_file import FILE as PROGRESS
from loop.stages import STAGES
from tests.killing import AtRandom, kill_until_done

loop.steps.judging._SHARD = 8  # so that a few questions are several shards


class Steps:
    """Counts the steps of the running stage, and dies at one of them."""

    def __init__(self, root: Path, deaths: dict[str, list[int]]) -> None:
        self.root, self.deaths = root, deaths
        self.stage = ""
        self.taken: dict[str, list[str]] = {}

    def begin(self, stage: str) -> None:
        self.stage = stage
        self.taken[stage] = []

    def step(self, name: str) -> None:
        self.taken[self.stage].append(name)
        death = self.deaths.get(self.stage, [0])[0]
        if abs(death) == len(self.taken[self.stage]):
            (self.root.parent / "died").write_text(self.stage)
            os.kill(os.getpid(), signal.SIGKILL if death > 0 else signal.SIGTERM)

    def end(self) -> None:
        """Of a stage that was killed before, the steps of the child that ended it."""
        file = self.root.parent / "steps.json"
        ended = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(ended | {self.stage: self.taken[self.stage]}))
        self.stage = ""


class CountedProgress:
    def __init__(self, steps: Steps, progress: Progress) -> None:
        self.steps, self.progress = steps, progress

    def start(self, total: int, unit: str) -> None:
        self.steps.step(f"start {unit}")
        self.progress.start(total, unit)

    def advance(self, n: int = 1) -> None:
        self.steps.step("advance")
        self.progress.advance(n)

    def done(self) -> None:
        self.steps.end()
        self.progress.done()


def count(steps: Steps) -> None:
    stage, replace = Display.stage, os.replace

    def counted_stage(self: Display, round: int, name: str, *more: Any) -> Any:
        steps.begin(f"{round}/{name}")
        return CountedProgress(steps, stage(self, round, name, *more))

    def counted_replace(source: Any, target: Any) -> None:
        if steps.stage and Path(target).name != PROGRESS:  # which is written by the clock
            steps.step(Path(target).name)
        replace(source, target)

    Display.stage = counted_stage  # type: ignore[method-assign]
    os.replace = counted_replace  # type: ignore[assignment]


def start(root: Path, config: str, deaths: dict[str, list[int]]) -> int:
    """The command in a child of its own: its process id."""
    child = os.fork()
    if child == 0:
        code: Any = 1
        try:
            steps = Steps(root, deaths)
            count(steps)
            sys.argv = ["retake", "run", config, "--dir", str(root)]
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def kill_at(root: Path, config: str, deaths: dict[str, list[int]]) -> list[str]:
    """Launches until one ends well; the stages in which the others died."""
    died: list[str] = []
    while (code := _exit_code(start(root, config, deaths))) in (-signal.SIGKILL, 75):
        died.append((root.parent / "died").read_text())
        deaths[died[-1]] = deaths[died[-1]][1:] or [0]
    assert code == 0, f"the campaign ended with {code}"
    return died


def _exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def import_everything() -> None:
    """What the stages import when they run; imports only, since a fork does not take threads along."""
    import diffusers
    import transformers

    for name in ("peft.utils", "loop.embedded.anchors", "loop.embedded.oracle", "loop.report"):
        importlib.import_module(name)
    for stage in STAGES.values():
        stage.resolve()
    for module, name in (
        (diffusers, "WanPipeline"),
        (diffusers, "AutoencoderKLWan"),
        (diffusers, "WanTransformer3DModel"),
        (diffusers, "FlowMatchEulerDiscreteScheduler"),
        (transformers, "UMT5EncoderModel"),
        (transformers, "AutoModelForImageTextToText"),
        (transformers, "Qwen2_5_VLForConditionalGeneration"),
        (transformers, "Qwen2_5_VLProcessor"),
    ):
        getattr(module, name)


if __name__ == "__main__":
    import_everything()
    root, config = Path(sys.argv[1]), sys.argv[2]
    when: dict[str, Any] = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    began = time.monotonic()
    if "most" in when:
        died = kill_until_done(lambda: start(root, config, {}), AtRandom(**when).kill, root)
    else:
        died = kill_at(root, config, when)
    steps = json.loads((root.parent / "steps.json").read_text())
    print(json.dumps({"steps": steps, "died": died, "seconds": time.monotonic() - began}))
