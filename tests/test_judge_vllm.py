"""`judge.type: vllm` with a small command in vLLM's place: started, waited for, restarted, ended."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from loop.config import CampaignConfig
from loop.errors import UserError
from loop.models import check_models, makes_judge
from loop.runner import StageRunner
from loop.stages import STAGES, StageContext
from loop.steps import train_judge
from loop.steps.judging import judge_config
from reward.config import JudgeConfig
from reward.judge import Judge, load_judge
from reward.judges import server_process
from reward.judges.openai import request_seed
from reward.judges.server import ServerUnavailable
from reward.vllm_config import command_line
from reward.voting import make_asks
from tests.reward_clips import question

ROOT = Path(__file__).parent.parent


def command(folder):
    """The fake as an executable."""
    path = folder / "bin" / "vllm"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{(ROOT / 'tests' / 'fake_vllm.py').read_text()}")
    path.chmod(0o755)
    return str(path)


def config(folder, vllm=None, server=None, fake=None, **changes):
    environment = {"FAKE": json.dumps({"folder": str(folder), **(fake or {})})}
    settings = {
        "type": "vllm",
        "model": str(folder),
        "instructions": "compare {dimensions}",
        "num_frames": 4,
        "num_segment_frames": 3,
        "dimensions": ("motion", "overall"),
        "server": {"backoff_seconds": 0.0, "max_retries": 3, **(server or {})},
        "vllm": {
            "executable": command(folder),
            "environment": environment,
            "log": str(folder / "server.log"),
            **(vllm or {}),
        },
    }
    return JudgeConfig(**{**settings, **changes})


def asks(num_questions=2, num_ballots=2):
    return [ask for i in range(num_questions) for ask in make_asks(question(f"q{i}"), num_ballots)]


def rows(folder, name):
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lives(pid):
    """Whether a process is there and has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, seconds=5.0):
    until = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(lives, pids))


def pids(folder):
    return [pid for row in rows(folder, "starts") for pid in (row["pid"], row["child"])]


def trouble(kind, *args, **kwargs):
    """The message of the error that asking raises."""
    judge = load_judge(config(*args, **kwargs))
    try:
        with pytest.raises(kind) as caught:
            judge.vote(asks())
    finally:
        judge.close()
    return str(caught.value)


def test_a_server_is_started_asked_and_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/this/environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not stand between
    arguments = {"max-model-len": 4096, "enforce-eager": True, "enable-prefix-caching": False}
    judge = load_judge(config(tmp_path, {"arguments": arguments, "log": None}, dtype="float32"))
    assert isinstance(judge, Judge)
    assert (
        judge.vote([]) == [] and judge.identity() and not rows(tmp_path, "starts")
    )  # not before it is needed
    asked = asks()
    votes = judge.vote(asked)
    assert [vote.reasoning for vote in votes] == [f"{request_seed(ask)} 0" for ask in asked]
    assert len(judge.vote(asks(1, 1))) == 2
    [start] = rows(tmp_path, "starts")
    executable, serve, model, *words = start["argv"]
    assert (executable, serve, model) == (command(tmp_path), "serve", str(tmp_path))
    given = dict(zip(words[::2], words[1::2], strict=False))
    assert given["--host"] == "127.0.0.1" and given["--generation-config"] == "vllm"
    assert given["--dtype"] == "float32" and given["--max-model-len"] == "4096"
    assert json.loads(given["--limit-mm-per-prompt"]) == {"image": 8, "video": 0}
    assert words[-2:] == ["--enforce-eager", "--no-enable-prefix-caching"]
    assert {row["model"] for row in rows(tmp_path, "requests")} == {given["--served-model-name"]}
    variables = start["variables"]
    assert "PYTHONPATH" not in variables and variables["VLLM_HOST_IP"] == "127.0.0.1"
    assert variables["PATH"].startswith(str(tmp_path / "bin") + os.pathsep)
    assert all(map(lives, pids(tmp_path)))
    log = judge.server.process.log_path
    assert "starting" in log.read_text()
    judge.close()
    assert gone(pids(tmp_path)) and not log.exists()


@pytest.mark.parametrize(("requests", "at"), [("one_vote", 9), ("one_order", 3)])
def test_killed_while_it_is_asked_it_is_started_again_and_no_vote_is_lost_or_doubled(tmp_path, requests, at):
    server = {"max_concurrency": 4, "requests": requests}
    judge = load_judge(config(tmp_path, server=server, fake={"kills": [at]}))
    asked = asks(4, 3)
    try:
        votes = judge.vote(asked)
    finally:
        judge.close()
    assert [(v.question_id, v.swapped, v.ballot) for v in votes] == [
        (a.question.id, a.swapped, a.ballot) for a in asked
    ]
    if requests == "one_vote":
        assert [vote.reasoning for vote in votes] == [f"{request_seed(ask)} 0" for ask in asked]
    else:
        assert len({vote.reasoning for vote in votes}) == len(asked)
    assert len(rows(tmp_path, "starts")) == 2
    assert gone(pids(tmp_path))  # those of the first start, too, which nobody had ended


def test_a_server_that_keeps_dying_is_given_up(tmp_path):
    fake = {"kills": list(range(100)), "says": "the last words"}
    said = trouble(ServerUnavailable, tmp_path, {"max_restarts": 2}, {"max_retries": 9}, fake)
    assert "ended (signal 9) while it was asked, and so did 2 before it (judge.vllm.max_restarts)" in said
    assert "the last words" in said and "resumes" in said
    assert len(rows(tmp_path, "starts")) == 3


@pytest.mark.parametrize(
    ("says", "remedy"),
    [
        ("vllm: error: unrecognized arguments: --x", r"correct judge.vllm.arguments"),
        (
            "ValueError: No available memory for the cache blocks.",
            "judge.vllm.arguments.gpu-memory-utilization",
        ),
        (
            "ImportError: libcudart.so.12: cannot open shared object",
            "the environment of judge.vllm.executable",
        ),
        ("it is Monday", "change judge.vllm.arguments or judge.vllm.environment"),
    ],
)
def test_a_server_that_does_not_start_says_why(tmp_path, says, remedy):
    log = tmp_path / "logs" / "server.log"
    said = trouble(ValueError, tmp_path, {"log": str(log)}, fake={"says": says, "ends": True})
    assert "ended before it answered (exit code 3)" in said and remedy in said
    assert f"The end of its log, {log}:\n" in said and f"  {says}\n" in said
    assert len(rows(tmp_path, "starts")) == 1 and gone(pids(tmp_path))
    assert log.read_text().startswith("$ ")


def test_the_error_above_a_long_log_is_shown_too(tmp_path):
    noise = "\n".join(f"line {i}" for i in range(30))
    fake = {"says": f"RuntimeError: the root cause\n{noise}", "ends": True}
    said = trouble(ValueError, tmp_path, {"log": None}, fake=fake)
    assert "  RuntimeError: the root cause\n  line 22\n" in said and "line 21" not in said
    kept = Path(said.partition("its log, ")[2].partition(":\n")[0])
    assert "the root cause" in kept.read_text()
    shutil.rmtree(kept.parent)


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = trouble(ValueError, tmp_path, {"port": taken.getsockname()[1]})
    assert "set judge.vllm.port to a free one, or to null" in said


def test_a_server_that_never_answers_is_ended(tmp_path):
    said = trouble(ValueError, tmp_path, {"start_timeout_seconds": 1.0}, fake={"unhealthy": True})
    assert "did not answer within 1 s; raise judge.vllm.start_timeout_seconds" in said
    assert gone(pids(tmp_path))


def test_a_stubborn_server_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(server_process, "_GRACE", 0.2)
    judge = load_judge(config(tmp_path, fake={"stubborn": True}))
    judge.vote(asks(1, 1))
    judge.close()
    assert gone(pids(tmp_path))


ORPHAN = """\
import sys, time
from reward.config import JudgeConfig
from reward.judge import load_judge
from reward.voting import make_asks
from tests.reward_clips import question
judge = load_judge(JudgeConfig.model_validate_json(sys.stdin.read()))
print(len(judge.vote(make_asks(question(), 4))), flush=True)
if sys.argv[1] == "stays":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["kill", "exit"])
def test_no_server_outlives_the_campaign(tmp_path, end):
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, "stays" if end == "kill" else "goes"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        process.stdin.write(config(tmp_path).model_dump_json())
        process.stdin.close()
        assert process.stdout.readline() == "8\n"
        if end == "kill":
            assert all(map(lives, pids(tmp_path)))
            process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert len(pids(tmp_path)) == 2 and gone(pids(tmp_path))


class Stopped(BaseException):
    pass


def test_a_signal_ends_the_waiting_for_a_start(tmp_path):
    def stop(number, frame):
        raise Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        judge = load_judge(config(tmp_path, fake={"unhealthy": True}))
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            judge.vote(asks())
        judge.close()
        assert time.monotonic() - began < 5 and gone(pids(tmp_path))
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"set judge\.model to a folder, a hub id or embedded:NAME"),
        ({"server": {"base_url": "http://localhost:1/v1"}}, r"remove judge\.server\.base_url"),
        ({"server": {"api_key_env": "KEY"}}, r"remove judge\.server\.base_url and api_key_env"),
        ({"server": {"requests": "one_order"}, "temperature": 0}, "to one_vote"),
        ({"vllm": {"arguments": {"--max-model-len": 1}}}, "without the dashes in front"),
        ({"vllm": {"arguments": {"host": "0.0.0.0"}}}, "host is set by retake"),
        ({"vllm": {"arguments": {"no-trust-remote-code": True}}}, r"judge\.trust_remote_code"),
        ({"vllm": {"arguments": {"enforce-eager": None}}}, "true passes the flag alone"),
    ],
)
def test_a_wrong_section_names_the_remedy(tmp_path, changes, message):
    with pytest.raises(ValidationError, match=message):
        config(tmp_path, **{"vllm": {}, "server": {}, **changes})


def test_arguments_become_words():
    given = {"a": 1, "b": True, "c": False, "d": {"image": 2}, "e": [3, "x"], "f": "y"}
    words = ["--a", "1", "--b", "--no-c", "--d", '{"image": 2}', "--e", "3", "x", "--f", "y"]
    assert command_line(given) == words


def campaign(model, **judge):
    return CampaignConfig.model_validate(
        {
            "name": "x",
            "generator": {"model": "embedded:tiny-wan"},
            "judge": {"type": "vllm", "model": str(model), **judge},
            "train_judge": {"num_steps": 3},
        }
    )


def test_a_missing_command_is_said_before_anything_runs():
    with pytest.raises(UserError, match=r"judge\.vllm\.executable: no command '/no/vllm'"):
        check_models(campaign("embedded:tiny-judge", vllm={"executable": "/no/vllm"}))


def test_a_run_goes_on_with_more_room_and_not_with_another_quantisation(tmp_path):
    def judge_slice(**judge):
        config = campaign("embedded:tiny-judge", **judge)
        return StageRunner._slice(SimpleNamespace(config=config), STAGES["label"])["judge"]

    bare = judge_slice()
    assert "weights" in bare and "vllm" not in bare
    assert bare == judge_slice(vllm={}, server={"max_concurrency": 2})
    room = {"max-model-len": 99, "no-enable-prefix-caching": True}
    assert bare == judge_slice(
        vllm={"arguments": room, "port": 8000, "environment": {"A": 1}, "max_restarts": 0, "executable": "x"}
    )
    assert bare != judge_slice(vllm={"arguments": {"quantization": "fp8"}})
    in_process = {"name": "x", "generator": {"model": "a/b"}, "judge": {"model": "embedded:tiny-judge"}}
    assert "vllm" not in CampaignConfig.model_validate(in_process).model_dump()["judge"]  # older runs go on


def test_identity_is_of_the_weights_and_what_decides_votes(tmp_path):
    def identity(*args, **kwargs):
        return load_judge(config(*args, **kwargs)).identity()

    folders = [tmp_path / name for name in "abc"]
    for folder, content in zip(folders, ("one", "one", "two"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_text(content)
    one = identity(tmp_path, model=str(folders[0]))
    assert one == identity(tmp_path, {"port": 8001}, model=str(folders[1]))
    others = [
        identity(tmp_path, model=str(folders[2])),
        identity(tmp_path, {"arguments": {"quantization": "fp8"}}, model=str(folders[0])),
        identity(tmp_path, dtype="float32", model=str(folders[0])),
        identity(tmp_path, model="some/where"),
        identity(tmp_path, model="some/where-else"),
    ]
    assert len({one, *others}) == 6


def test_it_serves_what_train_judge_made_in_process(tmp_path):
    """And its log is the stage's, so that it stays where a stage fails."""
    training = campaign("embedded:tiny-judge", vllm={"executable": sys.executable})
    check_models(training)
    assert makes_judge(training)
    ctx = StageContext(training, 1, {}, tmp_path, 0, None, logging.getLogger("retake.test"))
    as_it_came = judge_config(ctx, None)
    assert as_it_came.model.endswith("tiny-judge")
    assert as_it_came.vllm.log == str(tmp_path / "_scratch" / "vllm.log")
    assert judge_config(ctx, tmp_path).model == as_it_came.model  # a round that trained nothing
    (tmp_path / "judge").mkdir()
    assert judge_config(ctx, tmp_path).model == str(tmp_path / "judge")


def test_without_steps_nothing_is_loaded_in_process(tmp_path):
    config = campaign("some/seventy-billion").model_copy(
        update={"train_judge": campaign("a/b").train_judge.model_copy(update={"num_steps": 0})}
    )
    train_judge.run(StageContext(config, 1, {}, tmp_path, 0, None, logging.getLogger("retake.test")))
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"trained": False}
    assert not (tmp_path / "judge").exists()
