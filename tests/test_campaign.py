"""The round's order, what is in force, and that any interruption ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import loop.store
from loop.config import CampaignConfig, changed_keys
from loop.config_file import all_keys, load_config
from loop.errors import StageFailed, UserError
from loop.models import model_identity
from loop.progress import Display
from loop.runner import StageRunner
from loop.stages import STAGES, derive_seed, plan
from loop.store import Store
from tests.toy_campaign import CONFIG, TOY_STAGES, run_toy_campaign, tree

SCRIPT = Path(__file__).with_name("toy_campaign.py")
ROOT = SCRIPT.parent.parent
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def run(config: Path, root: Path, *overrides: str, **changes) -> Path:
    return run_toy_campaign(load_config(config, overrides), Store(root), **changes)


def command(config: Path, root: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "run", str(config), "--dir", str(root), *arguments]


def start(config: Path, root: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(config, root, *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def inputs(root: Path, round: int, stage: str) -> dict[str, str]:
    return json.loads((root / f"round-{round:03d}" / stage / "inputs.json").read_text())


def test_every_stage_of_the_plan_is_committed_in_order(config, tmp_path):
    root = tmp_path / "run"
    assert run(config, root) == root / "report.html"
    committed = [e for e in Store(root).events() if e["event"] == "stage_committed"]
    assert [(e["round"], e["stage"]) for e in committed] == plan(2)
    assert (root / "campaign.yaml").read_text() == CONFIG
    assert json.loads((root / "resolved.json").read_text())["name"] == "toy"
    assert (root / "lock").read_text() == ""


def test_the_stage_table_names_sections_of_the_config(config):
    sections = set(CampaignConfig.model_fields)  # idle ones stand in no dump
    for stage in STAGES.values():
        assert set(stage.config) <= set(all_keys())
    free = {"name", "rounds", "patience", "threads", "launch", "track"}
    assert {key for stage in STAGES.values() for key in stage.config if "." not in key} == sections - free
    assert load_config(config).config.part(("seed", "pair.real_wins")) == {
        "seed": 0,
        "pair": {"real_wins": "certain"},
    }


def test_the_newest_accepted_judge_and_generator_are_in_force(config, tmp_path):
    root = tmp_path / "run"
    run(config, root)
    assert inputs(root, 0, "evaluate") == {"prepare": "round-000/prepare"}
    assert inputs(root, 1, "train_judge") == {"prepare": "round-000/prepare"}
    assert inputs(root, 2, "train_judge") == {
        "prepare": "round-000/prepare",
        "judge_parent": "round-001/train_judge",
        "label": "round-001/label",
        "sample": "round-001/sample",
    }
    assert inputs(root, 2, "label")["judge"] == "round-002/train_judge"
    assert "generator" not in inputs(root, 1, "update")
    assert inputs(root, 2, "update")["generator"] == "round-001/update"
    assert inputs(root, 2, "evaluate") == {
        "prepare": "round-000/prepare",
        "generator": "round-002/update",
        "judge": "round-002/train_judge",
        "previous": "round-001/evaluate",
        "base": "round-000/evaluate",
        "sample": "round-002/sample",
        "pair": "round-002/pair",
    }
    assert inputs(root, 2, "gate") == {
        "prepare": "round-000/prepare",
        "update": "round-002/update",
        "generator": "round-001/update",
    }


def test_a_rejected_update_is_rolled_back_and_the_good_judge_stays(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_REJECT", "2")
    root = tmp_path / "run"
    run(config, root, "rounds=3")
    assert inputs(root, 3, "sample")["generator"] == "round-001/update"
    assert inputs(root, 3, "update")["generator"] == "round-001/update"
    assert inputs(root, 3, "gate")["generator"] == "round-001/update"
    assert inputs(root, 3, "evaluate")["previous"] == "round-001/evaluate"
    assert inputs(root, 3, "train_judge")["judge_parent"] == "round-002/train_judge"
    assert inputs(root, 3, "train_judge")["label"] == "round-002/label"


def test_a_rejected_judge_is_not_used(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_REJECT_JUDGE", "1,3")
    root = tmp_path / "run"
    run(config, root, "rounds=3")
    assert "judge" not in inputs(root, 1, "label")
    assert "judge_parent" not in inputs(root, 2, "train_judge")
    assert inputs(root, 3, "judge_gate")["judge_parent"] == "round-002/train_judge"
    assert inputs(root, 3, "label")["judge"] == "round-002/train_judge"


def test_committed_stages_are_skipped(config, tmp_path):
    root = tmp_path / "run"
    run(config, root)
    times = {path: path.stat().st_mtime_ns for path in root.glob("round-*/*/*")}
    run(config, root)
    assert {path: path.stat().st_mtime_ns for path in root.glob("round-*/*/*")} == times
    assert len([e for e in Store(root).events() if e["event"] == "stage_started"]) == len(plan(2))


def test_more_rounds_extend_a_finished_run(config, tmp_path):
    run(config, tmp_path / "once", "rounds=3")
    run(config, tmp_path / "twice", "rounds=1")
    run(config, tmp_path / "twice", "rounds=3")
    assert tree(tmp_path / "once") == tree(tmp_path / "twice")


def test_fewer_rounds_than_have_begun_are_refused(config, tmp_path):
    root = tmp_path / "run"
    run(config, root)
    before = tree(root)
    with pytest.raises(UserError, match="has begun round 2, but rounds is 1; give --rounds 2 or more"):
        run(config, root, "rounds=1")
    assert tree(root) == before


def test_a_failed_stage_names_its_log_and_the_next_launch_resumes(config, tmp_path, monkeypatch):
    root = tmp_path / "run"
    monkeypatch.setenv("TOY_FAIL", "1-label")
    with pytest.raises(StageFailed, match="stage label of round 1 failed: ValueError: toy trouble") as failed:
        run(config, root)
    assert failed.value.log == root / "logs" / "attempt-1" / "001-label.log"
    assert "Traceback" in failed.value.log.read_text() and str(failed.value.log) in str(failed.value)
    monkeypatch.delenv("TOY_FAIL")
    run(config, root)
    assert "hello from 1-label" in (root / "logs" / "attempt-2" / "001-label.log").read_text()
    run(config, tmp_path / "whole")
    assert tree(root) == tree(tmp_path / "whole")


def test_a_value_error_while_reading_the_users_data_is_a_user_error(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "0-prepare")
    with pytest.raises(UserError, match="toy trouble"):
        run(config, tmp_path / "run")


def test_a_full_disk_in_a_stage_is_a_user_error(config, tmp_path):
    def full(context):
        raise OSError(28, "No space left on device")

    stages = {**TOY_STAGES, "sample": loop.stages.Stage(full, STAGES["sample"].inputs, ("sample",))}
    with pytest.raises(UserError, match="no disk space left during sample"):
        run(config, tmp_path / "run", stages=stages)


def test_too_little_disk_space_stops_before_the_stage(config, tmp_path):
    root = tmp_path / "run"
    store = Store(root, disk_usage=lambda path: Usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="no disk space"):
        run_toy_campaign(load_config(config, ["launch.min_free_gb=1"]), store)
    assert not list(root.glob("round-*"))
    run(config, root)


def test_a_changed_config_names_the_keys_and_changes_nothing(config, tmp_path):
    root = tmp_path / "run"
    run(config, root)
    before = tree(root)
    with pytest.raises(UserError) as error:
        run(config, root, "update.beta=7", "pair.min_signed_share=0.9", "rounds=3")
    assert "update.beta (was 500.0, now 7.0), used by round-001/update" in str(error.value)
    assert "pair.min_signed_share (was 0.2, now 0.9), used by round-001/pair" in str(error.value)
    assert "choose another --dir" in str(error.value)
    assert tree(root) == before
    run(config, root, "launch.min_free_gb=0.001", "threads=1")  # neither changes a result


def test_keys_of_uncommitted_stages_may_change(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "1-update")
    with pytest.raises(StageFailed):
        run(config, tmp_path / "run")
    monkeypatch.delenv("TOY_FAIL")
    run(config, tmp_path / "run", "update.beta=7")
    run(config, tmp_path / "whole", "update.beta=7")
    assert tree(tmp_path / "run") == tree(tmp_path / "whole")


def test_damage_is_found_before_it_is_read(config, tmp_path):
    root = tmp_path / "run"
    run(config, root)
    shard = root / "round-002" / "evaluate" / "shards" / "1.bin"
    shard.write_bytes(b"x" * shard.stat().st_size)
    run(config, root)  # nothing reads it
    with pytest.raises(UserError, match=r"round-002/evaluate/shards/1\.bin is damaged: its sha256"):
        run(config, root, "rounds=3")
    shard.write_bytes(b"x")
    with pytest.raises(UserError, match=r"round-002/evaluate/shards/1\.bin is damaged: 1 bytes"):
        run(config, root, "rounds=3")


def test_an_artefact_that_was_moved_away_is_made_again(config, tmp_path):
    root = tmp_path / "run"
    run(config, root)
    before = tree(root)
    (root / "round-001" / "sample").rename(tmp_path / "away")
    run(config, root)
    assert tree(root) == before


@pytest.mark.timeout(240)
def test_kill_9_anywhere_ends_in_the_same_bytes(config, tmp_path):
    """Each launch dies some steps later than the last: in stages, commits, renames and clean-ups."""
    root = tmp_path / "killed"
    deaths = 0
    for launch in range(200):
        done = start(config, root, TOY_KILL_AFTER=str(7 + launch * 5))
        output = done.communicate()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, output
        deaths += 1
    assert done.returncode == 0 and deaths >= 8
    run(config, tmp_path / "whole")
    assert tree(root) == tree(tmp_path / "whole")


@pytest.mark.parametrize("point", ["begin", "shard", "hashing", "manifest", "scratch", "renamed"])
def test_kill_9_at_each_step_of_a_commit(config, tmp_path, monkeypatch, point):
    """The process dies at a named point of round 1's sample; the child is this process, forked."""
    stop = {
        "begin": (loop.store, "write_atomically", ".work-sample/_scratch"),
        "shard": (Path, "rename", ".work-sample/_scratch/2.bin"),
        "hashing": (loop.store, "_sha256", ".work-sample/shards/2.bin"),
        "manifest": (loop.store.os, "replace", ".work-sample/.manifest.json.new"),
        "scratch": (loop.store.shutil, "rmtree", ".work-sample/_scratch"),
        "renamed": (loop.store.os, "replace", ".work-sample"),
    }[point]
    owner, name, where = stop
    child = os.fork()
    if child == 0:
        original = getattr(owner, name)

        def dying(path, *rest):
            reached = where in str(path) if point == "begin" else str(path).endswith(where)
            if reached and point == "renamed":
                original(path, *rest)
            if reached:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(path, *rest)

        setattr(owner, name, dying)
        run(config, tmp_path / "killed")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "killed" / "round-001" / "sample").exists() == (point == "renamed")
    run(config, tmp_path / "killed")
    run(config, tmp_path / "whole")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_75_and_resume(config, tmp_path, number):
    root = tmp_path / "run"
    running = start(config, root, TOY_HANG="1-sample")
    assert running.stdout.readline() == "hanging\n"

    second = start(config, root)
    _, said = second.communicate()
    assert second.returncode == 2 and f"in use by process {running.pid}" in said

    running.send_signal(number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 75 and "the same command resumes" in said, said
    assert (root / "lock").read_text() == ""
    last = [event["event"] for event in Store(root).events()][-2:]
    assert last == ["stage_stopped", "campaign_stopped"]

    run(config, root)
    run(config, tmp_path / "whole")
    assert tree(root) == tree(tmp_path / "whole")


def test_seeds_differ_by_campaign_round_and_stage_and_never_change():
    assert derive_seed(0, 1, "sample") == derive_seed(0, 1, "sample")
    seeds = {derive_seed(s, k, stage) for s in range(3) for k, stage in plan(3)}
    assert len(seeds) == 3 * len(plan(3)) and max(seeds) < 2**31


def test_other_weights_under_the_same_name_are_a_changed_config(tmp_path):
    """A run goes on with the weights it was begun with, or not at all."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.safetensors").write_bytes(b"one")
    text = CONFIG.replace("generator: {model: toy/toy}", f"generator: {{model: {model}}}")
    config = tmp_path / "campaign.yaml"
    config.write_text(text)
    loaded = load_config(str(config), [])
    runner = StageRunner(loaded.config, Store(tmp_path / "run"), STAGES, Display(1))
    before = runner._slice(STAGES["sample"])
    (model / "weights.safetensors").write_bytes(b"two")
    model_identity.cache_clear()
    changed = changed_keys(before, runner._slice(STAGES["sample"]))
    assert len(changed) == 1 and changed[0].startswith("generator.weights")
