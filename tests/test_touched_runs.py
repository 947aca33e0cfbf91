"""Run directories that another version made, or that hands have touched: what a resume says of them.

`retake verify` is tested in test_verify.py, a changed config and damaged contents in test_campaign.py.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from typer.testing import CliRunner

import loop.campaign
from loop.cli import app
from loop.config_file import load_config
from loop.curves import COLUMNS as METRIC_COLUMNS
from loop.errors import UserError
from loop.progress import Display
from loop.stages import STAGES, Stage
from loop.store import Store, environment, fingerprint, read_manifest
from tests.toy_campaign import CONFIG, TOY_STAGES, run_toy_campaign, toy_stage, tree


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    run(tmp_path / "run")
    return tmp_path / "run"


def run(root: Path, *overrides: str) -> None:
    run_toy_campaign(load_config(root.with_name("toy.yaml"), ["rounds=1", *overrides]), Store(root))


def edit(artefact: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((artefact / "manifest.json").read_text())
    change(manifest)
    (artefact / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def refused(root: Path, *parts: str) -> None:
    """The next launch is a user error that says all parts, and changes nothing."""
    before = tree(root)
    with pytest.raises(UserError) as error:
        run(root)
    assert all(part in str(error.value) for part in parts), error.value
    assert tree(root) == before


@pytest.mark.parametrize("change", [{"schema": 2}, {"schema": 0}, {"shards": []}])
def test_another_versions_run_names_the_version_to_use(root, change):
    def by_another(manifest):
        manifest.update(change)
        manifest["environment"]["retake"] = "9.8.7"

    edit(root / "round-000" / "prepare", by_another)
    ours = environment(None)["retake"]
    schema = change.get("schema", 1)
    parts = (
        f"round-000/prepare/manifest.json was written by retake 9.8.7 (schema {schema})",
        f"this is retake {ours} (schema 1)",
        "continue this run with the version that wrote it",
    )
    refused(root, *parts)
    for command in ("status", "verify"):
        done = CliRunner().invoke(app, [command, str(root)])
        assert done.exit_code in (1, 2) and parts[0] in done.output, done.output


def test_keys_that_an_older_version_did_not_know_are_told_from_changed_ones(root):
    def older(manifest):
        del manifest["config"]["update"]["beta"], manifest["seal"]
        manifest["environment"]["retake"] = "0.0.1"
        manifest["fingerprint"] = fingerprint("update", 1, manifest["config"], manifest["inputs"])

    edit(root / "round-001" / "update", older)
    ours = environment(None)["retake"]
    refused(
        root,
        f"begun with another config by retake 0.0.1, this is {ours}",
        "update.beta (was None, now 500.0), used by round-001/update",
        "where a key is new, continue with the version that began the run",
    )
    with pytest.raises(UserError) as error:
        shutil.rmtree(root)
        run(root)
        run(root, "update.beta=7")
    assert "where a key is new" not in str(error.value)


def test_runs_begun_before_manifests_had_a_seal_go_on(root):
    for manifest in root.glob("round-*/*/manifest.json"):
        edit(manifest.parent, lambda content: content.pop("seal"))
    run(root, "rounds=2")
    assert read_manifest(root / "round-001" / "gate").seal is None
    assert CliRunner().invoke(app, ["verify", str(root)]).exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["config"]["sample"].update(shard_size=99),
        lambda m: m.update(fingerprint="0" * 64),
        lambda m: m["inputs"].update(prepare="0" * 64),
        lambda m: m["files"].pop("shards/1.bin"),
        lambda m: m["files"]["shards/1.bin"].update(sha256="0" * 64),
        lambda m: m["environment"].update(torch="1.0"),
        lambda m: m.update(seal=""),
    ],
)
def test_an_edited_manifest_is_noticed_before_anything_is_done(root, change):
    edit(root / "round-001" / "sample", change)
    refused(root, "round-001/sample/manifest.json was edited", "restore it, or move", "made again")
    found = CliRunner().invoke(app, ["verify", str(root)])
    assert found.exit_code == 1 and "round-001/sample/manifest.json: was edited" in found.stdout


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"stage": None},
        {"files": None},
        {"files": {"shards/1.bin": {"size": "many"}}},
        {"inputs": {"prepare": 5}},
        {"fingerprint": []},
        {"config": "none"},
        {"environment": 5},
        {"seal": 7},
    ],
)
def test_a_manifest_whose_values_are_of_another_kind_is_damaged(root, change):
    edit(root / "round-001" / "sample", lambda manifest: manifest.update(change))
    refused(root, "round-001/sample/manifest.json is damaged", "restore it, or move", "made again")
    found = CliRunner().invoke(app, ["verify", str(root)])
    assert found.exit_code == 1 and "round-001/sample/manifest.json: " in found.stdout, found.exception


COMMANDS = {
    "status": [],
    "curves": [],
    "verify": [],
    "prune": [],
    "branch": ["--from", "1"],
    "export-vbench": ["1"],
    "report": [],
}


def told(root: Path, *commands: str) -> dict[str, int]:
    """The exit codes of commands on the run, none of which may end in a traceback."""
    codes = {}
    for command in commands:
        done = CliRunner().invoke(app, [command, str(root), *COMMANDS[command]])
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
        codes[command] = done.exit_code
        if done.exit_code == 2:
            assert done.stderr.startswith("error: "), (command, done.stderr)
    return codes


ALARM = b'{"keep": true, "use": true, "alarms": null}'


@pytest.mark.parametrize("content", [None, b"\x93" * 40, b"[]", b"{}", b'{"keep": 5, "use": 5}', ALARM])
@pytest.mark.parametrize("stage", ["gate", "judge_gate"])
def test_a_damaged_decision_is_named_by_whatever_reads_it(root, stage, content):
    file = root / "round-001" / stage / "gate.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    refused(root, str(file), "restore it, or move")
    codes = told(root, *COMMANDS)
    assert codes["verify"] == 1 and codes["status"] == codes["prune"] == codes["branch"] == 2
    assert codes["curves"] == (2 if stage == "gate" else 0)


def test_a_byte_flipped_in_a_decision_is_found_before_it_decides_anything(root):
    """As long as before, and still JSON."""
    file = root / "round-001" / "gate" / "gate.json"
    file.write_text(file.read_text().replace("toy", "tox"))
    refused(root, f"{file} is damaged: its sha256 has changed", "restore it, or move")


def test_damaged_metrics_are_named(root):
    def evaluate(context):
        toy_stage("evaluate", context)
        row = dict.fromkeys(METRIC_COLUMNS, "") | {
            "round": 0,
            "value": 0.5,
            "low": 0.1,
            "high": 0.9,
            "num_clips": 1,
        }
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([row | {"metric": "motion"}]), context.out / "metrics.parquet"
        )

    stages = {**TOY_STAGES, "evaluate": Stage(evaluate, STAGES["evaluate"].inputs, ("evaluate",))}
    shutil.rmtree(root)
    loaded = load_config(root.with_name("toy.yaml"), ["rounds=1"])
    run_toy_campaign(loaded, Store(root), stages=stages)
    file = root / "round-001" / "evaluate" / "metrics.parquet"
    file.write_bytes(b"\x93" * file.stat().st_size)
    with pytest.raises(UserError, match=r"round-001/evaluate/metrics\.parquet is damaged: its sha256"):
        run_toy_campaign(loaded, Store(root), stages=stages)
    codes = told(root, "curves", "report", "verify")
    assert codes == {"curves": 2, "report": 2, "verify": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "toy"}', '{"name": 5, "rounds": 1}'])
def test_a_damaged_config_of_a_run_is_named_and_written_anew(root, content):
    good = (root / "resolved.json").read_text()
    (root / "resolved.json").write_text(content)
    codes = told(root, "status", "prune", "branch")
    assert codes == {"status": 2, "prune": 2, "branch": 2}
    run(root)
    assert (root / "resolved.json").read_text() == good


def test_lines_that_are_no_events_are_left_out(root):
    with open(root / "events.jsonl", "a") as log:
        log.write('5\n["event"]\n{"time": 1}\nnull\n\0\0\0\n')
    assert told(root, "status") == {"status": 0}
    assert Store(root).events()[-1]["event"] == "campaign_finished"


def test_a_run_may_be_given_as_the_current_folder(root, monkeypatch):
    """Where a default folder is named after the run's."""
    monkeypatch.setattr(loop.campaign, "run_campaign", run_toy_campaign)
    for folder, run in ((root, "."), (root / "logs", "..")):
        monkeypatch.chdir(folder)
        done = CliRunner().invoke(app, ["branch", run, "--from", "1"])
        assert done.exit_code == 0, done.exception
        shutil.rmtree(root.with_name("run-from-1"))
        done = CliRunner().invoke(app, ["export-vbench", run, "7"])
        assert done.exit_code == 2 and "evaluated so far: 0, 1" in done.stderr, done.exception


def test_an_artefact_from_another_place_is_noticed(root):
    shutil.rmtree(root / "round-001" / "evaluate")
    shutil.copytree(root / "round-000" / "evaluate", root / "round-001" / "evaluate")
    refused(root, "round-001/evaluate/manifest.json is that of evaluate in round 0")


def test_a_deleted_clip_is_named_and_its_remedy_works(root):
    before = tree(root)
    clip = root / "round-001" / "sample" / "shards" / "2.bin"
    clip.unlink()
    refused(root, f"{clip} is missing", f"move {clip.parent.parent} away and run the same command")
    clip.parent.parent.rename(root.with_name("away"))
    run(root)
    assert tree(root) == before


def test_a_stage_made_again_amid_a_run_is_warned_of(root):
    """Where bytes may differ from launch to launch, the later stages have seen others."""
    before = tree(root)

    def said() -> str:
        display = Display(1, Console(file=io.StringIO(), width=200))
        loaded = load_config(root.with_name("toy.yaml"), ["rounds=1"])
        run_toy_campaign(loaded, Store(root), display=display)
        return display.console.file.getvalue()

    shutil.rmtree(root / "round-001" / "gate")
    assert "made again" not in said()  # nothing came after it
    shutil.rmtree(root / "round-001" / "sample")
    assert f"warning: {root}/round-001/sample is made again, but round-001/label and what else" in said()
    assert tree(root) == before


def test_copies_beside_the_rounds_and_attempts_are_left_alone(root):
    shutil.copytree(root / "round-001", root / "round-001.old")
    shutil.copytree(root / "round-001", root / "round-copy")
    (root / "logs" / "attempt-1").rename(root / "logs" / "attempt-1.bak")
    assert Store(root).last_round() == 1
    run(root, "rounds=2")
    assert (root / "logs" / "attempt-1").is_dir()
    done = CliRunner().invoke(app, ["curves", str(root)])
    assert done.exit_code == 0, done.output


def test_a_round_that_does_not_exist_is_named(root, monkeypatch):
    monkeypatch.setattr(loop.campaign, "run_campaign", run_toy_campaign)
    for number in ("2", "77"):
        done = CliRunner().invoke(app, ["branch", str(root), "--from", number])
        assert done.exit_code == 2 and "has no such finished round; it has 0, 1" in done.stderr, done.output
    assert CliRunner().invoke(app, ["branch", str(root), "--from", "-1"]).exit_code == 2
    done = CliRunner().invoke(
        app, ["run", str(root.with_name("toy.yaml")), "--dir", str(root), "--rounds", "0"]
    )
    assert done.exit_code == 2 and "has begun round 1, but rounds is 0; give --rounds 1" in done.stderr


def test_a_refused_launch_leaves_the_state_as_it_was(root):
    refused_with = ["update.beta=7"]
    with pytest.raises(UserError):
        run(root, *refused_with)
    assert '"state": "done"' in CliRunner().invoke(app, ["status", str(root), "--json"]).stdout
    assert Store(root).events()[-1]["event"] == "launch_refused"


def test_a_launch_that_died_before_its_config_was_written_is_no_mystery(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("1\n")
    done = CliRunner().invoke(app, ["status", str(tmp_path / "run")])
    assert done.exit_code == 2 and "no stage has begun" in done.stderr
