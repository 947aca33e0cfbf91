"""The command line: exit codes, output, and how little `--help` imports."""

import csv
import io
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import loop.campaign
from loop.cli import app
from loop.curves import COLUMNS, read_curves
from loop.progress import round_row
from loop.stages import STAGES, Stage
from tests.toy_campaign import CONFIG, TOY_STAGES, run_toy_campaign, toy_report, toy_stage

HEAVY = {"torch", "transformers", "diffusers", "datasets", "sklearn", "pandas", "pyarrow", "trl", "cv2", "av"}


def evaluate_with_metrics(context):
    toy_stage("evaluate", context)
    rows = [
        (context.round, "oracle_total", "report", "", 0.1 * context.round, 0.0, 1.0, 8, ""),
        (context.round, "oracle_total", "report", "red", 0.5, None, None, 2, ""),
        (context.round, "fool_rate", "report", "", float("nan"), float("nan"), None, 0, "tiny"),
    ]
    table = pyarrow.Table.from_pylist([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    pyarrow.parquet.write_table(table, context.out / "metrics.parquet")


@pytest.fixture
def retake(tmp_path, monkeypatch):
    """The command line with toy stages, in a fresh folder with toy.yaml."""
    evaluate = STAGES["evaluate"]
    stages = {**TOY_STAGES, "evaluate": Stage(evaluate_with_metrics, evaluate.inputs, evaluate.config)}

    def run_campaign(loaded, store):
        return run_toy_campaign(loaded, store, stages=stages)

    monkeypatch.setattr(loop.campaign, "run_campaign", run_campaign)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_help_answers_in_a_second_and_imports_nothing_heavy():
    seconds = []
    for _ in range(3):
        began = os.times()
        done = subprocess.run([sys.executable, "-m", "loop.cli", "--help"], capture_output=True, text=True)
        ended = os.times()  # its own seconds on the processor, since other processes share the machine
        spent = ended.children_user - began.children_user + ended.children_system - began.children_system
        seconds.append(spent)
        assert done.returncode == 0 and "curves" in done.stdout
    assert min(seconds) < 1
    code = (
        "import sys, loop.cli\n"
        "try:\n    sys.argv = ['retake', '--help']; loop.cli.main()\n"
        f"finally:\n    print('heavy:', sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_run_prints_progress_rows_and_the_report(retake, tmp_path):
    done = retake("run", "toy.yaml", "--rounds", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "done: open runs/toy/report.html"
    assert "round 1/1 sample: done in" in done.stderr
    header, base, first = [line for line in done.stderr.splitlines() if "/" not in line]
    assert header.split()[0] == "round" and "oracle total" in header
    assert base.split() == ["0", "0.000", "–", "–", "–", "–", "base"]
    assert first.split() == ["1", "0.100", "–", "–", "–", "–", "yes"]
    assert (
        round_row(1, tmp_path / "runs/toy/round-001/evaluate", tmp_path / "runs/toy/round-001/gate")[-1]
        == "yes"
    )


def test_dry_run_prints_the_resolved_config_and_starts_nothing(retake, tmp_path):
    done = retake("run", "toy.yaml", "--dry-run", "--rounds", "9", "--set", "update.beta=3")
    assert done.exit_code == 0
    resolved = json.loads(done.stdout)
    assert (resolved["rounds"], resolved["update"]["beta"]) == (9, 3.0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "nothing.yaml"], "does not exist"),
        (["run", "toy.yaml", "--set", "updat.beta=3"], "did you mean"),
        (["run", "toy.yaml", "--dir", "toy.yaml"], "is a file"),
        (["run", "toy.yaml", "--set", "judge.type=transfomers"], "did you mean 'transformers'"),
        (["run", "toy.yaml", "--set", "judge.model=/nowhere"], "judge.model: no folder"),
        (["run", "toy.yaml", "--set", "judge.model=embedded:tiny-juge"], "embedded:tiny-judge"),
        (["run", "toy.yaml", "--set", "generator.model=nowhere"], "generator.model: no folder"),
        (["run", "toy.yaml", "--set", "generator.model=folder"], "holds no model_index.json"),
        (["run", "toy.yaml", "--rounds", "-1"], "rounds"),
        (["status", "nothing"], "there is no run nothing"),
        (["status", "."], "not a run directory"),
        (["curves", "nothing"], "there is no run"),
        (["report", "nothing"], "there is no run"),
    ],
)
def test_user_errors_exit_with_2_and_leave_no_directory(retake, tmp_path, arguments, part):
    (tmp_path / "folder").mkdir()
    done = retake(*arguments)
    assert done.exit_code == 2 and part in done.stderr
    assert "Traceback" not in done.output and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("key", "marker", "weights"),
    [
        ("generator.model", "model_index.json", "vae/diffusion_pytorch_model.bin"),
        ("judge.model", "config.json", "pytorch_model.bin"),
    ],
)
def test_pickled_weights_are_refused_before_anything_starts(retake, tmp_path, key, marker, weights):
    file = tmp_path / "model" / weights
    file.parent.mkdir(parents=True)
    (tmp_path / "model" / marker).write_text("{}")
    file.write_bytes(b"")
    done = retake("run", "toy.yaml", "--set", f"{key}={tmp_path}/model")
    assert done.exit_code == 2 and f"{key}: {file} is a pickle" in done.stderr
    assert not (tmp_path / "runs").exists()
    file.with_suffix(".safetensors").write_bytes(b"")  # beside them, pickles are not read
    assert retake("run", "toy.yaml", "--set", f"{key}={tmp_path}/model").exit_code == 0


def test_a_changed_config_exits_with_2(retake):
    assert retake("run", "toy.yaml").exit_code == 0
    done = retake("run", "toy.yaml", "--set", "seed=3")
    assert done.exit_code == 2 and "seed (was 0, now 3)" in done.stderr


def test_a_failed_stage_exits_with_1_and_names_the_log(retake, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "1-sample")
    done = retake("run", "toy.yaml")
    assert done.exit_code == 1 and "runs/toy/logs/attempt-1/001-sample.log" in done.stderr
    status = json.loads(retake("status", "toy", "--json").stdout)
    assert status["state"] == "failed" and "toy trouble" in status["reason"]
    sample = {"round": 1, "stage": "sample", "state": "failed", "seconds": None, "devices": None}
    assert sample in status["stages"]


def test_a_failed_report_leaves_a_whole_campaign(retake, tmp_path, monkeypatch):
    def broken(run_dir):
        raise RuntimeError("no ink")

    def run_campaign(loaded, store):
        return run_toy_campaign(loaded, store, write_report=broken)

    monkeypatch.setattr(loop.campaign, "run_campaign", run_campaign)
    done = retake("run", "toy.yaml")
    assert done.exit_code == 1 and "no ink" in done.stderr and "report.log" in done.stderr
    monkeypatch.setattr(loop.campaign, "run_campaign", run_toy_campaign)
    assert retake("run", "toy.yaml").exit_code == 0
    assert toy_report(tmp_path / "runs" / "toy").exists()


def test_status(retake, monkeypatch):
    monkeypatch.setenv("TOY_REJECT", "2")
    retake("run", "toy.yaml")
    status = json.loads(retake("status", "runs/toy", "--json").stdout)
    assert {key: status[key] for key in ("name", "state", "rounds", "rounds_done")} == {
        "name": "toy",
        "state": "done",
        "rounds": 2,
        "rounds_done": 2,
    }
    assert (status["generator_in_force"], status["judge_in_force"]) == (1, 2)
    assert all(stage["state"] == "committed" and stage["seconds"] >= 0 for stage in status["stages"])
    text = retake("status", "toy").stdout
    assert "toy: done, 2 of 2 rounds done" in text and "generator of round 1, judge of round 2" in text


def test_curves(retake, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_REJECT", "2")
    retake("run", "toy.yaml")
    rows = json.loads(retake("curves", "toy", "--json").stdout)
    assert [(row["round"], row["metric"], row["kept"]) for row in rows] == [
        (0, "oracle_total", True),
        (0, "fool_rate", True),
        (1, "oracle_total", True),
        (1, "fool_rate", True),
        (2, "oracle_total", False),
        (2, "fool_rate", False),
    ]
    assert rows == read_curves(tmp_path / "runs" / "toy")
    assert len(read_curves(tmp_path / "runs" / "toy", category=None)) == 9
    table = list(csv.DictReader(io.StringIO(retake("curves", "toy", "--csv").stdout)))
    assert table[2]["value"] == "0.1" and table[2]["high"] == "1.0" and table[1]["value"] == ""
    text = retake("curves", "toy").stdout.splitlines()
    assert text[2].split() == ["1", "oracle_total", "0.1000", "[0.0000,", "1.0000]"]
    assert text[3].split()[-2:] == ["by", "tiny"]
    assert retake("curves", "toy", "--csv", "--json").exit_code == 2
    every = retake("curves", "toy", "--categories").stdout.splitlines()
    assert len(every) == 9 and every[1].split()[-2:] == ["of", "red"]


def test_a_metric_that_could_not_be_measured(retake):
    retake("run", "toy.yaml", "--rounds", "0")
    rows = json.loads(retake("curves", "toy", "--json").stdout, parse_constant=pytest.fail)
    assert [(row["value"], row["low"]) for row in rows] == [(0.0, 0.0), (None, None)]
    assert retake("curves", "toy").stdout.splitlines()[1].split()[2:5] == ["–", "[–,", "–]"]
    assert retake("curves", "toy", "--csv").stdout.splitlines()[2] == "0,fool_rate,report,,,,,0,tiny,True"


def test_curves_of_some_rounds_and_metrics_in_files(retake, tmp_path):
    retake("run", "toy.yaml")
    chosen = ("curves", "toy", "--round", "1", "--round", "2", "--metric", "oracle_total")
    rows = json.loads(retake(*chosen, "--json").stdout)
    assert [(row["round"], row["metric"]) for row in rows] == [(1, "oracle_total"), (2, "oracle_total")]
    for name in ("rows.csv", "rows.json", "rows.parquet"):
        assert retake(*chosen, "--out", name).exit_code == 0
        assert retake(*chosen, "--out", name).stdout == ""  # an old file is replaced
    assert (tmp_path / "rows.csv").read_text() == retake(*chosen, "--csv").stdout
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.to_pylist() == rows and table.schema.field("kept").type == pyarrow.bool_()
    assert retake("curves", "toy", "--parquet", "--out", "other.name").exit_code == 0
    assert pyarrow.parquet.read_table(tmp_path / "other.name").num_rows == 6
    for arguments, message in [
        (["--round", "7"], "--round 7: there is no such round; measured so far: 0, 1, 2"),
        (["--metric", "oracle_totl"], "did you mean oracle_total?; measured so far: fool_rate, oracle_total"),
        (["--parquet"], "give --out FILE"),
        (["--parquet", "--csv", "--out", "x"], "exclude each other"),
        (["--out", "rows.xlsx"], "give a name that ends in"),
        (["--out", "no/rows.csv"], "there is no folder no"),
    ]:
        done = retake("curves", "toy", *arguments)
        assert done.exit_code == 2 and message in done.stderr


def test_verify_and_branch(retake, tmp_path):
    retake("run", "toy.yaml", "--dir", "one")
    found = retake("verify", "one")
    assert found.exit_code == 0 and "all as committed" in found.output
    done = retake("branch", "one", "--from", "1", "--set", "update.beta=7", "--rounds", "3")
    assert done.exit_code == 0, done.output
    assert "done: open one-from-1/report.html" in done.output
    assert len(json.loads((tmp_path / "one-from-1" / "resolved.json").read_text())["name"]) > 0
    assert (tmp_path / "one-from-1" / "round-003" / "gate").is_dir()
    again = retake("branch", "one", "--from", "1")
    assert again.exit_code == 2 and "one-from-1 exists" in again.output
    (tmp_path / "one" / "round-001" / "pair" / "inputs.json").write_text("{}")
    found = retake("verify", "one")
    assert found.exit_code == 1 and "round-001/pair/inputs.json: has 2 bytes" in found.output
    assert json.loads(retake("verify", "one", "--json").output)["damage"]
    assert retake("verify", "two").exit_code == 2
