"""Full and read-only disks, clocks that run backwards, processes that are killed or ended from outside."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

import loop.campaign
from loop.cli import app
from loop.config_file import load_config
from loop.errors import StageFailed, Stopped, UserError
from loop.lock import RunLock
from loop.stages import STAGES, Stage, plan
from loop.status import read_status
from loop.stopping import finishing_steps, stop_on_signals
from loop.store import Store
from tests.killing import AtOperations, fork
from tests.toy_campaign import CONFIG, NAMED_STAGES, TOY_STAGES, run_toy_campaign, tree

SCRIPT = Path(__file__).with_name("toy_campaign.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def run(config: Path, root: Path, *overrides: str, **changes) -> Path:
    return run_toy_campaign(load_config(config, overrides), Store(root), **changes)


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- the disk


@pytest.fixture
def own_mounts():
    """Runs a shell script that may mount what it likes: nothing outside of it sees that."""
    apart = ["unshare", "--map-root-user", "--mount", "sh", "-euc"]
    may = shutil.which("unshare") and subprocess.run(
        [*apart, "mount -t tmpfs none /mnt"], capture_output=True
    )
    if not may or may.returncode:
        pytest.skip("mounting needs user namespaces, which are not there or not allowed here")

    def script(text: str) -> list[str]:
        done = subprocess.run([*apart, text], capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    return script


def test_a_really_full_disk_is_named_and_the_run_goes_on_when_there_is_room(config, tmp_path, own_mounts):
    command = f"{sys.executable} {SCRIPT} run {config} --rounds 1 --dir {tmp_path}/disk/run"
    said = own_mounts(f"""
        mkdir {tmp_path}/disk
        mount -t tmpfs -o size=40k none {tmp_path}/disk
        for size in 260k 8m; do
            {command} 2>&1 && exit 1 || echo code $?
            mount -o remount,size=$size {tmp_path}/disk
        done
        {command} 2>&1
        cp -r {tmp_path}/disk/run {tmp_path}/kept
    """)
    assert said.count("code 2") == 2 and not any("Traceback" in line for line in said), said
    assert sum("No space left on device" in line and line.startswith("error: ") for line in said) == 2
    run(config, tmp_path / "whole", "rounds=1")
    assert tree(tmp_path / "kept") == tree(tmp_path / "whole")


def test_a_disk_that_is_full_at_any_change_ends_with_2_and_loses_nothing(config, tmp_path, monkeypatch):
    """ENOSPC at picked changes of the run directory, each once, as tests/killing.py kills at them."""
    monkeypatch.setattr(loop.campaign, "run_campaign", run_toy_campaign)
    root = tmp_path / "run"
    at = AtOperations(root, lambda name: " os.r" not in name and Random(name).random() < 0.03)

    def full(name: str) -> None:
        at.tell(name)
        raise OSError(errno.ENOSPC, "No space left on device", name)

    def work() -> None:
        at.listen(full)
        done = CliRunner().invoke(app, ["run", str(config), "--dir", str(root)])
        if done.exit_code:
            at.tell(f"\n{done.exit_code} {done.stderr}")

    tried = 0
    while True:
        assert exit_code(fork(work)) == 0
        if not (told := at.told()):
            break
        tried += 1
        name, _, said = told.partition("\n")
        at.seen.add(name)
        # an event that could not be written is not worth an end: the stage's files are all there
        assert said == "" or (said.startswith("2 ") and "No space left on device" in said), (name, said)
        assert said or "events.jsonl" in name
    assert tried >= 6
    run(config, tmp_path / "whole")
    assert tree(root) == tree(tmp_path / "whole")


def test_a_library_that_hides_why_it_could_not_write_is_seen_through(config, tmp_path):
    """numpy says "1000000 requested and 100000 written", without an errno; torch and safetensors likewise."""
    root = tmp_path / "run"

    def save(context):
        np.save(context.out / "array.npy", np.zeros(10**6))

    stages = {**TOY_STAGES, "evaluate": Stage(save, STAGES["evaluate"].inputs, ("evaluate",))}

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))
        with pytest.raises(UserError, match=r"no disk space left during evaluate: .*run the same command"):
            run(config, root, "rounds=0", stages=stages)

    assert exit_code(fork(work)) == 0
    assert not (root / ".trial").exists()
    run(config, root, "rounds=0")
    run(config, tmp_path / "whole", "rounds=0")
    assert tree(root) == tree(tmp_path / "whole")


def test_a_stage_that_fails_on_a_healthy_disk_blames_no_disk(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "0-evaluate")
    with pytest.raises(StageFailed, match="toy trouble"):
        run(config, tmp_path / "run", "rounds=0")
    assert not (tmp_path / "run" / ".trial").exists()


def test_a_read_only_run_can_be_looked_at_and_not_run(config, tmp_path, own_mounts):
    root = tmp_path / "run"
    run(config, root, "rounds=1")
    before = tree(root)
    retake = f"{sys.executable} {SCRIPT}"
    said = own_mounts(f"""
        mount --bind {root} {root}
        mount -o remount,ro,bind {root}
        {retake} run {config} --rounds 1 --dir {root} 2>&1 && exit 1 || echo code $?
        {retake} run {config} --rounds 2 --dir {root} 2>&1 && exit 1 || echo code $?
        {retake} status {root}
        {retake} curves {root}
        {retake} verify {root}
    """)
    assert said.count("code 2") == 2 and "toy: done, 1 of 1 rounds done" in said, said
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 2 and all("Read-only file system" in e and "choose a --dir" in e for e in errors)
    assert said[-1].endswith("all as committed") and tree(root) == before


def test_a_disk_that_becomes_read_only_amid_a_stage_is_the_disks_fault(config, tmp_path):
    def refused(context):
        raise OSError(errno.EROFS, "Read-only file system", str(context.out / "x"))

    stages = {**TOY_STAGES, "sample": Stage(refused, STAGES["sample"].inputs, ("sample",))}
    with pytest.raises(UserError, match=r"cannot be written during sample: .*Read-only.*the same command"):
        run(config, tmp_path / "run", stages=stages)


# --- the clock


def test_a_clock_that_runs_backwards_breaks_no_duration_and_no_state(config, tmp_path, monkeypatch):
    """An hour back at each look; what is measured does not come from that clock."""
    hours = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1.8e9 - 3600.0 * next(hours))
    root = tmp_path / "run"
    monkeypatch.setenv("TOY_FAIL", "1-label")
    with pytest.raises(StageFailed):
        run(config, root, "rounds=1")
    assert read_status(root).state == "failed"
    monkeypatch.delenv("TOY_FAIL")
    run(config, root, "rounds=1")
    monkeypatch.undo()
    events = Store(root).events()
    assert [e["time"] for e in events] == sorted((e["time"] for e in events), reverse=True)
    assert [(e["round"], e["stage"]) for e in events if e["event"] == "stage_committed"] == plan(1)
    status = read_status(root)
    assert status.state == "done" and (root / "logs" / "attempt-2").is_dir()
    assert all(stage.seconds is not None and 0 <= stage.seconds < 60 for stage in status.stages)
    run(config, tmp_path / "whole", "rounds=1")
    assert tree(root) == tree(tmp_path / "whole")


# --- processes


def test_of_launches_at_once_one_runs_and_the_others_say_why_not(config, tmp_path):
    root = tmp_path / "run"
    start = time.monotonic() + 0.3

    def work() -> None:
        time.sleep(max(0.0, start - time.monotonic()))
        try:
            run(config, root)
        except UserError as error:
            os._exit(2 if "is in use by process" in str(error) else 1)

    codes = sorted(exit_code(child) for child in [fork(work) for _ in range(4)])
    assert codes[0] == 0 and set(codes) <= {0, 2}
    events = [event["event"] for event in Store(root).events()]
    assert events.count("stage_committed") == len(plan(2)) and "previous_process_died" not in events
    run(config, tmp_path / "whole")
    assert tree(root) == tree(tmp_path / "whole")


def test_a_look_at_the_lock_refuses_no_launch(tmp_path):
    """`retake status` takes the lock for an instant to see whether it is held."""
    (tmp_path / "run").mkdir()
    look = open(tmp_path / "run" / "lock", "w")  # noqa: SIM115 (the timer closes it)
    fcntl.flock(look, fcntl.LOCK_SH)
    threading.Timer(0.1, look.close).start()
    lock = RunLock(tmp_path / "run")
    assert lock.acquire() == "" and lock.is_held()
    lock.release()


def test_a_stage_killed_for_memory_says_what_to_lower_and_is_made_again(config, tmp_path):
    root = tmp_path / "run"
    dies = {**NAMED_STAGES, "evaluate": Stage("tests.worker_stages:is_killed", STAGES["evaluate"].inputs, ())}
    with pytest.raises(StageFailed) as failed:
        run(config, root, "rounds=0", "launch.type=process", stages=dies)
    for part in ("stage evaluate of round 0 failed", "SIGKILL", "memory ran out", "judge.batch_size"):
        assert part in str(failed.value)
    status = read_status(root)
    assert (status.state, status.stages[1].state) == ("failed", "failed") and "SIGKILL" in status.reason
    run(config, root, "rounds=0")
    run(config, tmp_path / "whole", "rounds=0")
    assert tree(root) == tree(tmp_path / "whole")


def test_sigterm_to_all_processes_of_a_job_stops_and_does_not_fail(config, tmp_path):
    """As schedulers do it: the worker dies of it, too, and its death must not be the news."""
    root = tmp_path / "run"
    running = subprocess.Popen(
        [sys.executable, SCRIPT, "run", config, "--dir", root, "--set", "launch.type=process"],
        env={**ENVIRONMENT, "TOY_NAMED": "1", "TOY_HANG": "0-prepare"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = root / "logs" / "attempt-1" / "000-prepare.log"
    while not log.exists() or " hangs" not in log.read_text():
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    [worker] = [int(line.split()[-2]) for line in log.read_text().splitlines() if line.endswith(" hangs")]
    began = time.monotonic()
    os.kill(worker, signal.SIGTERM)
    time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 75 and "stopped by SIGTERM" in said, said
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert read_status(root).state == "stopped"
    run(config, root, "rounds=0")
    run(config, tmp_path / "whole", "rounds=0")
    assert tree(root) == tree(tmp_path / "whole")


def test_a_step_is_finished_and_saved_before_a_stop(monkeypatch):
    saved = []
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals(), finishing_steps() as stopping:
        for step in range(10):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            if stopping():
                saved.append(step)
                raise InterruptedError
    assert saved == [3]

    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals(), finishing_steps():
        os.kill(os.getpid(), signal.SIGTERM)  # after the last step: the block ends and leaves all the same

    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals(), finishing_steps() as stopping:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the scheduler's and the campaign's: no reason to lose the step
        saved.append(4)
        assert stopping()
        raise InterruptedError

    with pytest.raises(Stopped, match="SIGINT"), stop_on_signals(), finishing_steps():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # a user who does not wait
        saved.append(-1)

    with pytest.raises(Stopped, match="SIGTERM"), finishing_steps(lambda asked: True) as stopping:
        assert stopping()  # another process was asked
        raise InterruptedError
    with pytest.raises(InterruptedError), finishing_steps() as stopping:
        assert not stopping()
        raise InterruptedError  # nobody asked for it: an error like others

    monkeypatch.setattr("loop.stopping.SECONDS_FOR_A_STEP", 0.1)
    with pytest.raises(Stopped, match="SIGTERM"), stop_on_signals(), finishing_steps():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)  # a step that takes longer than a scheduler waits
        saved.append(-2)

    with pytest.raises(Stopped), stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)  # outside of such a block at once
        saved.append(-3)
    assert saved == [3, 4]
