"""The gate's decision, what follows a rollback, and when a campaign loses patience."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.alarms import Alarm
from loop.branch import branch
from loop.cli import app
from loop.config import CampaignConfig
from loop.config_file import load_config
from loop.progress import Display
from loop.report.collect import read_run
from loop.report.sections import status
from loop.runner import StageRunner
from loop.stages import STAGES, StageContext
from loop.status import read_status
from loop.steps import gate, gate_alarms
from loop.steps.common import write_table
from loop.steps.preference import DROPS
from loop.steps.sample import Take, plan_takes
from loop.steps.update import _adapted
from loop.store import Store, fingerprint
from tests.test_campaign import inputs
from tests.toy_campaign import CONFIG, run_toy_campaign, tree

NONE = {"attempt": 0, "rollbacks": 0}
PROMPTS = [f"p{i // 2}" for i in range(24)]  # twelve prompts of two seeds
FROZEN = Alarm("loves_frozen", "it likes stills", 1.0, 0.5)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def context(config: Path, *overrides: str, number: int = 1, out: Path | None = None, **given: Path):
    out = out or config.parent / f"out-{number}"
    out.mkdir(exist_ok=True)
    loaded = load_config(config, overrides).config
    return StageContext(loaded, number, given, out, 3, Display(1).stage(1, "gate"), logging.getLogger("t"))


def decided(ctx: StageContext, wins: list[float], alarms: list[Alarm] | None = None, **earlier: int) -> dict:
    return gate.decide(ctx, wins, PROMPTS, alarms or [], NONE | earlier)


def test_a_gain_is_promoted_and_no_gain_is_rolled_back(config):
    ctx = context(config, "alarms={}")
    kept = decided(ctx, [1.0, 1.0, 1.0, 0.0] * 6)
    assert (kept["keep"], kept["action"], kept["attempt"], kept["rollbacks"]) == (True, "promote", 1, 0)
    assert kept["reason"].startswith("kept: ") and "adapt" not in kept
    back = decided(ctx, [1.0, 0.0] * 12, attempt=3, rollbacks=1)
    assert (back["keep"], back["action"], back["attempt"], back["rollbacks"]) == (False, "roll_back", 4, 2)
    assert back["reason"].startswith("rolled back: the frozen judge prefers")
    assert back["alpha"] == pytest.approx(0.1 * 6 / (9.8696 * 16), rel=1e-4)
    assert "rollbacks" not in decided(context(config), [1.0] * 24)  # nobody counts them
    assert kept["power"]["measured"] and kept["power"]["num_prompts"] == 12 and kept["power"]["attempt"] == 1


def test_an_alarm_forbids_what_the_win_rate_allows(config):
    wins = [1.0] * 24
    found = decided(context(config, "alarms={}"), wins, [FROZEN])
    assert (found["keep"], found["action"]) == (False, "roll_back")
    assert found["alarms"] == [vars(FROZEN)]
    assert found["reason"].startswith("rolled back: alarm loves_frozen: it likes stills (though the frozen")
    told = decided(context(config, "alarms.report_only=[loves_frozen]"), wins, [FROZEN])
    assert told["keep"] and told["alarms"] == [vars(FROZEN)]


def test_what_the_frozen_judge_leaves_unanswered_promotes_nothing(config):
    silent, generous = float("nan"), "gate.margin=0.5"  # which any win would clear
    none = decided(context(config, generous), [silent] * 24)
    assert (none["keep"], none["num_pairs"], none["num_unanswered"]) == (False, 0, 24)
    assert none["reason"].endswith("prefers neither; it gave no answer to 24 of 24 pairs")
    some = decided(context(config), [1.0, silent] * 10 + [1.0, 0.0] * 2)
    assert (some["num_pairs"], some["num_unanswered"], some["num_prompts"]) == (14, 10, 12)
    assert some["win_rate"] == pytest.approx(12 / 14)
    assert "it gave no answer to 10 of 24 pairs" in some["reason"] and some["power"]["measured"]
    assert decided(context(config, generous), [silent] * 23 + [1.0])["low"] < 0.07  # one win shows little
    assert decided(context(config), [1.0] * 24)["num_unanswered"] == 0


def test_a_source_that_was_switched_off_is_no_collapse(config, tmp_path):
    def pairs(name: str, **kept: int) -> Path:
        folder = write(tmp_path / name, "metrics.json", {"kept": kept})
        write_table(folder / "drops.parquet", [], DROPS)
        return folder

    now, before = pairs("now", fresh=60), pairs("before", fresh=60, guided=40)
    names = []
    for off in ((), ("pair.sources.guided.weight=0",), ("pair.sources.guided.max=0",)):
        ctx = context(config, "alarms={}", *off, number=2, pair=now, earlier_pair=before)
        names.append([alarm.name for alarm in gate_alarms._collapse(ctx)])
    assert names == [["pairs_of_one_source"], [], []]


def test_silence_is_no_divergence(config, tmp_path, monkeypatch):
    """Where the judge in force is sure and the held-out judge says nothing, nothing is found worse."""
    takes = [Take(f"t{i}", "fresh", p, p, "", i) for i, p in enumerate(PROMPTS)]
    monkeypatch.setattr(gate_alarms, "with_weights", lambda *given: len(given))  # two judges
    monkeypatch.setattr(gate_alarms, "compare", lambda *given: [1.0] * 24)
    monkeypatch.setattr(gate_alarms, "read_clip", lambda path: (None, 8))
    monkeypatch.setattr(
        gate_alarms, "measure", lambda frames: {"motion_magnitude": 1.0, "motion_smoothness": 1.0}
    )
    ctx = context(config, "alarms={}")
    silent = float("nan")
    assert gate_alarms._divergence(ctx, takes, [silent] * 24) == []
    [found] = gate_alarms._divergence(ctx, takes, [silent, 0.0] * 12)
    assert (found.name, found.value) == ("diverges_held_out_judge", -0.25)


def test_the_rate_falls_with_every_rollback_and_is_whole_again_after_a_promotion(config):
    ctx = context(config, "gate.adapt.learning_rate=0.5")
    assert decided(ctx, [0.0] * 24, rollbacks=1)["adapt"] == {"learning_rate": 0.25}
    assert decided(ctx, [1.0] * 24, rollbacks=1)["adapt"] == {"learning_rate": 1.0}


def write(folder: Path, name: str, content: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def test_an_update_takes_the_rate_that_the_gate_gave(config, tmp_path):
    earlier = write(tmp_path / "gate", "gate.json", {"rollbacks": 2, "adapt": {"learning_rate": 0.25}})
    ctx = context(config, "update.round_decay=0.5", number=3, earlier_gate=earlier)
    assert _adapted(ctx, ctx.config.update.in_round(3)).learning_rate == pytest.approx(1e-5 * 0.25 * 0.25)
    plain = write(tmp_path / "old", "gate.json", {"keep": True})  # of a run that adapted nothing
    ctx = context(config, number=2, earlier_gate=plain)
    assert _adapted(ctx, ctx.config.update) is ctx.config.update


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"num_pairs": 0, "skipped": "no preference pairs"}, "the update had no preference pairs"),
        ({"chosen_step": -1, "stopped": "too far"}, "the update broke its limits at once (too far)"),
    ],
)
def test_an_update_that_changed_nothing_is_no_attempt_and_films_nothing(config, tmp_path, metrics, why):
    update = write(tmp_path / "update", "metrics.json", metrics)
    before = write(tmp_path / "before", "gate.json", {"keep": False, "attempt": 1, "rollbacks": 1})
    ctx = context(config, "gate.adapt={}", number=3, update=update, earlier=before)
    gate.run(ctx)
    found = json.loads((ctx.out / "gate.json").read_text())
    assert found["reason"] == f"nothing to promote: {why}, so that the generator is its parent"
    assert (found["keep"], found["action"], found["attempt"], found["rollbacks"]) == (False, "none", 1, 1)
    assert found["adapt"] == {"learning_rate": 0.5}
    assert [p.name for p in ctx.out.iterdir()] == ["gate.json"]


def test_attempts_are_counted_from_gate_to_gate_or_taken_for_as_many_as_rounds(config, tmp_path):
    assert gate._earlier(context(config, number=4)) == {"attempt": 3, "rollbacks": 0}
    before = write(tmp_path / "a", "gate.json", {"attempt": 2, "rollbacks": 2})
    assert gate._earlier(context(config, number=4, earlier=before)) == {"attempt": 2, "rollbacks": 2}
    old = write(tmp_path / "b", "gate.json", {"keep": True})
    assert gate._earlier(context(config, number=4, earlier=old)) == {"attempt": 3, "rollbacks": 0}


# ------------------------------------------------------------------------------------------ in a campaign


def run(config: Path, root: Path, *overrides: str) -> Path:
    return run_toy_campaign(load_config(config, overrides), Store(root))


def test_only_campaigns_that_ask_for_it_give_stages_the_past(config, tmp_path):
    run(config, tmp_path / "plain")
    assert set(inputs(tmp_path / "plain", 2, "gate")) == {"prepare", "update", "generator"}
    assert "earlier" not in inputs(tmp_path / "plain", 2, "judge_gate")
    assert "earlier_gate" not in inputs(tmp_path / "plain", 2, "update")
    run(config, tmp_path / "watched", "alarms={}")
    assert inputs(tmp_path / "watched", 2, "gate") == {
        "prepare": "round-000/prepare",
        "update": "round-002/update",
        "generator": "round-001/update",
        "earlier": "round-001/gate",
        "judge": "round-002/train_judge",
        "judge_gate": "round-002/judge_gate",
        "pair": "round-002/pair",
        "earlier_pair": "round-001/pair",
    }
    assert inputs(tmp_path / "watched", 2, "judge_gate")["earlier"] == "round-001/judge_gate"
    assert "earlier_gate" not in inputs(tmp_path / "watched", 2, "update")
    run(config, tmp_path / "adapts", "gate.adapt={}")
    assert inputs(tmp_path / "adapts", 2, "update")["earlier_gate"] == "round-001/gate"
    assert "earlier_gate" not in inputs(tmp_path / "adapts", 1, "update")
    assert inputs(tmp_path / "adapts", 2, "gate")["earlier"] == "round-001/gate"


def test_idle_keys_stand_in_no_fingerprint(config, tmp_path):
    settings = load_config(config).config
    assert not {"alarms", "patience"} & set(settings.model_dump()) and settings.gate.adapt is None
    runner = StageRunner(settings, Store(tmp_path / "run"), STAGES, Display(1))
    part = runner._slice(STAGES["gate"])
    assert part["gate"] == {"enabled": True, "num_seeds": 2, "num_ballots": 2, "alpha": 0.1, "margin": 0.0}
    # the value of this very slice before there were alarms, adaptation and patience
    part["generator"]["weights"] = part["judge"]["weights"] = None
    mark = fingerprint("gate", 1, {"gate": part["gate"]}, {"prepare": "a", "update": "b"})
    assert mark == "938db608f9228cb18c67630120c8e7c1fd925bbbf37895a5f688f304a148f3ce"
    assert "alarms" not in runner._slice(STAGES["judge_gate"])
    assert CampaignConfig.model_validate(json.loads(settings.model_dump_json())) == settings


def test_a_campaign_ends_without_patience_and_goes_on_with_more(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOY_REJECT", "2,3,4")
    root = tmp_path / "run"
    assert run(config, root, "rounds=5", "patience=2") == root / "report.html"
    assert Store(root).last_round() == 3  # round 1 was kept, 2 and 3 were not
    assert "ends after round 3 of 5: 2 rounds without a promotion" in capsys.readouterr().err
    found = read_status(root)
    assert (found.state, found.rounds_done) == ("done", 3)
    assert found.reason == "out of patience after round 3: no promotion; raise patience"
    assert status(read_run(root)) == ("done", "out of patience after round 3")
    again = tree(root)
    run(config, root, "rounds=5", "patience=2")
    assert tree(root) == again  # the same command says the same

    run(config, root, "rounds=5", "patience=3")
    assert Store(root).last_round() == 4
    run(config, root, "rounds=5", "patience=1")  # what has begun is not cut off
    assert Store(root).last_round() == 4
    run(config, root, "rounds=5")
    assert (read_status(root).state, read_status(root).reason) == ("done", "")
    run(config, tmp_path / "whole", "rounds=5")
    assert tree(root) == tree(tmp_path / "whole")


def test_the_last_round_ends_a_campaign_by_itself(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_REJECT", "1,2")
    run(config, tmp_path / "run", "patience=2")
    assert read_status(tmp_path / "run").reason == ""


def test_alarms_stand_in_the_table_and_the_status(config, tmp_path, capsys):
    root = tmp_path / "run"
    run(config, root)
    committed = root / "round-002" / "gate" / "gate.json"
    committed.write_text(json.dumps({"keep": False, "reason": "x", "alarms": [vars(FROZEN)]}))
    assert read_status(root).alarms == [{"round": 2, **vars(FROZEN)}]
    told = CliRunner().invoke(app, ["status", str(root)])
    assert "round 2  alarm loves_frozen: it likes stills" in told.stdout
    capsys.readouterr()
    Display(2).end_round(2, root / "round-002" / "evaluate", committed.parent)
    assert "alarm loves_frozen: it likes stills" in capsys.readouterr().err


def test_a_branch_may_lose_patience_earlier(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_REJECT", "2,3")
    run(config, tmp_path / "run", "rounds=2")
    loaded = branch(tmp_path / "run", 1, tmp_path / "new", ["rounds=4", "patience=1"])
    run_toy_campaign(loaded, Store(tmp_path / "new"))
    assert Store(tmp_path / "new").last_round() == 2


def test_a_round_after_a_rollback_films_other_takes():
    config = load_config("quickstart").config
    prompts = [{"prompt_id": f"p{i}", "text": f"t{i}", "category": "", "part": "train"} for i in range(96)]
    anchors = [{"anchor_id": f"a{i}", "caption": f"t{i}", "category": "", "part": "train"} for i in range(96)]
    first, second = (plan_takes(config, number, prompts, anchors) for number in (1, 2))
    assert not {t.seed for t in first} & {t.seed for t in second}
    assert not {t.take_id for t in first} & {t.take_id for t in second}
    fresh = [{t.prompt_id for t in takes if t.kind == "fresh"} for takes in (first, second)]
    assert len(fresh[0]) == 48 and not fresh[0] & fresh[1]  # until every prompt has had its turn
