"""What trackers get, that they get it once, and that nothing they do harms a campaign."""

import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from typer.testing import CliRunner

import loop.trackers
import loop.tracking
from loop.cli import app
from loop.config_file import load_config
from loop.curves import COLUMNS
from loop.errors import StageFailed, UserError
from loop.points import Feed, Point
from loop.stages import STAGES, Stage
from loop.store import Store
from loop.track_config import TrackioConfig, WandbConfig
from loop.trackers import RunToTrack, check_trackers, start_tracker
from loop.tracking import Ledger, run_id
from tests.toy_campaign import CONFIG, TOY_STAGES, run_toy_campaign, toy_stage, tree

ROOT = Path(__file__).parent.parent
TENSORBOARD = "track=[{type: tensorboard}]"


# A campaign with numbers: three steps of training a round, one metric, and the gates of the toy ------


def measured(name):
    def run(context):
        if name == "update":
            losses = [context.round + step / 10 for step in range(3)]
            rows = [{"step": n, "split": "train", "loss": x, "lr": None} for n, x in enumerate(losses)]
            rows.insert(2, {"step": 1, "split": "held_out", "loss": 9.0})
            (context.out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name == "evaluate":
            row = (context.round, "fool_rate", "report", "", 0.25, 0.125, 0.5, 8, "tiny")
            table = pyarrow.Table.from_pylist([dict(zip(COLUMNS, row, strict=True))])
            pyarrow.parquet.write_table(table, context.out / "metrics.parquet")
        toy_stage(name, context)

    return run


MEASURED = {
    name: Stage(measured(name) if name in ("update", "evaluate") else toy.function, toy.inputs, toy.config)
    for name, toy in TOY_STAGES.items()
}


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Runs it in tmp_path/run with overrides; trackers look every 10 ms."""
    monkeypatch.setattr(loop.tracking, "SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def run(*overrides, root=tmp_path / "run", stages=MEASURED):
        return run_toy_campaign(load_config(tmp_path / "toy.yaml", overrides), Store(root), stages=stages)

    return run


class Memory:
    """A tracker that keeps what it is told; the tests' own, opened in the place of tensorboard's."""

    def __init__(self):
        self.points, self.numbers, self.finished, self.runs = [], [], [], []

    def start(self, config, run):
        self.runs.append(run)
        return self

    where = "memory"

    def log(self, point, number):
        self.points.append(point)
        self.numbers.append(number)

    def finish(self, done):
        self.finished.append(done)

    def of(self, name):
        return [(point.step, point.values[name]) for point in self.points if name in point.values]


@pytest.fixture
def memory(monkeypatch):
    tracker = Memory()
    monkeypatch.setattr(loop.tracking, "start_tracker", lambda config, run: tracker.start(config, run))
    return tracker


# Points ---------------------------------------------------------------------------------------------


def test_a_feed_gives_every_number_of_a_run_once_as_it_appears(tmp_path):
    def write(path, text, commit=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if commit:
            (path.parent / "manifest.json").touch()

    def given(sent):
        found = list(feed.new(sent))
        for source, _ in found:
            sent[source] = sent.get(source, 0) + 1
        return [point for _, point in found if point is not None]

    feed, sent = Feed(tmp_path, 2), {}
    assert given(sent) == []
    for name in ("prepare", "evaluate"):
        write(tmp_path / "round-000" / name / "x", "")
    log = [
        {"phase": "supervised", "step": 10, "loss": 2.0, "note": "x", "grad": float("nan")},
        {"phase": "srpo", "step": 20, "loss": 1.0},
    ]
    work = tmp_path / "round-001" / ".work-train_judge" / "log.jsonl"
    write(work, json.dumps(log[0]) + "\n" + '{"phase": "su', commit=False)
    assert given(sent) == [Point("train_judge/step", 10, {"train_judge/supervised/loss": 2.0})]
    assert given(sent) == []
    write(work, "".join(json.dumps(row) + "\n" for row in log), commit=False)
    work.parent.rename(work.parent.with_name("train_judge"))
    (tmp_path / "round-001" / "train_judge" / "manifest.json").touch()
    Store(tmp_path).event("stage_committed", round=1, stage="train_judge", seconds=4.0)
    assert given(sent) == [
        Point("train_judge/step", 20, {"train_judge/srpo/loss": 1.0}),
        Point("round", 1, {"seconds/train_judge": 4.0}),
    ]
    write(tmp_path / "round-001" / "judge_gate" / "gate.json", '{"use": true, "reason": "good", "low": -0.5}')
    for name in ("sample", "label", "pair"):
        write(tmp_path / "round-001" / name / "x", "")
    write(tmp_path / "round-001" / "update" / "log.jsonl", '{"step": 0, "split": "train", "loss": 3}\n')
    for name in ("evaluate", "gate"):
        write(tmp_path / "round-001" / name / "x", "")
    write(tmp_path / "round-002" / ".work-train_judge" / "log.jsonl", json.dumps(log[0]) + "\n", commit=False)
    Store(tmp_path).event("stage_committed", round=1, stage="train_judge", seconds=9.0)  # made again
    assert given(sent) == [
        Point("round", 1, {"judge_gate/use": 1.0, "judge_gate/low": -0.5}),
        Point("update/step", 0, {"update/train/loss": 3.0}),
        Point("train_judge/step", 31, {"train_judge/supervised/loss": 2.0}),  # round 1 had 21 steps
    ]


def test_a_metric_of_a_second_judge_is_named_by_it(tmp_path):
    rows = [
        (0, "win_rate", "report", "", 0.5, 0.25, 0.75, 8, "aa"),
        (0, "win_rate", "report", "", 0.75, None, None, 8, "bb"),
        (0, "win_rate", "report", "red", 1.0, None, None, 1, "aa"),
    ]
    table = pyarrow.Table.from_pylist([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    for name in ("prepare", "evaluate"):
        (tmp_path / "round-000" / name).mkdir(parents=True)
        (tmp_path / "round-000" / name / "manifest.json").touch()
    pyarrow.parquet.write_table(table, tmp_path / "round-000" / "evaluate" / "metrics.parquet")
    [point] = [point for _, point in Feed(tmp_path, 0).new({}) if point is not None]
    assert point == Point("round", 0, {
        "evaluate/win_rate": 0.5, "evaluate/win_rate/low": 0.25, "evaluate/win_rate/high": 0.75,
        "evaluate/win_rate/by_bb": 0.75,
    })  # fmt: skip


# TensorBoard, really written ------------------------------------------------------------------------


def events_of(folder):
    """{tag: [(step, value)]} as TensorBoard shows a folder."""
    shown = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in shown.Tensors(tag)]
        for tag in shown.Tags()["tensors"]
    }


def test_tensorboard_gets_every_point_once_though_the_run_is_interrupted(campaign, tmp_path, monkeypatch):
    campaign(root=tmp_path / "untracked")
    monkeypatch.setenv("TOY_FAIL", "1-evaluate")
    with pytest.raises(StageFailed):
        campaign(TENSORBOARD)
    assert events_of(tmp_path / "run" / "logs" / "tensorboard")["evaluate/fool_rate"] == [(0, 0.25)]
    monkeypatch.delenv("TOY_FAIL")
    monkeypatch.setenv("TOY_REJECT", "2")
    campaign(TENSORBOARD)
    campaign(TENSORBOARD)  # has nothing to add
    seen = events_of(tmp_path / "run" / "logs" / "tensorboard")
    for tag, points in seen.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), tag
    loss = seen["update/train/loss"]
    assert [step for step, _ in loss] == [0, 1, 2, 3, 4, 5]  # of two rounds
    assert [value for _, value in loss] == pytest.approx([1.0, 1.1, 1.2, 2.0, 2.1, 2.2])
    assert seen["update/held_out/loss"] == [(1, 9.0), (4, 9.0)]
    assert seen["evaluate/fool_rate"] == [(0, 0.25), (1, 0.25), (2, 0.25)]
    assert seen["evaluate/fool_rate/low"] == [(0, 0.125), (1, 0.125), (2, 0.125)]
    assert seen["gate/keep"] == [(1, 1.0), (2, 0.0)] and seen["judge_gate/use"] == [(1, 1.0), (2, 1.0)]
    assert [step for step, _ in seen["seconds/sample"]] == [1, 2]
    monkeypatch.delenv("TOY_REJECT")


def test_a_run_may_get_a_tracker_later_and_its_artefacts_are_the_same(campaign, tmp_path):
    campaign()
    before = tree(tmp_path / "run")
    assert "track" not in json.loads(before["resolved.json"])
    campaign("track=[{type: tensorboard, directory: " + str(tmp_path / "boards") + "}]")
    [folder] = (tmp_path / "boards").iterdir()
    assert folder.name == run_id(tmp_path / "run", "toy") and folder.name.startswith("toy-")
    assert len(events_of(folder)["update/train/loss"]) == 6
    after = tree(tmp_path / "run")
    assert json.loads(after["resolved.json"])["track"][0]["type"] == "tensorboard"
    config_files = {"resolved.json", "campaign.yaml"}
    assert {k: v for k, v in before.items() if k not in config_files} == {
        k: v for k, v in after.items() if k not in config_files
    }


def test_tracking_needs_no_torch(tmp_path):
    (tmp_path / "toy.yaml").write_text(CONFIG + "track: [{type: tensorboard}]\n")
    code = (
        "import sys\nfrom loop.config_file import load_config\nfrom loop.store import Store\n"
        "from tests.toy_campaign import run_toy_campaign\n"
        f"run_toy_campaign(load_config('{tmp_path}/toy.yaml', ['rounds=0']), Store(__import__('pathlib').Path"
        f"('{tmp_path}/run')))\nprint(sorted({{'torch', 'wandb', 'trackio'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done
    assert list((tmp_path / "run" / "logs" / "tensorboard").iterdir())


# Strict at the start --------------------------------------------------------------------------------


def test_an_absent_package_stops_the_command_before_anything_is_written(campaign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = types.SimpleNamespace(origin=None)  # of that name, which is no package
    for found, name in ((None, "wandb"), (folder, "trackio")):
        monkeypatch.setattr(loop.trackers.importlib.util, "find_spec", lambda asked, found=found: found)
        config = CONFIG.replace("toy/toy", "embedded:tiny-wan", 1).replace("toy/toy", "embedded:tiny-judge")
        (tmp_path / "toy.yaml").write_text(config)
        done = CliRunner().invoke(app, ["run", "toy.yaml", "--set", f"track=[{{type: {name}}}]"])
        assert done.exit_code == 2, done.output
        assert f"track.0: the package {name} is not installed; pip install 'retake[trackers]'" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("track", "said"),
    [
        ("[{type: wandbb}]", "'wandbb'.*'tensorboard', 'wandb', 'trackio'"),
        ("[{type: wandb, projekt: x}]", r"track\.0\.projekt: unknown key"),
        ("[{type: wandb}, {type: wandb, name: b}]", "lists wandb retake twice"),
        ("[{project: x}]", "type"),
    ],
)
def test_a_wrong_section_is_an_error_of_the_config(tmp_path, track, said):
    (tmp_path / "toy.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match=said):
        load_config(tmp_path / "toy.yaml", [f"track={track}"])


def fake_package(monkeypatch, name, **contents):
    package = types.ModuleType(name)
    package.__spec__ = types.SimpleNamespace(origin="here", name=name)
    for key, value in contents.items():
        setattr(package, key, value)
    monkeypatch.setitem(sys.modules, name, package)


def test_a_tracker_without_its_key_or_against_its_mode_is_refused(monkeypatch):
    fake_package(monkeypatch, "wandb", login=lambda prompt, verify: False)
    fake_package(monkeypatch, "trackio")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"track\.0: wandb has no key; run `wandb login`.*mode to offline"):
        check_trackers([WandbConfig(type="wandb")])
    check_trackers([WandbConfig(type="wandb", mode="offline"), TrackioConfig(type="trackio")])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers([WandbConfig(type="wandb")])
    with pytest.raises(UserError, match="WANDB_MODE is offline, but the config wants the run online"):
        check_trackers([WandbConfig(type="wandb", mode="online")])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(UserError, match="WANDB_MODE is disabled, but the config wants the run tracked"):
        check_trackers([WandbConfig(type="wandb")])
    space = TrackioConfig(type="trackio", space="me/board")
    with pytest.raises(UserError, match=r"track\.0\.space needs a key of the Hugging Face Hub"):
        check_trackers([space])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        check_trackers([space])


def test_a_tracker_that_does_not_start_stops_the_campaign_before_any_stage(campaign, tmp_path, monkeypatch):
    def refuse(config, run):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(loop.tracking, "start_tracker", refuse)
    with pytest.raises(UserError, match="tensorboard cannot be started: no route to host; put it right"):
        campaign(TENSORBOARD)
    monkeypatch.setattr(loop.tracking, "SECONDS_TO_START", 0.05)
    monkeypatch.setattr(loop.tracking, "start_tracker", lambda config, run: threading.Event().wait())
    began = time.monotonic()
    with pytest.raises(UserError, match="tensorboard did not start within"):
        campaign(TENSORBOARD)
    assert time.monotonic() - began < 10
    assert not list((tmp_path / "run").glob("round-*"))
    (tmp_path / "run" / "logs" / "trackers").mkdir(exist_ok=True)
    Ledger(tmp_path / "run", "tensorboard")._file.write_text("{")
    with pytest.raises(UserError, match=r"tensorboard-\w+\.json is damaged; delete it"):
        campaign(TENSORBOARD)


# Never fatal later ----------------------------------------------------------------------------------


def test_a_tracker_that_fails_is_one_warning_and_gets_the_rest_later(campaign, memory, capfd, monkeypatch):
    broken = threading.Event()
    broken.set()
    keep = memory.points.append

    def log(point, number):
        if broken.is_set():
            raise ConnectionError("the cable is out")
        keep(point)

    monkeypatch.setattr(memory, "log", log)
    campaign(TENSORBOARD, "rounds=1")
    said = "tensorboard does not take the campaign's numbers (ConnectionError: the cable is out)"
    assert capfd.readouterr().err.count(said) == 1
    assert memory.points == [] and memory.finished == [True]
    broken.clear()
    campaign(TENSORBOARD, "rounds=2")
    assert memory.of("update/train/loss") == [(0, 1.0), (1, 1.1), (2, 1.2), (3, 2.0), (4, 2.1), (5, 2.2)]
    assert memory.of("evaluate/fool_rate") == [(0, 0.25), (1, 0.25), (2, 0.25)]
    assert len({run.id for run in memory.runs}) == 1
    assert memory.numbers == sorted(set(memory.numbers))


def test_a_tracker_that_hangs_is_left_behind(campaign, memory, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(loop.tracking, "SECONDS_TO_END", 0.2)
    monkeypatch.setattr(memory, "log", lambda point, number: threading.Event().wait())
    began = time.monotonic()
    campaign(TENSORBOARD, "rounds=1")
    assert time.monotonic() - began < 30
    assert "tensorboard hangs and was left behind" in capfd.readouterr().err
    assert [s.name for s in sorted((tmp_path / "run" / "round-001").iterdir())] == sorted(
        name for name in STAGES if name != "prepare"
    )


def test_what_stands_in_the_way_of_the_count_does_not_stop_the_campaign(campaign, memory, monkeypatch, capfd):
    def full(self, source):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "count", full)
    monkeypatch.setattr(memory, "finish", lambda done: 1 / 0)
    campaign(TENSORBOARD, "rounds=0")
    assert capfd.readouterr().err.count("warning: tensorboard") == 1


def test_training_is_seen_while_it_goes_on_and_a_failed_campaign_is_told(campaign, memory):
    def update(context):
        (context.out / "log.jsonl").write_text('{"step": 0, "split": "train", "loss": 3.0}\n')
        until = time.monotonic() + 20
        while not memory.of("update/train/loss") and time.monotonic() < until:
            time.sleep(0.01)
        assert memory.of("update/train/loss") == [(0, 3.0)], "not seen"
        raise RuntimeError("seen")

    toy = TOY_STAGES["update"]
    with pytest.raises(StageFailed, match="RuntimeError: seen"):
        campaign(TENSORBOARD, stages={**MEASURED, "update": Stage(update, toy.inputs, toy.config)})
    assert memory.finished == [False]


def test_a_run_keeps_its_id_where_it_is_moved(tmp_path):
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert run_id(first, "toy") != run_id(second, "toy")
    known = run_id(first, "toy")
    (tmp_path / "a").rename(tmp_path / "c")
    assert run_id(tmp_path / "c" / "run", "toy") == known


# wandb and trackio ----------------------------------------------------------------------------------


def test_wandb_is_told_of_axes_and_of_the_run_to_resume(tmp_path, monkeypatch):
    """Against a stand-in of the same interface: what is asked of the package."""
    asked = []

    class Run:
        def define_metric(self, name, step_metric=None):
            asked.append((name, step_metric))

        url, dir = None, "folder"

        def log(self, values, step, commit):
            asked.append((values, step, commit))

        def finish(self, exit_code):
            asked.append(exit_code)

    def init(**given):
        asked.append(given)
        return Run()

    fake_package(monkeypatch, "wandb", init=init, Settings=lambda **given: given)
    run = RunToTrack("toy", "toy-0a", tmp_path, {"seed": 0})
    tracker = start_tracker(WandbConfig(type="wandb", entity="us", tags=["a"]), run)
    tracker.log(Point("update/step", 3, {"update/train/loss": 0.5}), 17)
    tracker.finish(False)
    given, *axes, logged, code = asked
    assert (given["id"], given["resume"]) == ("toy-0a", "allow")
    assert (given["project"], given["entity"], given["tags"]) == ("retake", "us", ["a"])
    assert given["dir"] == str(tmp_path / "logs") and given["config"] == {"seed": 0}
    assert ("update/*", "update/step") in axes and ("train_judge/*", "train_judge/step") in axes
    assert ("evaluate/*", "round") in axes and ("round", None) in axes
    assert logged == ({"update/train/loss": 0.5, "update/step": 3}, 17, True) and code == 1
    assert tracker.where == "offline in folder"


REAL = """
import sys
from pathlib import Path
from loop.config_file import load_config
from loop.store import Store
import loop.tracking
loop.tracking.SECONDS_TO_END = 60
from tests.test_trackers import MEASURED, run_toy_campaign
run_toy_campaign(load_config("toy.yaml", sys.argv[1:]), Store(Path("run")), stages=MEASURED)
"""


@pytest.fixture
def in_a_process(tmp_path):
    """A campaign in a process of its own, as a user would start it; a failing stage is let pass."""
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def run(*overrides, expect=0, **environment):
        done = subprocess.run(
            [sys.executable, "-c", REAL, *overrides], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        assert done.returncode == expect, done.stderr
        return done

    return run


def test_wandb_offline_for_real(in_a_process, tmp_path):
    pytest.importorskip("wandb")
    track = "track=[{type: wandb, mode: offline, project: mine}]"
    in_a_process(track, expect=1, TOY_FAIL="1-evaluate")
    done = in_a_process(track)
    assert "warning" not in done.stderr and done.stdout == ""
    points = []
    for file in sorted((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*/*.wandb")):
        assert file.name == f"run-{run_id(tmp_path / 'run', 'toy')}.wandb"
        points += wandb_history(file)
    losses = [(p["update/step"], p["update/train/loss"]) for p in points if "update/train/loss" in p]
    assert losses == [(0, 1.0), (1, 1.1), (2, 1.2), (3, 2.0), (4, 2.1), (5, 2.2)]
    assert [(p["round"], p["gate/keep"]) for p in points if "gate/keep" in p] == [(1, 1.0), (2, 1.0)]
    steps = [p["_step"] for p in points if "_step" in p]
    assert steps == sorted(set(steps))  # they go on in the second folder


def wandb_history(file):
    """The rows of an offline run: records of a LevelDB log (blocks of 32 KiB) after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, rows, whole = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little of the block is left for a header
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record, whole = wandb_internal_pb2.Record.FromString(whole), b""
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def test_trackio_for_real(in_a_process, tmp_path):
    pytest.importorskip("trackio")
    track = "track=[{type: trackio, project: mine}]"
    home = str(tmp_path / "trackio")
    in_a_process(track, expect=1, TOY_FAIL="1-evaluate", TRACKIO_DIR=home)
    done = in_a_process(track, TRACKIO_DIR=home)
    assert "warning" not in done.stderr and done.stdout == ""
    code = (
        "import json, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "[run] = trackio.Api().runs('mine')\n"
        "print(json.dumps([run.name, *SQLiteStorage.get_logs('mine', run.name)]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "TRACKIO_DIR": home}
    )
    name, *rows = json.loads(found.stdout.splitlines()[-1])
    assert name == run_id(tmp_path / "run", "toy")
    losses = [(row["step"], row["update/train/loss"]) for row in rows if "update/train/loss" in row]
    assert losses == [(0, 1.0), (1, 1.1), (2, 1.2), (3, 2.0), (4, 2.1), (5, 2.2)]
