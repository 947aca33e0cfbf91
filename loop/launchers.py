"""Where a stage runs. The stage functions are the same under every launcher."""

import builtins
import contextlib
import importlib
import importlib.resources
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from loop import distributed
from loop.config import CampaignConfig
from loop.errors import UserError
from loop.stages import Stage, StageContext
from loop.stopping import SECONDS_FOR_A_STEP

MARK = "\x1e"  # before a worker's message to this process
SECONDS_TO_END = SECONDS_FOR_A_STEP + 4.0
SECONDS_TO_PRINT = 10.0
SECONDS_FOR_A_SIGNAL = 0.5
# accelerate ends with 1, whatever ended its processes: torch and accelerate print what it was
_SAYS_KILLED = re.compile(r"exitcode\s*: -9\b|Signals\.SIGKILL")
_LOST_A_PEER = re.compile(r"peer|connection|gloo|nccl", re.IGNORECASE)  # what the others raise of it


class Launcher(Protocol):
    devices: int | None  # that the stage launched last had (loop/device_hours.py); None where it did not say

    def launch(self, stage: Stage, context: StageContext) -> None:
        """Run the stage to its end. Raises whatever the stage raises."""
        ...


class InlineLauncher:
    """In this process, one stage after the other."""

    devices: int | None = None

    def __init__(self, config: CampaignConfig):
        if config.threads is None:
            return
        # The libraries read these when they are first imported, which no stage has done yet.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(config.threads)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(config.threads)

    def launch(self, stage: Stage, context: StageContext) -> None:
        function = stage.resolve()
        quieten_libraries()
        _seed_libraries(context.seed)  # after the import: a resumed process then draws as this one does
        try:
            function(context)
        finally:
            self.devices = distributed.accelerators()


def quieten_libraries() -> None:
    """Bars of weight files say nothing beside the stage's own; what libraries log goes to the stage's log."""
    warnings.filterwarnings("ignore", "Already found a `peft_config`")  # policy and reference adapters: meant
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # nothing here changes a prediction in place
    if "torch" not in sys.modules:
        return
    for library in ("transformers", "diffusers"):
        logs = importlib.import_module(f"{library}.utils.logging")
        logs.disable_progress_bar()  # of loading and saving; downloads keep theirs
        logs.disable_default_handler()
        logs.enable_propagation()


def _seed_libraries(seed: int) -> None:
    """The global generators of the libraries that are loaded: no stage sees what an earlier one drew."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


class ProcessLauncher:
    """Every stage in a fresh process (loop/worker.py), so that none leaves memory behind for the next."""

    devices: int | None = None

    def __init__(self, config: CampaignConfig):
        self.config = config

    def launch(self, stage: Stage, context: StageContext) -> None:
        if not isinstance(stage.function, str):
            raise TypeError(
                f"launch.type {self.config.launch.type} needs stages by name, 'package.module:function', but "
                f"this one is {stage.function!r}; use launch.type inline"
            )
        request = {
            "function": stage.function,
            "config": context.config.model_dump(mode="json"),
            "round": context.round,
            "inputs": {key: str(path) for key, path in context.inputs.items()},
            "out": str(context.out),
            "seed": context.seed,
            "stage": context.stage,
            "distributed": self.starts_several(stage),
            "log_file": context.log_file and os.path.abspath(context.log_file),
        }
        with tempfile.TemporaryDirectory(prefix="retake-") as folder:
            path = Path(folder) / "request.json"
            path.write_text(json.dumps(request), encoding="utf-8")
            self._follow(self.command(stage, path), context)

    def starts_several(self, stage: Stage) -> bool:
        return False

    def command(self, stage: Stage, request: Path) -> list[str]:
        return [sys.executable, "-m", "loop.worker", str(request)]

    def environment(self) -> dict[str, str]:
        """The worker imports what this process can import, and nothing from the folder it is started in."""
        threads = self.config.threads
        few = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        return {**os.environ, **few, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}

    def _follow(self, command: list[str], context: StageContext) -> None:
        """Starts the worker and passes its reports on until it ends. Raises what it raised.

        In a session of its own, so that Ctrl-C reaches this process alone, which then ends the worker.
        """
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace", env=self.environment(), start_new_session=True,
        )  # fmt: skip
        assert process.stdout and process.stderr
        printed = _Printed(process.stderr)
        reports = _Reports(context)
        try:
            for line in process.stdout:
                reports.take(line)
            code = process.wait()
            printed.join(SECONDS_TO_PRINT)
        finally:
            _end(process)
            self.devices = reports.devices
        if reports.error is None and code == 0 and reports.done:
            return
        # A scheduler signals all processes of a job: our own signal, on its way, says more than this.
        time.sleep(SECONDS_FOR_A_SIGNAL)
        killed = WorkerDied(_why(-signal.SIGKILL, "one of its processes"))
        if reports.error is not None:
            error = _rebuilt(reports.error)
            lost_a_peer = printed.says_killed and _LOST_A_PEER.search(str(error))
            raise killed if lost_a_peer else error from WorkerTraceback(reports.error["traceback"])
        raise killed if printed.says_killed else WorkerDied(_why(code))


class AccelerateLauncher(ProcessLauncher):
    """As `ProcessLauncher`, but stages that can share their work start under `accelerate launch`."""

    def __init__(self, config: CampaignConfig):
        super().__init__(config)
        assert config.launch.accelerate_config is not None  # the config has been validated
        self.file = find_accelerate_config(config.launch.accelerate_config)
        self.settings = _accelerate_settings(self.file)

    def starts_several(self, stage: Stage) -> bool:
        return stage.distributed

    def command(self, stage: Stage, request: Path) -> list[str]:
        worker = super().command(stage, request)
        if not stage.distributed:
            return worker
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(self.file)]
        return [sys.executable, *launch, *worker[1:]]

    def environment(self) -> dict[str, str]:
        # accelerate itself tells its processes so only where it starts one
        return super().environment() | (
            {"ACCELERATE_USE_CPU": "true"} if self.settings.get("use_cpu") else {}
        )


class WorkerDied(Exception):
    """A worker ended without a word of why."""


class WorkerError(Exception):
    """What a worker raised, where its class is not known here."""


class WorkerTraceback(Exception):
    """The cause of an error that a worker raised: where it was raised there."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


class _Printed(threading.Thread):
    """Passes what a worker prints on to the stage's log. says_killed: that a process was ended by SIGKILL."""

    def __init__(self, lines: Iterable[str]):
        super().__init__(daemon=True)
        self._lines = lines
        self.says_killed = False
        self.start()

    def run(self) -> None:
        for line in self._lines:
            self.says_killed = self.says_killed or _SAYS_KILLED.search(line) is not None
            _log_lines([line])


class _Reports:
    """What a worker has said so far; progress and log records go on to the stage's own."""

    def __init__(self, context: StageContext):
        self.progress = context.progress
        self.error: dict[str, Any] | None = None
        self.devices: int | None = None
        self.done = False

    def take(self, line: str) -> None:
        printed, _, text = line.partition(MARK)
        if printed.strip():
            _log_lines([printed])
        if not text:
            return
        message = json.loads(text)
        if "start" in message:
            self.progress.start(*message["start"])
        elif "advance" in message:
            self.progress.advance(message["advance"])
        elif "log" in message:
            record = logging.makeLogRecord(message["log"])
            logging.getLogger(record.name).handle(record)
        elif "devices" in message:
            self.devices = message["devices"]
        elif "error" in message:
            self.error = self.error or message["error"]  # others fail because the first one did
        else:
            self.done = message["done"]


def find_accelerate_config(name: str) -> Path:
    """The file of launch.accelerate_config: a path, or a shipped one. Raises UserError if there is none."""
    folder = Path(str(importlib.resources.files("configs"))) / "accelerate"
    shipped = {file.name: file for file in sorted(folder.glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    if Path(name).name in shipped and str(Path(name).parent) in (".", "configs/accelerate"):
        return shipped[Path(name).name]
    known = ", ".join(f"configs/accelerate/{file}" for file in shipped)
    raise UserError(f"launch.accelerate_config: there is no file {name}; shipped ones are {known}")


def _accelerate_settings(file: Path) -> dict[str, Any]:
    """What a config of accelerate says. Raises UserError where an update cannot be started by it."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = settings.get("distributed_type") if isinstance(settings, dict) else None
    if kind not in ("NO", "MULTI_GPU", "FSDP"):
        raise UserError(
            f"launch.accelerate_config: {file} sets no distributed_type that an update can use; start from "
            "configs/accelerate/multi_gpu.yaml (MULTI_GPU) or fsdp2.yaml (FSDP)"
        )
    if settings.get("num_machines", 1) != 1:
        raise UserError(
            f"launch.accelerate_config: {file} sets num_machines {settings['num_machines']}, but an update "
            "runs on one machine; set it to 1"
        )
    return settings


def _log_lines(lines: Iterable[str]) -> None:
    """What a worker prints, for the stage's log alone."""
    log = logging.getLogger("retake.worker")
    for line in lines:
        if line.strip():
            log.debug("%s", line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the worker with all that it started, if it still runs: they see their standard input close.

    First it may save the step that it is at (loop/stopping.py).
    """
    assert process.stdin
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)
    finally:  # a second Ctrl-C waits for nothing
        with contextlib.suppress(OSError):
            process.stdin.close()
        if process.poll() is None:
            process.kill()
            process.wait()


def _rebuilt(error: Mapping[str, Any]) -> Exception:
    """An exception of the class that the worker's had, or of the first base that is known here."""
    for name in error["kinds"]:
        kind = UserError if name == "UserError" else getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            with contextlib.suppress(TypeError):
                return kind(*error["args"])
    return WorkerError(f"{error['kinds'][0]}: {error['args'][0]}")


def _why(code: int, who: str = "its process") -> str:
    if code == 128 + signal.SIGKILL:  # of a shell, or a container, around the worker
        code = -signal.SIGKILL
    if code >= 0:
        return f"its process ended with exit code {code} before the stage was done; see what it printed"
    name = signal.Signals(-code).name
    memory = (
        "; mostly this means that memory ran out: lower the stage's batch size (update.micro_batches raised, "
        "sample.sampling.batch_size, judge.batch_size) or free memory"
        if name == "SIGKILL"
        else ""
    )
    return f"{who} was ended by {name}{memory}; then run the same command again"


LAUNCHERS: dict[str, Callable[[CampaignConfig], Launcher]] = {
    "inline": InlineLauncher,
    "process": ProcessLauncher,
    "accelerate": AccelerateLauncher,
}
