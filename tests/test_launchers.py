"""Stages inline and in processes of their own, what they print, and the plain progress lines."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file

import loop.progress
from generator.models.base import load_model
from loop import distributed
from loop.config import CampaignConfig, LaunchConfig
from loop.config_file import load_config
from loop.errors import StageFailed, Stopped, UserError
from loop.launchers import (
    LAUNCHERS,
    AccelerateLauncher,
    InlineLauncher,
    ProcessLauncher,
    WorkerDied,
    WorkerError,
    find_accelerate_config,
)
from loop.progress import LineProgress
from loop.stages import STAGES, Stage, StageContext
from loop.steps.common import write_table
from loop.steps.preference import PAIRS
from loop.stopping import stop_on_signals
from loop.store import Store
from tests import worker_stages
from tests.tiny_wan import make_tiny_wan
from tests.toy_campaign import CONFIG, NAMED_STAGES, run_toy_campaign, tree

ROOT = Path(__file__).parent.parent


def test_a_stage_that_loads_and_saves_models_prints_nothing(tmp_path, capfd):
    folder = make_tiny_wan(tmp_path / "wan")
    config = CampaignConfig.model_validate(
        {"name": "quiet", "generator": {"model": folder}, "judge": {"model": "toy/toy"}}
    )

    def load_and_save(context):
        pipe = load_model(context.config.generator).pipe
        pipe.text_encoder.save_pretrained(context.out / "text_encoder")

    capfd.readouterr()
    progress = LineProgress("quiet", Console(file=io.StringIO()))
    context = StageContext(config, 0, {}, tmp_path / "out", 0, progress, logging.getLogger("retake"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InlineLauncher(config).launch(Stage(load_and_save, (), ()), context)
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "out" / "text_encoder" / "model.safetensors").is_file()


@pytest.fixture
def clock(monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr(loop.progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_plain_lines_show_advance_and_time_left(clock):
    out = io.StringIO()
    progress = LineProgress("sample", Console(file=out, width=100))
    clock[0] += 3
    progress.start(40, "clips")
    for _ in range(20):
        clock[0] += 2
        progress.advance()
    progress.start(2, "questions")
    progress.advance(2)
    progress.start(3, "marks")  # follows at once, so in silence
    progress.done()
    assert out.getvalue().splitlines() == [
        "sample …",
        "sample: 0/40 clips",
        "sample: 8/40 clips, about 1 min 04 s left",
        "sample: 16/40 clips, about 48 s left",
        "sample: 0/2 questions",
        "sample: done in 43 s",
    ]


# Stages in processes of their own -------------------------------------------------------------


class Counted:
    def __init__(self):
        self.calls = []

    def start(self, total, unit):
        self.calls.append((total, unit))

    def advance(self, n=1):
        self.calls.append(n)

    def done(self):
        pass


@pytest.fixture
def in_a_process(tmp_path, caplog):
    """Runs a function of tests/worker_stages.py by the launcher `process`; returns its progress."""
    config = CampaignConfig.model_validate(
        {"name": "apart", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}, "threads": 1,
         "launch": {"type": "process"}}
    )  # fmt: skip
    caplog.set_level(logging.DEBUG)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()

    def launch(function):
        progress = Counted()
        context = StageContext(
            config,
            3,
            {"prepare": tmp_path / "in"},
            tmp_path / "out",
            7,
            progress,
            logging.getLogger("retake"),
        )
        name = function if callable(function) else f"tests.worker_stages:{function}"
        ProcessLauncher(config).launch(Stage(name, (), ()), context)
        return progress.calls

    return launch


def test_a_process_gets_the_context_and_reports_to_the_stage(in_a_process, tmp_path, caplog, capfd):
    assert in_a_process("reports") == [(2, "clips"), 1, 1]
    assert (tmp_path / "out" / "context.txt").read_text() == f"apart 3 {tmp_path / 'in'} 7 1"
    records = {r.getMessage(): r for r in caplog.records}
    assert records["it is late"].levelname == "WARNING" and records["it is late"].name == "retake"
    assert records["another library"].name == "library"
    assert any("ValueError: seen" in (r.exc_text or "") for r in caplog.records)
    for printed in ("printed", "printed by C", "complained", '{"done": true}'):
        assert records[printed].levelname == "DEBUG", printed
    assert capfd.readouterr() == ("", "")


def test_errors_of_a_process_keep_their_class_and_traceback(in_a_process):
    with pytest.raises(UserError, match=r"^give another$"):
        in_a_process("raises_user_error")
    with pytest.raises(OSError, match="No space left") as found:
        in_a_process("raises_disk_full")
    assert (found.value.errno, found.value.filename) == (28, "clip.mp4")
    with pytest.raises(ValueError, match=r"^bad number$") as found:
        in_a_process("raises_subclass")
    assert "in raises_subclass" in str(found.value.__cause__)
    with pytest.raises(WorkerError, match=r"^Unheard: of$"):
        in_a_process("raises_unheard")


def test_a_process_that_dies_says_how(in_a_process):
    with pytest.raises(WorkerDied, match=r"SIGKILL; mostly this means that memory ran out.*run the same"):
        in_a_process("is_killed")
    with pytest.raises(WorkerDied, match="ended by SIGTERM; then run the same command again"):
        in_a_process("is_terminated")
    with pytest.raises(WorkerDied, match="exit code 0 before the stage was done"):
        in_a_process("leaves")
    with pytest.raises(TypeError, match=r"package\.module:function.*launch\.type inline"):
        in_a_process(worker_stages.reports)


def test_memory_is_named_whatever_code_a_killed_process_leaves(in_a_process):
    for function, who in (
        ("leaves_with_137", "its process"),
        ("prints_what_torch_prints", "one of its processes"),
        ("misses_a_peer", "one of its processes"),
    ):
        with pytest.raises(WorkerDied, match=f"^{who} was ended by SIGKILL; mostly .* memory ran out"):
            in_a_process(function)
    with pytest.raises(ValueError, match=r"^loss is nan$"):  # that is the news
        in_a_process("fails_beside_a_killed_one")


@pytest.fixture
def toy(tmp_path):
    """The path of a config, and a run of it by the launcher `process`."""
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)

    def run(root, *overrides, **changes):
        loaded = load_config(path, ["launch.type=process", *overrides])
        return run_toy_campaign(loaded, Store(root), stages=NAMED_STAGES, **changes)

    return path, run


def test_processes_leave_the_bytes_of_one(toy, tmp_path):
    path, run = toy
    run(tmp_path / "apart", "rounds=1")
    run_toy_campaign(load_config(path, ["rounds=1"]), Store(tmp_path / "inline"))
    apart, inline = tree(tmp_path / "apart"), tree(tmp_path / "inline")
    for name in ("campaign.yaml", "resolved.json"):  # which say how it was launched
        assert apart.pop(name) != inline.pop(name)
    assert apart == inline and len(apart) > 50


def test_errors_of_processes_end_the_campaign_as_inline(toy, tmp_path, monkeypatch):
    _, run = toy
    monkeypatch.setenv("TOY_FAIL", "0-prepare")
    with pytest.raises(UserError, match=r"^toy trouble$"):
        run(tmp_path / "run")
    monkeypatch.setenv("TOY_FAIL", "0-evaluate")
    with pytest.raises(StageFailed, match="evaluate of round 0 failed: ValueError: toy trouble") as failed:
        run(tmp_path / "run")
    log = failed.value.log.read_text()
    assert "hello from 0-evaluate" in log and "in toy_stage" in log and "raise ValueError" in log


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_campaign(toy, tmp_path, number):
    path, run = toy
    root, script = tmp_path / "run", Path(__file__).with_name("toy_campaign.py")
    running = subprocess.Popen(
        [sys.executable, script, "run", path, "--dir", root, "--rounds", "0", "--set", "launch.type=process"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOY_NAMED": "1", "TOY_HANG": "0-evaluate"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = root / "logs" / "attempt-1" / "000-evaluate.log"
    while not log.exists() or " hangs" not in log.read_text():
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    [worker] = [int(line.split()[-2]) for line in log.read_text().splitlines() if line.endswith(" hangs")]
    assert worker != running.pid and is_alive(worker)
    running.send_signal(number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == (75 if number == signal.SIGINT else -9), said
    until = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(worker)
    if number == signal.SIGINT:
        run(root, "rounds=0")
        assert (root / "round-000" / "evaluate" / "manifest.json").exists()


# accelerate -----------------------------------------------------------------------------------

SHIPPED = ("multi_gpu.yaml", "fsdp2.yaml", "two_cpus.yaml")


def test_a_config_of_accelerate_must_be_there(tmp_path):
    with pytest.raises(ValidationError, match=r"such as configs/accelerate/multi_gpu\.yaml"):
        LaunchConfig(type="accelerate")
    launch = {"type": "accelerate", "accelerate_config": "nowhere.yaml"}
    config = CampaignConfig.model_validate(
        {"name": "x", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}, "launch": launch}
    )
    with pytest.raises(UserError, match=r"launch\.accelerate_config: there is no file nowhere\.yaml.*fsdp2"):
        AccelerateLauncher(config)
    assert find_accelerate_config("configs/accelerate/fsdp2.yaml").name == "fsdp2.yaml"
    (tmp_path / "other.yaml").write_text("num_processes: 2")
    assert find_accelerate_config(str(tmp_path / "other.yaml")) == tmp_path / "other.yaml"
    launch["accelerate_config"] = str(tmp_path / "other.yaml")
    config = config.model_copy(update={"launch": LaunchConfig(**launch)})
    for text, said in (
        ("num_processes: 2", "sets no distributed_type"),
        ("distributed_type: MULTI_CPU", "sets no distributed_type that an update can use"),
        ("{distributed_type: FSDP, num_machines: 2}", "an update runs on one machine; set it to 1"),
    ):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            AccelerateLauncher(config)


def settings_of(file):
    """(arguments, environment of the processes) as accelerate itself reads them from a config."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    parser = launch_command_parser()
    arguments, *_ = _validate_launch_command(
        parser.parse_args(["--config_file", str(file), "-m", "loop.worker"])
    )
    return arguments, prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_accelerate_configs_mean_what_they_say(name, monkeypatch):
    file = ROOT / "configs" / "accelerate" / name
    assert find_accelerate_config(name).samefile(file)
    arguments, environment = settings_of(file)
    assert arguments.num_processes == (2 if name == "two_cpus.yaml" else 8)
    assert (arguments.multi_gpu, arguments.use_fsdp) == (name == "multi_gpu.yaml", name != "multi_gpu.yaml")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    config = CampaignConfig.model_validate(
        {"name": "x", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}}
    )
    found = distributed.sharding(config.update, environment)
    assert (found is not None and found.reshard_after_forward) == (name != "multi_gpu.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FSDP_VERSION", "1", r"fsdp_config\.fsdp_version 1 is not supported; set it to 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", r"fsdp_offload_params true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", r"use update\.activation_checkpointing"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"mixed_precision bf16 .*update\.dtype float32"),
    ],
)
def test_what_accelerate_would_do_and_retake_does_not_is_refused(monkeypatch, variable, value, said):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    config = CampaignConfig.model_validate(
        {"name": "x", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}}
    )
    with pytest.raises(UserError, match=said):
        distributed.sharding(
            config.update, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", variable: value}
        )
    assert distributed.sharding(config.update, {"FSDP_VERSION": "1"}) is None  # accelerate without FSDP


def test_a_rank_killed_for_memory_says_so(tmp_path):
    """accelerate ends with 1 then, as after any error."""
    launch = {"type": "accelerate", "accelerate_config": "configs/accelerate/two_cpus.yaml"}
    config = CampaignConfig.model_validate(
        {"name": "x", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}, "launch": launch}
    )
    context = StageContext(config, 1, {}, tmp_path, 5, Counted(), logging.getLogger("retake"))
    stage = Stage("tests.worker_stages:second_is_killed", (), (), distributed=True)
    with pytest.raises(WorkerDied, match=r"one of its processes was ended by SIGKILL; .*memory ran out"):
        AccelerateLauncher(config).launch(stage, context)


UPDATE = """\
name: two
threads: 1
data:
  num_anchors: 8
  clip: {num_frames: 17, height: 32, width: 32, fps: 8}
  split: {train: 2, calibrate: 1, gate: 1, report: 1}
generator: {model: "embedded:tiny-wan", max_text_tokens: 8}
judge: {model: "embedded:tiny-judge"}
update: {method: supervised, learning_rate: 1.0e-3, num_steps: 4, anchors_per_step: 4, checkpoint_every: 2}
"""


TWO = ("launch.type=accelerate", "launch.accelerate_config=configs/accelerate/two_cpus.yaml")


class Updates:
    """Launches updates that learn from clips alone, with what they read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.progress = folder, {}
        self.inputs = {name: folder / name for name in ("prepare", "pair")}
        (folder / "two.yaml").write_text(UPDATE)
        self.launch("prepare", self.inputs["prepare"])
        self.inputs["pair"].mkdir()
        write_table(self.inputs["pair"] / "pairs.parquet", [], PAIRS)

    def launch(self, stage: str, out: Path, *overrides: str) -> None:
        config = load_config(self.folder / "two.yaml", overrides).config
        out.mkdir(exist_ok=True)
        self.progress[out.name] = Counted()
        given = {} if stage == "prepare" else self.inputs
        log, log_file = logging.getLogger("retake"), out.with_suffix(".log")
        context = StageContext(config, 1, given, out, 5, self.progress[out.name], log, log_file=log_file)
        LAUNCHERS[config.launch.type](config).launch(STAGES[stage], context)


@pytest.fixture(scope="module")
def updates(tmp_path_factory) -> Updates:
    return Updates(tmp_path_factory.mktemp("updates"))


def test_processes_that_are_stopped_together_save_the_step_that_they_are_at(updates, tmp_path, caplog):
    """No rank may leave alone: the others would wait for it in the next sum of gradients."""
    caplog.set_level(logging.INFO)
    more = (*TWO, "update.num_steps=60", "update.checkpoint_every=1000")
    out = tmp_path / "stopped"

    def steps() -> list[int]:
        lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def stop_amid() -> None:
        until = time.monotonic() + 120
        while len(steps()) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_amid, daemon=True).start()
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals():
        updates.launch("update", out, *more)
    saved = torch.load(out / "_scratch" / "state.pt", weights_only=True)["progress"]["step"]
    assert 2 <= saved < 60 and steps() == list(range(saved))
    caplog.clear()
    updates.launch("update", out, *more)
    made = [r.getMessage() for r in caplog.records if r.getMessage().startswith("{'step'")]
    assert len(made) == 60 - saved and made[0].startswith(f"{{'step': {saved}, ")
    assert steps() == list(range(60))


def test_an_update_under_accelerate_is_that_of_one_process(updates, tmp_path, caplog):
    """Of all stages the update alone starts two processes, which share the weights and write once."""
    assert [name for name, stage in STAGES.items() if stage.distributed] == ["update"]
    caplog.set_level(logging.INFO)
    progress = updates.progress
    updates.launch("update", tmp_path / "one")
    caplog.clear()
    updates.launch("update", tmp_path / "two", *TWO)
    said = [r.getMessage() for r in caplog.records if r.name == "retake"]
    assert "2 processes over gloo, the first on cpu" in said
    assert sum("share the weights" in line for line in said) == 1
    second = (tmp_path / "two.rank-1.log").read_text().splitlines()
    assert sum(" INFO rank 1 retake: the processes share the weights" in line for line in second) == 1
    assert not (tmp_path / "two.rank-0.log").exists() and not (tmp_path / "one.rank-1.log").exists()
    assert progress["two"].calls == progress["one"].calls
    one, two = (tmp_path / name for name in ("one", "two"))
    assert [p.relative_to(one) for p in sorted(one.rglob("*"))] == [
        p.relative_to(two) for p in sorted(two.rglob("*"))
    ]
    assert (one / "metrics.json").read_bytes() == (two / "metrics.json").read_bytes()
    rows = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
    assert [r["step"] for r in rows[1]] == [0, 1, 2, 3]
    for a, b in zip(*rows, strict=True):
        assert a["real_error"] == pytest.approx(b["real_error"], rel=1e-5)
    file = "checkpoint/transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(one / file), load_file(two / file)
    # Adam divides by the gradient's size, however small
    assert max((before[k] - after[k]).abs().max().item() for k in before) < 2e-5
