"""Nothing of a held-out part reaches training: there is one door to it, and poison behind it changes nothing.

Training stages run twice on the same inputs, once beside an artefact of prepare whose held-out clips,
captions and prompts are poison. Their artefacts must not differ by a byte; then, round by round, no later
one can.
"""

from __future__ import annotations

import ast
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from generator.clips import write_clip
from loop import held_out
from loop.config import PARTS
from loop.config_file import load_config
from loop.embedded import oracle
from loop.held_out import HeldOut, HeldOutRead
from loop.launchers import InlineLauncher
from loop.progress import Display
from loop.stages import STAGES, StageContext
from loop.steps.common import write_table
from loop.steps.prepare import ANCHORS, PROMPTS
from loop.steps.sample import Take, plan_takes
from loop.store import SCRATCH
from reward.calibration import save
from tests.test_isolation import ROOT, reachable
from tests.test_kill import CONFIG

TRAINING = ("train_judge", "sample", "label", "pair", "update")
SMALLER = (
    "data.num_anchors={train: 4, calibrate: 1, gate: 1, report: 1}",
    "known_answers.num_train=4",
    "certainty.min_labels=4",
    "label.voting.num_ballots=2",
    "sample.sampling.num_steps=2",
    "sample.fresh.num_prompts=2",
    "train_judge.num_steps=1",
    "train_judge.preference_steps=1",
    "update.num_steps=2",
)


class Campaign:
    """Stages run one by one, each into a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tiny.yaml").write_text(CONFIG)

    def run(self, name: str, folder: str, inputs: dict[str, Path], *overrides: str, round: int = 1) -> Path:
        config = load_config(self.root / "tiny.yaml", [*SMALLER, *overrides]).config
        out = self.root / folder
        out.mkdir()
        progress, log = Display(2).stage(round, name), logging.getLogger("retake.test")
        ctx = StageContext(config, round, inputs, out, 7, progress, log, name)
        InlineLauncher(config).launch(STAGES[name], ctx)
        return out


def content(artefact: Path) -> dict[str, bytes]:
    files = [p for p in artefact.rglob("*") if p.is_file() and SCRATCH not in p.relative_to(artefact).parts]
    return {str(p.relative_to(artefact)): p.read_bytes() for p in files}


def poison(prepared: Path, folder: Path, parts: tuple[str, ...]) -> Path:
    """prepare's artefact with noise for the clips of `parts`, whose captions and prompts are a training one.

    So a stage that reads all rows finds them where it looks for its own.
    """
    shutil.copytree(prepared, folder)
    rng = np.random.default_rng(0)
    rows = {n: pq.read_table(prepared / f"{n}.parquet").to_pylist() for n in ("anchors", "prompts")}
    caption = next(row["caption"] for row in rows["anchors"] if row["part"] == "train")
    for row in rows["anchors"]:
        if row["part"] in parts:
            write_clip(folder / row["file"], rng.integers(0, 256, (17, 32, 32, 3), dtype=np.uint8), 8)
            row |= {"caption": caption, "source": "poison", "sha256": "poison"}
    for row in rows["prompts"]:
        if row["part"] in parts:
            row |= {"text": caption, "prompt_id": f"poison-{row['part']}"}
    write_table(folder / "anchors.parquet", rows["anchors"], ANCHORS)
    write_table(folder / "prompts.parquet", rows["prompts"], PROMPTS)
    return folder


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("poison"))


@pytest.fixture(scope="module")
def prepared(campaign) -> Path:
    return campaign.run("prepare", "prepare", {}, round=0)


def test_training_is_the_same_byte_for_byte_whatever_is_held_out(campaign, prepared, monkeypatch):
    monkeypatch.setattr(oracle, "score", None)  # a call would raise
    poisoned = poison(prepared, campaign.root / "prepare-all", PARTS[1:])
    (campaign.root / "judge_gate").mkdir()
    save({}, campaign.root / "judge_gate" / "calibrators.json")  # all that label may read of it
    inputs = {"judge_gate": campaign.root / "judge_gate"}
    given = {
        "sample": (),
        "label": ("sample", "judge_gate"),
        "pair": ("sample", "label"),
        "update": ("sample", "pair"),
        "train_judge": ("label", "sample"),  # of the next round: known answers and its own votes
    }
    assert given.keys() == set(TRAINING)
    differing = []
    for name, others in given.items():
        of = {other: inputs[other] for other in others}
        round = 2 if name == "train_judge" else 1
        inputs[name] = campaign.run(name, name, of | {"prepare": prepared}, round=round)
        again = campaign.run(name, f"{name}-poisoned", of | {"prepare": poisoned}, round=round)
        before, after = content(inputs[name]), content(again)
        assert before and before.keys() == after.keys()
        differing += [f"{name}/{file}" for file in before if before[file] != after[file]]
    assert differing == []
    # the comparison means something: every kind of training had something to learn from
    assert pq.read_table(inputs["pair"] / "pairs.parquet").num_rows > 0
    assert (inputs["update"] / "checkpoint").is_dir()
    phases = [json.loads(line)["phase"] for line in (inputs["train_judge"] / "log.jsonl").open()]
    assert set(phases) == {"sft", "srpo"}


def test_a_stage_that_reads_all_rows_is_found(campaign, prepared, monkeypatch):
    """Else the test above might hold because the poison is harmless."""

    def planned(folder: Path) -> list[Take]:
        config = load_config(campaign.root / "tiny.yaml", SMALLER).config
        ctx = StageContext(config, 1, {"prepare": folder}, folder, 7, None, None, "sample")
        return plan_takes(config, 1, held_out.training_prompts(ctx), held_out.training_anchors(ctx))

    poisoned = poison(prepared, campaign.root / "prepare-sabotage", PARTS[1:])
    honest = planned(prepared)
    assert planned(poisoned) == honest
    monkeypatch.setattr(held_out, "_rows", lambda ctx, table, part: held_out._table(ctx, table))
    assert planned(poisoned) != honest


def test_the_calibrate_part_reaches_calibrators_alone_and_the_gate_part_the_decision_alone(
    campaign, prepared
):
    (campaign.root / "untrained").mkdir()
    judge = "judge={type: python, target: 'tests.test_judged_takes:Brighter', num_segment_frames: 5}"

    def judged(name: str, *parts: str) -> dict[str, bytes]:
        inputs = {"prepare": poison(prepared, campaign.root / f"prepare-{name}", parts)}
        inputs["train_judge"] = campaign.root / "untrained"
        untrained = ("train_judge={num_steps: 0, preference_steps: 0}", "known_answers.num_calibrate=40")
        return content(campaign.run("judge_gate", f"judged-{name}", inputs, judge, *untrained))

    honest = judged("honest")
    assert honest.keys() == {"calibrators.json", "gate.json", "verdicts.parquet"}

    def changed(found: dict[str, bytes]) -> list[str]:
        return sorted(file for file in honest if honest[file] != found[file])

    assert changed(judged("calibrate", "calibrate", "report")) == ["calibrators.json"]
    by_gate = changed(judged("gate", "gate", "report"))
    assert "verdicts.parquet" in by_gate and "calibrators.json" not in by_gate
    # so the report part, which is poisoned in both, reaches neither


def test_no_training_stage_gets_what_evaluate_or_the_gate_wrote():
    from_training = {"prepare", "judge_parent", "judge", "generator", "sample", "label", "pair", "judge_gate"}
    from_training |= {"earlier_gate"}  # of which gate.adapt reads one number: what the rate is multiplied by
    for name in TRAINING:
        assert {given.removesuffix("?") for given in STAGES[name].inputs} <= from_training


def tables(folder: Path) -> Path:
    anchors = [
        dict.fromkeys(ANCHORS.names, part) | {"anchor_id": part, "part": part, "caption": f"Of {part}"}
        for part in PARTS
    ]
    prompts = [dict.fromkeys(PROMPTS.names, part) | {"text": f"of  {part}"} for part in PARTS]
    write_table(folder / "anchors.parquet", anchors, ANCHORS)
    write_table(folder / "prompts.parquet", prompts, PROMPTS)
    return folder


def test_a_stage_that_asks_for_a_wrong_part_is_named(tmp_path):
    inputs = {"prepare": tables(tmp_path)}

    def read(stage: str) -> set[str]:
        """The parts that it gets, each by both doors."""
        ctx = StageContext(None, 1, inputs, tmp_path, 0, None, None, stage)
        got = set()
        for part in PARTS:
            try:
                rows = held_out.anchors_of(ctx, part)
                prompts = (
                    held_out.training_prompts(ctx)
                    if part == "train"
                    else held_out.held_out_prompts(ctx, part)
                )
            except HeldOutRead as error:
                assert str(error).startswith(f"stage {stage or 'without a name'} asked for anchors of part ")
                assert part in str(error)
            else:
                assert [row["part"] for row in (*rows, *prompts)] == [part, part]
                got.add(part)
        return got

    for stage in (*TRAINING, "", "a plug-in"):
        assert read(stage) == {"train"}
    assert read("judge_gate") == {"calibrate", "gate"} and read("gate") == {"gate"}
    assert read("evaluate") == {"train", "calibrate", "report"}
    assert STAGES.keys() - held_out.READS.keys() == {"prepare"}


def test_of_held_out_parts_training_knows_digests_alone(tmp_path):
    ctx = StageContext(None, 1, {"prepare": tables(tmp_path)}, tmp_path, 0, None, None, "pair")
    marks = held_out.held_out(ctx)
    assert marks.part_of("OF gate ") == "gate" and marks.part_of("of train") is None
    assert marks.clips == {part: part for part in PARTS[1:]}
    assert not any(part in digest for digest in marks.prompts for part in PARTS)
    assert HeldOut.of([], []) == HeldOut({}, {})


def test_no_training_stage_opens_the_tables_by_another_door():
    named = {"anchors", "prompts", "anchors.parquet", "prompts.parquet"}
    for stage in (*TRAINING, "judge_gate", "gate", "evaluate"):
        for module in reachable(f"loop.steps.{stage}") - {"loop.held_out", "loop.steps.prepare"}:
            path = (ROOT / Path(*module.split("."))).with_suffix(".py")
            if path.is_file() and module.startswith("loop.steps"):
                strings = {
                    node.value
                    for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.Constant)
                }
                found = {s for s in strings if isinstance(s, str)} & {n for n in named if "." in n}
                assert not found, f"{module} reads {found} itself, past loop/held_out.py"
