"""Devices of a stage: recorded in the event log alone, and shown where time is shown."""

import json
import logging

import pytest

from loop import distributed
from loop.api import load_campaign
from loop.config import CampaignConfig
from loop.config_file import load_config
from loop.launchers import InlineLauncher, ProcessLauncher, WorkerDied
from loop.report import write_report
from loop.stages import Stage, StageContext, plan
from loop.status import read_status
from loop.status_text import status_lines
from loop.store import Store
from tests.recorded_run import record
from tests.test_launchers import Counted
from tests.toy_campaign import CONFIG, run_toy_campaign, tree


@pytest.mark.parametrize(("device", "size", "devices"), [("cpu", 4, 0), ("cuda", 1, 1), ("cuda:0", 8, 8)])
def test_devices_are_one_for_each_process_that_has_one(monkeypatch, device, size, devices):
    monkeypatch.setattr(distributed, "device", lambda: device)
    monkeypatch.setattr(distributed, "size", lambda: size)
    assert distributed.accelerators() == devices


def test_devices_stand_in_the_events_and_in_no_artefact(tmp_path, monkeypatch):
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    for devices in (0, 4):
        monkeypatch.setattr(distributed, "accelerators", lambda num=devices: num)
        run_toy_campaign(load_config(path), Store(tmp_path / str(devices)))
        ends = [e for e in Store(tmp_path / str(devices)).events() if e["event"] == "stage_committed"]
        assert len(ends) == len(plan(2)) and {e["devices"] for e in ends} == {devices}
    assert tree(tmp_path / "0") == tree(tmp_path / "4")


def context_of(tmp_path, config: CampaignConfig) -> StageContext:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    log = logging.getLogger("retake")
    return StageContext(config, 3, {"prepare": tmp_path / "in"}, tmp_path / "out", 7, Counted(), log)


def test_a_process_says_its_devices_unless_it_is_killed(tmp_path):
    config = CampaignConfig.model_validate(
        {"name": "apart", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}, "threads": 1,
         "launch": {"type": "process"}}
    )  # fmt: skip
    context = context_of(tmp_path, config)
    launcher = ProcessLauncher(config)
    launcher.launch(Stage("tests.worker_stages:reports", (), ()), context)
    assert launcher.devices == 0  # no torch there
    with pytest.raises(WorkerDied):
        launcher.launch(Stage("tests.worker_stages:is_killed", (), ()), context)
    assert launcher.devices is None


def test_a_stage_that_fails_had_devices_too(tmp_path, monkeypatch):
    def fails(context: StageContext) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(distributed, "accelerators", lambda: 2)
    config = CampaignConfig.model_validate(
        {"name": "here", "generator": {"model": "toy/toy"}, "judge": {"model": "toy/toy"}}
    )
    launcher = InlineLauncher(config)
    with pytest.raises(RuntimeError, match="no luck"):
        launcher.launch(Stage(fails, (), ()), context_of(tmp_path, config))
    assert launcher.devices == 2


def on_devices(run, devices: int | None) -> None:
    """Rewrites the events as if every stage had taken half an hour on so many devices."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "stage_committed":
            event |= {"seconds": 1800.0} | ({} if devices is None else {"devices": devices})
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_device_hours_are_shown_with_the_time(tmp_path):
    run = record(tmp_path / "run", rounds=1)
    num = len(plan(1))
    on_devices(run, 8)
    status = read_status(run)
    assert status.device_hours == 4.0 * num and {stage.devices for stage in status.stages} == {8}
    lines = "\n".join(status_lines(status))
    assert f"device-hours: {4 * num:.2f} so far" in lines and "1800.0 s on 8 devices" in lines
    stages = load_campaign(run).stages()
    assert set(stages["devices"]) == {8} and set(stages["device_hours"]) == {4.0}
    page = write_report(run).read_text(encoding="utf-8")
    assert "<dt>device-hours</dt>" in page and '<th scope="col">device-hours</th>' in page


def test_no_devices_and_none_said_are_told_apart(tmp_path):
    run = record(tmp_path / "run", rounds=1)
    on_devices(run, 0)
    assert read_status(run).device_hours == 0.0 and set(load_campaign(run).stages()["device_hours"]) == {0.0}
    page = write_report(run).read_text(encoding="utf-8")
    assert "No stage had an accelerator." in page and "device-hours" not in page
    older = record(tmp_path / "older", rounds=1)
    assert read_status(older).device_hours is None
    assert load_campaign(older).stages()["device_hours"].isna().all()
    assert "accelerator" not in write_report(older).read_text(encoding="utf-8")
    Store(older).event("stage_committed", round=1, stage="update", seconds=60.0, devices=2)
    page = write_report(older).read_text(encoding="utf-8")
    assert f"Attempts that do not say how many they had: {len(plan(1))}." in page
