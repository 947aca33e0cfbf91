"""benchmarks/controller.py runs the real stages, on takes that cost nothing."""

import argparse
import json

import pyarrow.parquet as pq
import pytest

import benchmarks.controller as controller
import loop.steps.sample
from loop.stages import plan
from loop.verify import verify


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    monkeypatch.setattr(loop.steps.sample, "load_generator", lambda ctx, update: None)
    monkeypatch.setattr(loop.steps.sample, "_film_shard", controller.stub_film)


def test_a_small_round_is_planned_asked_folded_and_committed(tmp_path, capsys):
    config = controller.config_of(64, 1)
    rows = controller.measure_round(tmp_path / "run", config)
    assert [row["stage"] for row in rows] == [*(f"{k}/{stage}" for k, stage in plan(1)), "all"]
    assert all(row["MB"] >= 0 for row in rows)
    folder = tmp_path / "run" / "round-001"
    assert pq.read_metadata(folder / "sample" / "takes.parquet").num_rows == 64
    # 8 prompts, each with 6 pairs of takes and one against its anchor, in both orders
    assert pq.read_metadata(folder / "label" / "votes.parquet").num_rows == 8 * 7 * 2
    assert json.loads((folder / "label" / "metrics.json").read_text())["num_votes"] == 8 * 7 * 2
    assert 0 < pq.read_metadata(folder / "pair" / "pairs.parquet").num_rows < 8 * 7
    assert len(list((folder / "sample" / "clips").iterdir())) == 64
    report = controller.measure_report(tmp_path / "run")
    assert report["report"].endswith("MB") and (tmp_path / "run" / "report.html").is_file()

    found = controller.measure_resume(tmp_path / "run", config)
    assert found["seconds"] > 0 and found["then hashing"] > 0
    assert not (tmp_path / "run" / "round-002").exists() and verify(tmp_path / "run").damage == []


def test_the_share_is_of_the_time_that_models_would_take():
    args = argparse.Namespace(take_seconds=60.0, vote_seconds=1.0, devices=10)
    found = controller.share({"seconds": 10.0, "cpu": 3.25}, 100, 500, args)
    assert found["model seconds"] == 650  # (100 * 60 + 500) / 10
    assert (found["seconds"], found["cpu"]) == ("1.52 %", "0.50 %")
