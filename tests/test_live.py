"""Time left, the file of the running stage, `retake status --watch`, and logs for grep."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Task
from typer.testing import CliRunner

import loop.progress
import loop.progress_file
import loop.watch
from loop.cli import app
from loop.config import CampaignConfig
from loop.config_file import load_config
from loop.errors import StageFailed, UserError
from loop.eta import Running, durations, outlook
from loop.launchers import ProcessLauncher
from loop.logs import LineFormatter, rank_file
from loop.progress import CampaignColumn, Display, LineProgress, in_words
from loop.progress_file import Reading, RecordedProgress, read_progress
from loop.stages import Stage, StageContext, plan
from loop.status import read_status
from loop.status_text import status_lines
from loop.store import Store
from tests.toy_campaign import CONFIG, run_toy_campaign

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_name("toy_campaign.py")


# Time left ------------------------------------------------------------------------------------


def event(kind, round, stage, seconds=None):
    more = {} if seconds is None else {"seconds": seconds}
    return {"event": f"stage_{kind}", "round": round, "stage": stage, **more}


def test_a_stage_took_all_the_time_of_its_attempts_since_it_was_last_committed():
    events = [
        event("started", 1, "sample"),
        event("stopped", 1, "sample", 30.0),
        event("started", 1, "sample"),
        event("failed", 1, "sample", 5.0),
        event("started", 1, "sample"),
        event("committed", 1, "sample", 10.0),
        event("committed", 1, "label", 7.0),
        event("committed", 1, "label", 4.0),  # moved away and made again
        event("stopped", 2, "sample", 99.0),
    ]
    assert durations(events) == {(1, "sample"): 45.0, (1, "label"): 4.0}


def test_time_left_is_that_of_the_last_round_and_unknown_before_one():
    steps = plan(3)
    first = dict.fromkeys(steps[:2], 100.0) | dict.fromkeys(steps[2:10], 10.0)
    for known in range(10):
        unknown = outlook(steps[known:], dict(list(first.items())[:known]))
        assert unknown.seconds_left is None and "every stage of a round has been timed" in unknown.rests_on
    after_one = outlook(steps[10:], first)  # two rounds of eight stages of 10 s
    assert after_one.seconds_left == 160.0 and after_one.rests_on.endswith("it last did, in round 1")
    taken = {**first, (2, "train_judge"): 20.0, (2, "judge_gate"): 4.0}
    in_two = outlook(steps[12:], taken)  # six of 10 s, then one of 20 s, one of 4 s and six of 10 s
    assert in_two.seconds_left == 144.0 and in_two.rests_on.endswith("in rounds 1 to 2")
    assert outlook([], taken).seconds_left == 0.0


def test_the_running_stage_counts_what_it_has_left_and_no_less_than_its_phase_says():
    steps, taken = plan(2)[10:], dict.fromkeys(plan(1), 10.0)
    at = steps[0]
    assert outlook(steps, taken, Running(at, 4.0, None)).seconds_left == 76.0
    assert outlook(steps, taken, Running(at, 4.0, 50.0)).seconds_left == 120.0
    assert outlook(steps, taken, Running(at, 40.0, None)).seconds_left == 70.0  # late, but not less than none


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.26, "8.3 s"), (48, "48 s"), (124, "2 min 04 s"), (12_000, "3 h 20 min"), (190_800, "2 d 5 h")],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.fixture
def clock(monkeypatch):
    """Seconds of both clocks."""
    seconds = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(time, "time", lambda: seconds[0])
    return seconds


def test_lines_and_bars_tell_the_campaigns_time_left(clock):
    out = io.StringIO()
    progress = LineProgress("sample", Console(file=out, width=40), campaign_left=600.0)
    progress.start(4, "clips")
    clock[0] += 20
    progress.advance()
    assert out.getvalue().splitlines() == [
        "sample … (campaign: about 10 min 00 s)",
        "sample: 1/4 clips, about 1 min 00 s left (campaign: about 9 min 40 s)",
    ]
    bars = Display(2, Console(file=io.StringIO(), force_terminal=True, width=120))
    try:
        bars.stage(2, "sample", 90.0)
        [task] = bars._bars.tasks
        clock[0] += 30
        assert CampaignColumn().render(task).plain == "all 1 min 00 s"
        assert isinstance(task, Task)
    finally:
        bars.close()


# The file of the running stage ----------------------------------------------------------------


def test_the_file_tells_how_far_the_stage_is_once_a_second_at_most(tmp_path, clock):
    calls = []

    class Shown:
        def start(self, total, unit):
            calls.append((total, unit))

        def advance(self, n=1):
            calls.append(n)

        def done(self):
            calls.append("done")

    file = tmp_path / "progress.json"
    progress = RecordedProgress(Shown(), file, 2, "sample", logging.getLogger("retake"))
    assert read_progress(file) == Reading(2, "sample", "", 0, 0, 0.0, 0.0, 1000.0)
    clock[0] += 5
    progress.start(40, "clips")
    clock[0] += 0.5
    progress.advance(4)
    assert read_progress(file).done == 0  # too soon
    clock[0] += 9.5
    progress.advance(4)
    progress.done()
    found = read_progress(file)
    assert found == Reading(2, "sample", "clips", 8, 40, 15.0, 10.0, 1015.0)
    assert found.seconds_left(now=1015.0) == 40.0  # 32 clips at 10 s / 8
    assert found.seconds_left(now=1018.0) == 37.0
    assert found.seconds_left(now=10.0) == 40.0  # the clock went backwards
    assert calls == [(40, "clips"), 4, 4, "done"]
    assert [p.name for p in tmp_path.iterdir()] == ["progress.json"]
    for text in ("", "{", '{"round": 1}', "[]", "\xff"):
        file.write_text(text, encoding="latin-1")
        assert read_progress(file) is None


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    shown = LineProgress("sample", Console(file=io.StringIO()))
    progress = RecordedProgress(shown, tmp_path / "gone" / "progress.json", 1, "sample", logging.getLogger())
    progress.start(3, "clips")
    progress.start(3, "steps")
    [record] = caplog.records
    assert record.levelname == "WARNING" and "cannot be written, so retake status is behind" in record.message


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy campaign as a subprocess of the real command line; returns a function that starts it."""
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def start(*arguments, **environment):
        return subprocess.Popen(
            [sys.executable, SCRIPT, "run", "toy.yaml", *arguments], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    monkeypatch.chdir(tmp_path)
    return start


def test_a_running_stage_is_seen_from_outside_until_the_campaign_ends(toy, tmp_path):
    running = toy("--rounds", "3", TOY_HANG="2-label")
    try:
        assert running.stdout.readline() == "hanging\n"
        shown = CliRunner().invoke(app, ["status", "toy", "--json"])
        status = json.loads(shown.stdout)
        now = status["running"]
        where = [now[key] for key in ("round", "stage", "done", "total", "unit")]
        assert where == [2, "label", 0, 4, "shards"] and now["seconds"] > 0
        assert now["seconds_left"] is None
        assert now["log"] == "logs/attempt-1/002-label.log"
        taken = durations(Store(tmp_path / "runs" / "toy").events())
        last = {stage: seconds for (round, stage), seconds in taken.items() if round > 0}  # later ones win
        most = sum(last[stage] for _, stage in plan(3)[2 + 8 + 3 :])
        assert most - last["label"] <= status["seconds_left"] <= most
        assert status["seconds_left_rests_on"].endswith("in rounds 1 to 2")
        text = CliRunner().invoke(app, ["status", "toy"]).stdout
        assert re.search(r"round 2  label        running   0/4 shards, [0-9.]+ s so far\n", text)
        assert re.search(r"time left: about [0-9.]+ s of the campaign \(each stage taking as long as", text)
        watching = subprocess.Popen(
            [sys.executable, "-m", "loop.cli", "status", "toy", "--watch", "--every", "0.1"], text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begins = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d toy: running, 1 of 3 rounds done, round 2 label 0/4 "
        assert re.match(begins, watching.stdout.readline())
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=20)
    rest, said = watching.communicate(timeout=20)
    assert watching.returncode == 75 and said == ""
    [line] = rest.splitlines()  # nothing had changed before
    assert "toy: stopped, 1 of 3 rounds done" in line
    status = read_status(tmp_path / "runs" / "toy")
    assert (status.state, status.running) == ("stopped", None)


def test_before_a_whole_round_status_says_that_nothing_is_known(tmp_path, monkeypatch, capfd):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.setenv("TOY_FAIL", "1-gate")
    with pytest.raises(StageFailed):
        run_toy_campaign(load_config(tmp_path / "toy.yaml"), Store(tmp_path / "run"))
    said = capfd.readouterr().err
    assert said.count("the campaign's time left is known after a whole round") == 1
    status = read_status(tmp_path / "run")
    assert status.seconds_left is None
    text = "\n".join(status_lines(status))
    assert "time left: not known before every stage of a round has been timed once" in text
    monkeypatch.delenv("TOY_FAIL")
    run_toy_campaign(load_config(tmp_path / "toy.yaml"), Store(tmp_path / "run"))
    assert re.search(r"round 2/2 sample … \(campaign: about [0-9.]+ s\)\n", capfd.readouterr().err)
    status = read_status(tmp_path / "run")
    assert status.seconds_left == 0.0 and "time left" not in "\n".join(status_lines(status))


# status --watch -------------------------------------------------------------------------------


def test_ctrl_c_ends_a_watch_without_a_word(finished, monkeypatch):
    def pressed(root, every, as_json):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.watch, "watch", pressed)
    done = CliRunner().invoke(app, ["status", str(finished), "--watch"])
    assert (done.exit_code, done.output) == (130, "")


def test_a_watch_of_a_campaign_that_has_ended_says_how(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY_FAIL", "1-pair")
    with pytest.raises(StageFailed):
        run_toy_campaign(load_config("toy.yaml"), Store(tmp_path / "runs" / "toy"))
    done = CliRunner().invoke(app, ["status", "toy", "--watch"])
    assert done.exit_code == 1 and "failed, 0 of 2 rounds done: stage pair of round 1 failed" in done.stdout
    monkeypatch.delenv("TOY_FAIL")
    run_toy_campaign(load_config("toy.yaml"), Store(tmp_path / "runs" / "toy"))
    done = CliRunner().invoke(app, ["status", "toy", "--watch", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["state"] == "done"


@pytest.fixture
def finished(tmp_path):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    run_toy_campaign(load_config(tmp_path / "toy.yaml", ["rounds=1"]), Store(tmp_path / "run"))
    return tmp_path / "run"


def test_a_watch_survives_what_happens_under_it_and_tells_what_stays_wrong(finished, monkeypatch, capsys):
    looks = []

    def read(root):
        looks.append(root)
        if len(looks) in (1, 2, 4, 5):
            raise FileNotFoundError("renamed meanwhile")
        status = read_status(root)
        return status if len(looks) == 6 else type(status)(**{**vars(status), "state": "running"})

    monkeypatch.setattr(loop.watch, "read_status", read)
    assert loop.watch.watch(finished, 0.01) == 0 and len(looks) == 6
    first, second = capsys.readouterr().out.splitlines()
    assert "toy: running" in first and "toy: done" in second
    monkeypatch.undo()
    (finished / "round-001" / "pair" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read: .*pair/manifest\.json is damaged"):
        loop.watch.watch(finished, 0.01)


def test_a_watch_tells_that_the_run_directory_is_gone(finished, monkeypatch):
    running = read_status(finished)
    seen = iter([type(running)(**{**vars(running), "state": "running"})])
    monkeypatch.setattr(loop.watch, "read_status", lambda root: next(seen, None) or read_status(root))
    moving = threading.Timer(0.05, lambda: finished.rename(finished.with_name("elsewhere")))
    moving.start()
    monkeypatch.setattr(loop.watch.time, "sleep", lambda seconds: moving.join())
    with pytest.raises(UserError, match="is gone"):
        loop.watch.watch(finished, 0.01)


def test_a_terminal_is_drawn_again_with_the_round_under_way(finished):
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=100, height=40)
    assert loop.watch.watch(finished, 0.01, console=screen) == 0
    assert "run: done" not in out.getvalue() and "toy: done, 1 of 1 rounds done" in out.getvalue()
    assert "round 1  gate         committed" in out.getvalue() and "round 0" not in out.getvalue()


def test_status_and_watch_import_nothing_heavy(finished):
    code = (
        "import sys, loop.cli\n"
        f"sys.argv = ['retake', 'status', {str(finished)!r}, '--watch']\n"
        "try:\n    loop.cli.main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'pyarrow', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done


# Logs -----------------------------------------------------------------------------------------


def test_every_line_of_a_message_can_be_found_by_grep():
    record = logging.makeLogRecord({"name": "retake", "levelno": 30, "levelname": "WARNING", "created": 0.5})
    record.msg, record.args = "first\nsecond %s", ("half",)
    try:
        raise ValueError("seen")
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = LineFormatter(3).format(record).splitlines()
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING rank 3 retake: (.*)"
    texts = [re.fullmatch(pattern, line).group(1) for line in lines]
    assert texts[:3] == ["first", "second half", "Traceback (most recent call last):"]
    assert texts[-1] == "ValueError: seen"
    record.msg, record.args, record.exc_info, record.exc_text = "", (), None, None
    assert re.fullmatch(pattern, LineFormatter(3).format(record)).group(1) == ""
    assert rank_file(Path("logs/attempt-1/003-update.log"), 2) == Path("logs/attempt-1/003-update.rank-2.log")


class SeveralProcesses(ProcessLauncher):
    """A worker that takes itself for the second of two."""

    def starts_several(self, stage):
        return True

    def command(self, stage, request):
        code = (
            "import sys, pathlib, loop.distributed as d, loop.worker as w\n"
            "d.start = lambda: 1\n"
            "d.description = lambda: 'rank one is here'\n"
            "sys.exit(w.main(pathlib.Path(sys.argv[1])))"
        )
        return [sys.executable, "-c", code, str(request)]


def test_another_rank_writes_a_log_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    config = CampaignConfig.model_validate(
        {"name": "two", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}, "threads": 1}
    )
    (tmp_path / "out").mkdir()
    log_file = tmp_path / "003-update.log"
    progress = LineProgress("update", Console(file=io.StringIO()))
    context = StageContext(
        config,
        3,
        {"prepare": tmp_path},
        tmp_path / "out",
        7,
        progress,
        logging.getLogger("retake"),
        log_file=log_file,
    )
    with pytest.raises(ValueError, match="bad number"):
        SeveralProcesses(config).launch(Stage("tests.worker_stages:raises_subclass", (), ()), context)
    lines = (tmp_path / "003-update.rank-1.log").read_text().splitlines()
    assert all(re.match(r"\S+ \S+ [A-Z]+ rank 1 \w+: ", line) for line in lines)
    assert lines[0].endswith(" INFO rank 1 retake: rank one is here")
    assert lines[-1].endswith(" ERROR rank 1 retake: tests.worker_stages.BadNumber: bad number")
